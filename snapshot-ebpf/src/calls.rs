//! The targets' modifying system calls: counted, and held at the fence.
//!
//! ```text
//!   sys_enter: of a target? modifying? -> count in -> fence up? -> count out, spin, count in again
//!   sys_exit:  counted in?             -> count out
//! ```
//!
//! A task is held where it holds no kernel lock: at the border between user and kernel. It computes, reads and talks to the network
//! undisturbed; only the next modifying call waits.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
    bpf_loop, bpf_probe_read_user,
};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use snapshot_ebpf::{
    CALL_DATA, CALL_FD, CALL_MMAP, CALL_OPEN, CALL_OPENAT2, CALL_OTHER, CALL_PATH, CALL_PROBE, Control,
    CpuStop, FAULT_NO_COUNT, FAULT_NO_FENCE, MAX_CALLS, MAX_CPUS, MAX_TARGETS, NONE,
};

use crate::atomics::fetch_add;
use crate::kernel::{Ref, constant, current, device, file};
use crate::slots::CONTROL;

const MMAPABLE: u32 = 1 << 10;
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;
/// BPF_MAX_LOOPS is 8 Mi; a turn takes some 20 ns, so this outlasts every deadline the engine sets.
const TURNS: u32 = 1 << 20;
/// The bit of the x32 ABI, and anything else that is not a plain number.
const PLAIN: i64 = MAX_CALLS as i64 - 1;

#[map]
static TASKS: HashMap<u32, u64> = HashMap::with_max_entries(65536, 0);
#[map]
static CALLS: Array<u32> = Array::with_max_entries(MAX_CALLS, 0);
#[map]
static CPUS: Array<CpuStop> = Array::with_max_entries(MAX_CPUS, MMAPABLE);

