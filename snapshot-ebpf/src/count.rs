//! Counting calls in and out, and holding them at the fence.
//!
//! ```text
//!   enter   in -> fence down? ------------------------------------------------> inside
//!                    | up                                                          ^
//!                    '-> out again -> spin until it is down or late -> in -> down? |
//!   join    the same for an outsider, whom the fence does not hold: in ------------'
//!   leave   inside -> out
//! ```
//!
//! Each CPU has its own counts ([`Cpu`] has the order in which they are added up), and each task its own byte: nothing here is
//! shared between two writers but the control page, which nobody writes.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_loop};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use snapshot_ebpf::{
    Control, Cpu, FAULT_NO_COUNT, FAULT_NO_FENCE, MAX_CPUS, TASK_INSIDE, TASK_MEMBER, TASK_PHASE, TASK_SEEN,
    TASK_TOLD, TASKS_A_LINE, TaskLine,
};

use crate::atomics::{barrier, fetch_add, opaque};
use crate::kernel::{Structure, constant, current};
use crate::target::membership;

const MMAPABLE: u32 = 1 << 10;
/// Flags of a task (linux/sched.h): it exits; it works for io_uring; it is the kernel's own.
const PF_EXITING: u32 = 0x4;
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x0020_0000;
/// BPF_MAX_LOOPS is 8 Mi; a turn takes some 20 ns, so this outlasts every deadline the engine sets.
const TURNS: u32 = 1 << 20;

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map]
static CPUS: Array<Cpu> = Array::with_max_entries(MAX_CPUS, MMAPABLE);
// The engine sets the real size before loading.
#[map]
static TASKS: Array<TaskLine> = Array::with_max_entries(1, MMAPABLE);

/// The counts of this CPU. A program stays on its CPU to its end.
#[inline(always)]
pub fn cpu() -> Option<*mut Cpu> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    CPUS.get_ptr_mut(if cpu < MAX_CPUS { cpu } else { MAX_CPUS - 1 })
}

/// Where a task is, if the table has room for its number.
#[inline(always)]
pub fn cell(tid: u32) -> Option<*mut u8> {
    let line = TASKS.get_ptr_mut(tid & constant!(SETTINGS.task_mask))?;
    let place = opaque(u64::from(tid >> (constant!(SETTINGS.task_shift) & 31)));
    if place >= u64::from(TASKS_A_LINE) {
        return None;
    }
    // SAFETY: in bounds of the line.
    Some(unsafe { line.cast::<u8>().add(place as usize) })
}

/// What is in a task's cell.
#[inline(always)]
pub fn at(cell: *mut u8) -> u8 {
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(cell) }
}

/// Puts a task somewhere.
#[inline(always)]
pub fn put(cell: *mut u8, to: u8) {
    // SAFETY: a map value, which the running task alone writes.
    unsafe { core::ptr::write_volatile(cell, to) };
}

/// Whether the running task is in all these states (`TASK_*`).
#[inline(always)]
fn is(what: u8) -> bool {
    cell(bpf_get_current_pid_tgid() as u32).is_some_and(|cell| at(cell) & what == what)
}

/// Whether the running call is a member's, and an event has told of the content it writes.
#[inline(always)]
pub fn told() -> bool {
    is(TASK_TOLD)
}

/// What an event's looks at a slot need before them, see `slots`: a full barrier, or that who reads what they lead to waits for this call. A call of an outsider may
/// have been counted in its middle.
#[inline(always)]
pub fn ordered() {
    if !is(TASK_INSIDE | TASK_MEMBER) {
        barrier();
    }
}

/// A cell's content inside a call of this phase.
#[inline(always)]
fn inside(was: u8, phase: u64) -> u8 {
    let phase = if phase == 0 { 0 } else { TASK_PHASE };
    was & TASK_MEMBER | TASK_SEEN | TASK_INSIDE | phase
}

/// The counter of a phase among a CPU's two.
#[inline(always)]
fn of_phase(two: *mut [u64; 2], phase: u64) -> *mut u64 {
    // SAFETY: in bounds of the two.
    unsafe { two.cast::<u64>().add((opaque(phase) & 1) as usize) }
}

#[inline(always)]
fn phase(control: *mut Control) -> u64 {
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(&raw const (*control).phase) & 1 }
}

#[inline(always)]
fn fence_until(control: *mut Control) -> u64 {
    if constant!(SETTINGS.fault) == FAULT_NO_FENCE {
        return 0;
    }
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(&raw const (*control).fence_until) }
}

/// Counts a member's call in, once the fence lets it.
#[inline(always)]
pub fn enter(ctx: &RawTracePointContext, control: *mut Control, cell: *mut u8) {
    if constant!(SETTINGS.fault) == FAULT_NO_COUNT {
        return;
    }
    let Some(cpu) = cpu() else { return };
    let phase = phase(control);
    // SAFETY: map values.
    unsafe {
        let entered = of_phase(&raw mut (*cpu).entered, phase);
        // In before looking: see the ordering at `Control`.
        fetch_add(entered, 1);
        if fence_until(control) == 0 {
            put(cell, inside(TASK_MEMBER, phase));
            return;
        }
        fetch_add(entered, !0);
    }
    held(ctx, control, cell);
}

