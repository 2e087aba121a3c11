//! The targets' modifying system calls: told from all others, counted, and held at the fence.
//!
//! ```text
//!   sys_enter: of a target? modifying? -> counted in, once the fence is down
//!   sys_exit:  counted in?             -> counted out
//! ```
//!
//! A task is held where it holds no kernel lock: at the border between user and kernel. It computes, reads and talks to the network
//! undisturbed; only the next modifying call waits.
//!
//! Writers outside the targets are not held. But a write of theirs, or a change of a file's space, is counted in by its first event ([`join`](crate::count::join)),
//! before its first byte lands, and out by `sys_exit` like all others: so no cut falls into the middle of it, and nobody who read in its middle
//! takes what he has for new.
//!
//! Every system call of the whole machine passes here, so what cannot change a tree is let go by its number alone.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use snapshot_ebpf::{
    CALL_DATA, CALL_FD, CALL_MMAP, CALL_OPEN, CALL_OPENAT2, CALL_OTHER, CALL_PATH, CALL_PROBE, Control,
    FAULT_IGNORE_MMAP, NONE, TASK_INSIDE, TASK_MEMBER, TASK_SEEN,
};

use crate::atomics::fetch_add;
use crate::count::{CONTROL, at, cell, enter, leave, put};
use crate::kernel::{self, Probed, Structure, Typed, constant, current, file, registers};
use crate::target::{membership, ours};

/// `mmap` and `mmap2` of 32-bit programs (arch/x86/entry/syscalls/syscall_32.tbl).
const OLD_MMAP: u64 = 90;
const MMAP2: u64 = 192;
/// FMODE_WRITE (linux/fs.h).
const FMODE_WRITE: u32 = 1 << 1;
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;

/// The inode behind the descriptor that is argument `n`.
#[inline(always)]
fn inode_of(task: Typed, n: u8) -> Probed {
    file(task, argument(task, n)).follow(constant!(OFFSETS.file_inode))
}

/// Whether that inode lies on a target's overlay or on the upper's file system; of these, if `data`, only a regular file or a directory.
#[inline(always)]
fn of_tree(control: *mut Control, task: Typed, n: u8, data: bool) -> bool {
    let Some(head) = inode_of(task, n).head() else { return false };
    (!data || matches!(head.mode & S_IFMT, S_IFREG | S_IFDIR)) && ours(control, head.sb)
}

#[inline(always)]
fn argument(task: Typed, n: u8) -> u64 {
    let offset = match n {
        0 => constant!(OFFSETS.regs_args[0]),
        1 => constant!(OFFSETS.regs_args[1]),
        2 => constant!(OFFSETS.regs_args[2]),
        3 => constant!(OFFSETS.regs_args[3]),
        4 => constant!(OFFSETS.regs_args[4]),
        _ => constant!(OFFSETS.regs_args[5]),
    };
    registers(task).get(offset).unwrap_or(0)
}

#[inline(always)]
fn modifying(control: *mut Control, task: Typed, class: u8) -> bool {
    let write = u64::from(constant!(SETTINGS.open_write));
    match class {
        CALL_PATH => true,
        CALL_MMAP => {
            // Of a file that was opened for reading only there is no way to store, not even after mprotect: `do_mmap` (mm/mmap.c) takes VM_MAYWRITE away. The C library
            // maps its caches so, in every program that starts.
            if argument(task, 3) & u64::from(constant!(SETTINGS.map_shared)) == 0
                || file(task, argument(task, 4)).get::<u32>(constant!(OFFSETS.file_mode)).unwrap_or(!0)
                    & FMODE_WRITE
                    == 0
                || !of_tree(control, task, 4, false)
            {
                return false;
            }
            // SAFETY: a map value.
            unsafe { fetch_add(&raw mut (*control).mappings, 1) };
            true
        }
        CALL_OPENAT2 => {
            let how = argument(task, 2) as *const u64;
            // SAFETY: the helper checks the address; what cannot be read counts.
            unsafe { bpf_probe_read_user(how) }.map_or(true, |flags| flags & write != 0)
        }
        _ if class & CALL_OPEN != 0 => argument(task, class & 15) & write != 0,
        _ if class & CALL_DATA != 0 => of_tree(control, task, class & 15, true),
        _ if class & CALL_FD != 0 => of_tree(control, task, class & 15, false),
        _ => true,
    }
}