/// The target the running task belongs to.
#[inline(always)]
fn membership(control: *mut Control, task: Ref) -> bool {
    // SAFETY: a map value.
    let len = unsafe { core::ptr::read_volatile(&raw const (*control).targets_len) };
    let namespace = task.follow(constant!(OFFSETS.task_nsproxy)).follow(constant!(OFFSETS.nsproxy_mnt));
    let inum: u32 = namespace.get(constant!(OFFSETS.mnt_inum)).unwrap_or(0);
    let mut i = 0;
    while i < MAX_TARGETS {
        if i as u64 >= len {
            return false;
        }
        // SAFETY: a map value, and `i` is in bounds of the array.
        let target = unsafe { core::ptr::read_volatile(&raw const (*control).targets[i]) };
        if inum != 0 && inum == target.mount_namespace {
            return true;
        }
        // SAFETY: the helper answers 0 for a level the task's cgroup does not have.
        if target.cgroup != 0
            && unsafe { bpf_get_current_ancestor_cgroup_id(target.cgroup_level as i32) } == target.cgroup
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether an open file lies on a target's overlay, or on the upper's file system.
#[inline(always)]
fn ours(control: *mut Control, file: Ref) -> bool {
    let found = device(file.follow(constant!(OFFSETS.file_inode)));
    if found == 0 {
        return false;
    }
    if found == constant!(SETTINGS.upper_device) {
        return true;
    }
    let mut i = 0;
    while i < MAX_TARGETS {
        // SAFETY: a map value.
        if unsafe { core::ptr::read_volatile(&raw const (*control).targets[i].overlay_device) } == found {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether an open file is a regular file or a directory; what cannot be read counts as one.
#[inline(always)]
fn plain(file: Ref) -> bool {
    let mode = file.follow(constant!(OFFSETS.file_inode)).get::<u16>(constant!(OFFSETS.inode_mode));
    mode.is_none_or(|m| matches!(m & S_IFMT, S_IFREG | S_IFDIR))
}

#[inline(always)]
fn argument(regs: Ref, n: usize) -> u64 {
    let offset = match n {
        0 => constant!(OFFSETS.regs_args[0]),
        1 => constant!(OFFSETS.regs_args[1]),
        2 => constant!(OFFSETS.regs_args[2]),
        3 => constant!(OFFSETS.regs_args[3]),
        4 => constant!(OFFSETS.regs_args[4]),
        _ => constant!(OFFSETS.regs_args[5]),
    };
    regs.get(offset).unwrap_or(0)
}

#[inline(always)]
fn modifying(control: *mut Control, task: Ref, regs: Ref, class: u32) -> bool {
    let write = u64::from(constant!(SETTINGS.open_write));
    match class {
        CALL_PATH => true,
        CALL_MMAP => {
            if argument(regs, 3) & u64::from(constant!(SETTINGS.map_shared)) == 0
                || !ours(control, file(task, argument(regs, 4)))
            {
                return false;
            }
            // SAFETY: a map value.
            unsafe { fetch_add(&raw mut (*control).mappings, 1) };
            true
        }
        CALL_OPENAT2 => {
            let how = argument(regs, 2) as *const u64;
            // SAFETY: the helper checks the address; what cannot be read counts.
            unsafe { bpf_probe_read_user(how) }.map_or(true, |flags| flags & write != 0)
        }
        _ if class & CALL_OPEN != 0 => argument(regs, (class & 15) as usize) & write != 0,
        _ if class & CALL_DATA != 0 => {
            let file = file(task, argument(regs, (class & 15) as usize));
            plain(file) && ours(control, file)
        }
        _ if class & CALL_FD != 0 => ours(control, file(task, argument(regs, (class & 15) as usize))),
        _ => true,
    }
}

/// Answers the engine's question about one of its descriptors.
#[inline(always)]
fn probe(control: *mut Control, task: Ref, regs: Ref) {
    let inode = file(task, argument(regs, 0)).follow(constant!(OFFSETS.file_inode));
    let mapped: i32 =
        inode.follow(constant!(OFFSETS.inode_mapping)).get(constant!(OFFSETS.mapping_writable)).unwrap_or(1);
    let direct: i32 = inode.get(constant!(OFFSETS.inode_dio_count)).unwrap_or(1);
    // SAFETY: map values; only the engine's one asking thread reads them, after its call.
    unsafe {
        core::ptr::write_volatile(&raw mut (*control).probe_mapped, u64::from(mapped > 0));
        core::ptr::write_volatile(&raw mut (*control).probe_direct, u64::from(direct > 0));
        core::ptr::write_volatile(
            &raw mut (*control).probe_ino,
            inode.get(constant!(OFFSETS.inode_ino)).unwrap_or(0),
        );
    }
}

#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let (regs, number): (Ref, i64) = (Ref(ctx.arg(0)), ctx.arg(1));
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    let task = current();
    let status = constant!(OFFSETS.task_status);
    // TS_COMPAT: 32-bit calls have other numbers, all of them count.
    let compat = status != NONE && task.get::<u32>(status).unwrap_or(0) & 2 != 0;
    let class = if compat || number & !PLAIN != 0 {
        CALL_PATH
    } else {
        CALLS.get(number as u32).copied().unwrap_or(CALL_PATH)
    };
    // SAFETY: a map value.
    let note = unsafe { core::ptr::read_volatile(&raw const (*control).note_tasks) } != 0;
    let ids = bpf_get_current_pid_tgid();
    if class == CALL_PROBE {
        // SAFETY: a map value.
        if unsafe { core::ptr::read_volatile(&raw const (*control).probe_tgid) } == ids >> 32 {
            probe(control, task, regs);
        }
        return 0;
    }
    if class == CALL_OTHER && !note {
        return 0;
    }
    if !membership(control, task) {
        return 0;
    }
    let counts = class != CALL_OTHER && modifying(control, task, regs, class);
    if !counts && !note {
        return 0;
    }
    let tid = ids as u32;
    let mut inside = TASKS.get_ptr_mut(tid);
    if inside.is_none() {
        let _ = TASKS.insert(tid, 0, 0);
        inside = TASKS.get_ptr_mut(tid);
    }
    let Some(inside) = inside else {
        // The call cannot be counted out, so it must not be counted in: from now on only the freezer will do.
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).tasks_lost, 1) };
        warn!(&ctx, "task table full: task {} cannot be counted", tid);
        return 0;
    };
    // A call whose end was never seen (the task left it by exec of another thread): count it out.
    leave(control, inside);
    if counts {
        enter(&ctx, control, inside);
    }
    0
}

/// What the enter loop works on. It lies on the stack: bpf_loop takes no other context.
#[repr(C)]
struct Entering {
    control: *mut Control,
    phase: u64,
    expired: u64,
}

/// One turn: counts the call in if the fence is down (1: done), otherwise leaves it out (0: another turn).
unsafe extern "C" fn turn(_: u32, context: *mut c_void) -> i64 {
    let entering = context.cast::<Entering>();
    // SAFETY: `context` is the caller's stack slot, `control` a map value.
    unsafe {
        let control = (*entering).control;
        let phase = core::ptr::read_volatile(&raw const (*control).phase) & 1;
        let counter = (&raw mut (*control).in_flight).cast::<u64>().add(phase as usize * 8);
        // In before looking: see the ordering at `Control`.
        fetch_add(counter, 1);
        let until = core::ptr::read_volatile(&raw const (*control).fence_until);
        if until != 0 && constant!(SETTINGS.fault) != FAULT_NO_FENCE {
            if bpf_ktime_get_ns() < until {
                fetch_add(counter, !0);
                return 0;
            }
            // G3: the deadline has passed; the engine is late, hung or dead.
            (*entering).expired = 1;
        }
        (*entering).phase = phase;
    }
    1
}

#[inline(always)]
fn enter(ctx: &BtfTracePointContext, control: *mut Control, inside: *mut u64) {
    if constant!(SETTINGS.fault) == FAULT_NO_COUNT {
        return;
    }
    let mut entering = Entering { control, phase: 0, expired: 0 };
    let context = (&raw mut entering).cast::<c_void>();
    // SAFETY: map values and this stack frame; the callback keeps to them.
    unsafe {
        let began = if turn(0, context) == 0 {
            let began = bpf_ktime_get_ns();
            bpf_loop(TURNS, turn as *mut c_void, context, 0);
            began
        } else {
            0
        };
        let phase = core::ptr::read_volatile(&raw const entering.phase);
        core::ptr::write_volatile(inside, phase + 1);
        fetch_add(&raw mut (*control).entered.value, 1);
        let expired = core::ptr::read_volatile(&raw const entering.expired);
        if began != 0 {
            felt(bpf_ktime_get_ns() - began, expired);
            if expired != 0 {
                warn!(ctx, "a call was let through: the fence was up past its deadline");
            }
        }
    }
}

/// Notes a spin. Programs here run with migration off, so a CPU's entry has one writer at a time.
#[inline(always)]
fn felt(spun: u64, expired: u64) {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let cpu = if cpu < MAX_CPUS { cpu } else { MAX_CPUS - 1 };
    if let Some(stop) = CPUS.get_ptr_mut(cpu) {
        // SAFETY: a map value.
        unsafe {
            fetch_add(&raw mut (*stop).spins, 1);
            fetch_add(&raw mut (*stop).expired, expired);
            if core::ptr::read_volatile(&raw const (*stop).longest) < spun {
                core::ptr::write_volatile(&raw mut (*stop).longest, spun);
            }
        }
    }
}

/// Counts out the call a task is inside of, if it is.
#[inline(always)]
fn leave(control: *mut Control, inside: *mut u64) {
    // SAFETY: map values.
    unsafe {
        let phase = core::ptr::read_volatile(inside);
        if phase != 0 {
            core::ptr::write_volatile(inside, 0);
            let counter = (&raw mut (*control).in_flight).cast::<u64>().add(((phase - 1) & 1) as usize * 8);
            fetch_add(counter, !0);
        }
    }
}

#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(_ctx: BtfTracePointContext) -> i32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    // SAFETY: map values.
    let (a, b, note) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*control).in_flight[0].value),
            core::ptr::read_volatile(&raw const (*control).in_flight[1].value),
            core::ptr::read_volatile(&raw const (*control).note_tasks),
        )
    };
    // Nobody inside: this task is not. (Its own count was made on this CPU, or carried over by the scheduler's barriers.)
    if a | b == 0 && note == 0 {
        return 0;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(inside) = TASKS.get_ptr_mut(tid) {
        leave(control, inside);
    } else if note != 0 && membership(control, current()) {
        // A call that began before we were attached has ended: evidence that the task is not inside one.
        let _ = TASKS.insert(tid, 0, 0);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(_ctx: BtfTracePointContext) -> i32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(inside) = TASKS.get_ptr_mut(tid) {
        leave(control, inside);
        let _ = TASKS.remove(tid);
    }
    0
}

#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn io_uring_submit_req(_ctx: BtfTracePointContext) -> i32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    if membership(control, current()) {
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).uring, 1) };
    }
    0
}