/// What the spinning works on. It lies on the stack: bpf_loop takes no other context.
#[repr(C)]
struct Held {
    control: *mut Control,
    phase: u64,
    expired: u64,
    /// The last turn counts the call in whatever the fence says.
    last: u64,
    counted: u64,
}

/// One turn: counts the call in if the fence is down or late (1: done), otherwise does nothing (0: another turn).
unsafe extern "C" fn turn(_: u32, context: *mut c_void) -> i64 {
    let held = context.cast::<Held>();
    // SAFETY: `context` is the caller's stack slot, `control` a map value.
    unsafe {
        let control = (*held).control;
        let until = fence_until(control);
        if until != 0 {
            if core::ptr::read_volatile(&raw const (*held).last) == 0 && bpf_ktime_get_ns() < until {
                return 0;
            }
            // G3: the deadline has passed; the engine is late, hung or dead.
            (*held).expired = 1;
        }
        let Some(cpu) = cpu() else { return 1 };
        let phase = phase(control);
        let entered = of_phase(&raw mut (*cpu).entered, phase);
        // In before looking, as above: it may have gone up again.
        fetch_add(entered, 1);
        if until == 0 && core::ptr::read_volatile(&raw const (*held).last) == 0 && fence_until(control) != 0 {
            fetch_add(entered, !0);
            return 0;
        }
        (*held).phase = phase;
        (*held).counted = 1;
    }
    1
}

/// Spins until the fence is down or late, and counts the call in.
#[inline(always)]
fn held(ctx: &RawTracePointContext, control: *mut Control, cell: *mut u8) {
    let mut held = Held { control, phase: 0, expired: 0, last: 0, counted: 0 };
    let context = (&raw mut held).cast::<c_void>();
    // SAFETY: map values and this stack frame; the callback keeps to them.
    unsafe {
        let began = bpf_ktime_get_ns();
        bpf_loop(TURNS, turn as *mut c_void, context, 0);
        if core::ptr::read_volatile(&raw const held.counted) == 0 {
            // The loop ended before the fence did. The call goes on, and since it will be counted out it must be counted in.
            core::ptr::write_volatile(&raw mut held.last, 1);
            turn(0, context);
        }
        put(cell, inside(TASK_MEMBER, core::ptr::read_volatile(&raw const held.phase)));
        let expired = core::ptr::read_volatile(&raw const held.expired);
        felt(bpf_ktime_get_ns() - began, expired);
        if expired != 0 {
            warn!(ctx, "a call was let through: the fence was up past its deadline");
        }
    }
}

/// Notes a spin. Programs here run with migration off, so a CPU's entry has one writer at a time.
#[inline(always)]
fn felt(spun: u64, expired: u64) {
    let Some(cpu) = cpu() else { return };
    // SAFETY: a map value.
    unsafe {
        fetch_add(&raw mut (*cpu).spins, 1);
        fetch_add(&raw mut (*cpu).expired, expired);
        if core::ptr::read_volatile(&raw const (*cpu).longest) < spun {
            core::ptr::write_volatile(&raw mut (*cpu).longest, spun);
        }
    }
}

/// Counts in the write, or change of space, that a task outside the targets has just begun on one of their inodes. Nothing changes if it is counted already.
///
/// Only what is certain to reach `sys_exit` may be counted in: a task of the kernel never does, a worker of io_uring neither, and one that
/// exits not any more. That is also why a truncation is not: the last close of a deleted file makes one behind `sys_exit`, in task work. A target's own call is counted at its entry; if it is not, it began before the tracker, and must not look as if
/// it had been seen outside a call.
///
/// A full barrier, like [`ordered`].
#[inline(always)]
pub fn join() {
    let cell = cell(bpf_get_current_pid_tgid() as u32);
    if let Some(cell) = cell {
        let was = at(cell);
        if was & TASK_INSIDE != 0 && was & TASK_MEMBER != 0 {
            put(cell, was | TASK_TOLD);
            return;
        }
        if was & TASK_INSIDE != 0 {
            barrier();
            return;
        }
    }
    barrier();
    let Some(control) = CONTROL.get_ptr_mut(0) else { return };
    if constant!(SETTINGS.fault) == FAULT_NO_COUNT {
        return;
    }
    let task = current();
    let flags = task.get::<u32>(constant!(OFFSETS.task_flags)).unwrap_or(!0);
    if flags & (PF_EXITING | PF_IO_WORKER | PF_KTHREAD) != 0 || membership(control, task) {
        return;
    }
    // SAFETY: map values.
    unsafe {
        let (Some(cell), Some(cpu)) = (cell, cpu()) else {
            fetch_add(&raw mut (*control).tasks_lost, 1);
            return;
        };
        let phase = phase(control);
        fetch_add(of_phase(&raw mut (*cpu).entered, phase), 1);
        put(cell, inside(0, phase));
    }
}

/// Counts out the call a task is inside of; `was` is what its cell holds.
#[inline(always)]
pub fn leave(cell: *mut u8, was: u8) {
    put(cell, was & TASK_MEMBER | TASK_SEEN);
    if let Some(cpu) = cpu() {
        // SAFETY: a map value.
        unsafe { fetch_add(of_phase(&raw mut (*cpu).left, u64::from(was & TASK_PHASE != 0)), 1) };
    }
}
