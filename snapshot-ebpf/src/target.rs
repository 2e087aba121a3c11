//! Who belongs to a target, and which inodes are of its tree.

use aya_ebpf::helpers::bpf_get_current_ancestor_cgroup_id;
use snapshot_ebpf::{Control, MAX_TARGETS};

use crate::kernel::{Probed, Structure, Typed, constant};

/// Whether the running task belongs to a target. Not by plain loads: the verifier of 6.18 looks for the names of the types they lead to, which takes 40 ms in each
/// program that follows a task to its namespace (all programs together: 1.7 s instead of 0.1 s), and saves an outsider's call 25 ns.
#[inline(always)]
pub fn membership(control: *mut Control, task: Typed) -> bool {
    let task = Probed::at(task.address());
    // SAFETY: a map value.
    let len = unsafe { core::ptr::read_volatile(&raw const (*control).targets_len) };
    // The group first: it names most members with one call.
    let mut i = 0;
    while i < MAX_TARGETS && (i as u64) < len {
        // SAFETY: a map value, and `i` is in bounds of the array.
        let target = unsafe { &raw const (*control).targets[i] };
        // SAFETY: a map value; the helper answers 0 for a level the task's cgroup does not have.
        unsafe {
            let cgroup = core::ptr::read_volatile(&raw const (*target).cgroup);
            let level = core::ptr::read_volatile(&raw const (*target).cgroup_level);
            if cgroup != 0 && bpf_get_current_ancestor_cgroup_id(level as i32) == cgroup {
                return true;
            }
        }
        i += 1;
    }
    let namespace = task.follow(constant!(OFFSETS.task_nsproxy)).follow(constant!(OFFSETS.nsproxy_mnt));
    let inum: u32 = namespace.get(constant!(OFFSETS.mnt_inum)).unwrap_or(0);
    let mut i = 0;
    while i < MAX_TARGETS && (i as u64) < len {
        // SAFETY: as above.
        if inum != 0
            && inum == unsafe { core::ptr::read_volatile(&raw const (*control).targets[i].mount_namespace) }
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether a superblock is the upper's file system's.
#[inline(always)]
pub fn of_upper<K: Structure>(control: *mut Control, sb: K) -> bool {
    let address = sb.address() as u64;
    // SAFETY: a map value.
    if address != 0 && address == unsafe { core::ptr::read_volatile(&raw const (*control).upper_super) } {
        return true;
    }
    let found: u32 = sb.get(constant!(OFFSETS.sb_dev)).unwrap_or(0);
    if found != constant!(SETTINGS.upper_device) {
        return false;
    }
    // SAFETY: a map value; whoever comes next finds this one or the same.
    unsafe { core::ptr::write_volatile(&raw mut (*control).upper_super, address) };
    true
}

/// Whether an open file's superblock is a target's overlay, or the upper's file system's.
#[inline(always)]
pub fn ours<K: Structure>(control: *mut Control, sb: K) -> bool {
    let address = sb.address() as u64;
    // SAFETY: a map value.
    if address != 0 && address == unsafe { core::ptr::read_volatile(&raw const (*control).overlay_super) } {
        return true;
    }
    let found: u32 = sb.get(constant!(OFFSETS.sb_dev)).unwrap_or(0);
    if found == 0 {
        return false;
    }
    if found == constant!(SETTINGS.upper_device) {
        return true;
    }
    let mut i = 0;
    while i < MAX_TARGETS {
        // SAFETY: map values; `i` is in bounds of the array.
        unsafe {
            if core::ptr::read_volatile(&raw const (*control).targets[i].overlay_device) == found {
                core::ptr::write_volatile(&raw mut (*control).overlay_super, address);
                return true;
            }
        }
        i += 1;
    }
    false
}