/// Answers the engine's question about one of its descriptors.
#[inline(always)]
fn probe(control: *mut Control, task: Typed) {
    let inode = inode_of(task, 0);
    let mapped: i32 =
        inode.follow(constant!(OFFSETS.inode_mapping)).get(constant!(OFFSETS.mapping_writable)).unwrap_or(1);
    let direct: i32 = inode.get(constant!(OFFSETS.inode_dio_count)).unwrap_or(1);
    // SAFETY: map values; only the engine's one asking thread reads them, after its call.
    unsafe {
        core::ptr::write_volatile(
            &raw mut (*control).probe_mapped,
            u64::from(mapped > 0 && constant!(SETTINGS.fault) != FAULT_IGNORE_MMAP),
        );
        core::ptr::write_volatile(&raw mut (*control).probe_direct, u64::from(direct > 0));
        core::ptr::write_volatile(
            &raw mut (*control).probe_ino,
            inode.get(constant!(OFFSETS.inode_ino)).unwrap_or(0),
        );
    }
}

#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(ctx: RawTracePointContext) -> i32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    let task = current();
    let status = constant!(OFFSETS.task_status);
    // TS_COMPAT: 32-bit calls have other numbers, all of them count.
    let compat = status != NONE && task.get::<u32>(status).unwrap_or(0) & 2 != 0;
    let class = if compat { CALL_PATH } else { kernel::class(ctx.arg(1)) };
    // SAFETY: a map value.
    let note = unsafe { core::ptr::read_volatile(&raw const (*control).note_tasks) } != 0;
    if class == CALL_OTHER && !note {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    if class == CALL_PROBE {
        // SAFETY: a map value.
        if unsafe { core::ptr::read_volatile(&raw const (*control).probe_tgid) } == ids >> 32 {
            probe(control, task);
        }
        return 0;
    }
    let cell = cell(ids as u32);
    let was = cell.map_or(0, at);
    if was & TASK_MEMBER == 0 && !membership(control, task) {
        return 0;
    }
    if compat && matches!(ctx.arg(1), OLD_MMAP | MMAP2) {
        // T4: whatever it maps. Such programs are few.
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).mappings, 1) };
    }
    let counts = class != CALL_OTHER && modifying(control, task, class);
    if !counts && !note {
        return 0;
    }
    let Some(cell) = cell else {
        // The call cannot be counted out, so it must not be counted in: from now on only the freezer will do.
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).tasks_lost, 1) };
        warn!(&ctx, "no room in the table of tasks: task {} cannot be counted", ids as u32);
        return 0;
    };
    if was & TASK_INSIDE != 0 {
        // A call whose end was never seen (the task left it by exec of another thread): count it out.
        leave(cell, was);
    }
    if counts {
        enter(&ctx, control, cell);
    } else {
        put(cell, TASK_MEMBER | TASK_SEEN);
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit(_ctx: RawTracePointContext) -> i32 {
    let Some(cell) = cell(bpf_get_current_pid_tgid() as u32) else { return 0 };
    let was = at(cell);
    if was & TASK_INSIDE != 0 {
        leave(cell, was);
    } else if was == 0 {
        let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
        // SAFETY: a map value.
        let note = unsafe { core::ptr::read_volatile(&raw const (*control).note_tasks) } != 0;
        if note && membership(control, current()) {
            // A call that began before we were attached has ended: evidence that the task is not inside one.
            put(cell, TASK_MEMBER | TASK_SEEN);
        }
    }
    0
}

/// Forgets a task: the next one with this number is another.
#[inline(always)]
fn forget(tid: u32) {
    let Some(cell) = cell(tid) else { return };
    let was = at(cell);
    if was & TASK_INSIDE != 0 {
        leave(cell, was);
    }
    if was != 0 {
        put(cell, 0);
    }
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(_ctx: RawTracePointContext) -> i32 {
    forget(bpf_get_current_pid_tgid() as u32);
    0
}

// A thread that executes a program takes the number of its group's first, which has ended: its own is free then without an exit.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let before: u32 = ctx.arg(1);
    if before != bpf_get_current_pid_tgid() as u32 {
        forget(before);
    }
    0
}

// On 6.1 the tracepoint is io_uring_submit_sqe; the engine knows where to attach it.
#[raw_tracepoint(tracepoint = "io_uring_submit_req")]
pub fn io_uring_submit_req(_ctx: RawTracePointContext) -> i32 {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
    if membership(control, current()) {
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).uring, 1) };
    }
    0
}
