//! No call that began before the tracker was attached is still running: how we know.
//!
//! The programs count a call from its entry on, so one that was under way when they were attached is not counted: its bytes could land
//! after we have read the file, with its event before we watched it. So each task that lived at that moment must have been seen
//! outside a modifying call since:
//!
//! * it entered or left any system call (the programs note it in TASKS), or
//! * it sleeps in a call that changes nothing (`/proc/TID/syscall`), in a write to a pipe or socket, or in the opening of a FIFO, or
//! * it is stopped by a signal, which happens at the border between user and kernel only (not one that a debugger has stopped:
//!   that may be at the entry of a call which then goes on uncounted), or
//! * it was sampled in user mode (it computes and makes no calls), or
//! * it works for io_uring (so it never makes a call) and waits for its next request, or
//! * it is gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use snapshot_ebpf::{CALL_DATA, CALL_OPEN, CALL_OTHER, CALL_PROBE};

use super::{Tracker, calls};
use crate::kernel::perf::UserSampler;

/// Tasks are given this long to show up by themselves before they are sampled.
const PATIENCE: Duration = Duration::from_millis(2);

/// Waits until every one of `tasks` was seen outside a modifying call, and returns those that were not. `tasks` were
/// listed after the tracker was attached.
#[must_use]
pub fn wait(tracker: &Tracker, tasks: &[u32], timeout: Duration) -> Vec<u32> {
    let classes = calls::classes();
    let began = Instant::now();
    let mut rest: Vec<u32> = tasks.to_vec();
    let mut samplers: HashMap<u32, Option<UserSampler>> = HashMap::new();
    loop {
        rest.retain(|&tid| {
            !(tracker.noted(tid)
                || asleep_or_gone(tid, &classes)
                || samplers.get(&tid).is_some_and(|s| s.as_ref().is_some_and(UserSampler::seen)))
        });
        if rest.is_empty() {
            tracker.stop_noting();
            return rest;
        }
        if began.elapsed() > timeout {
            return rest;
        }
        if began.elapsed() > PATIENCE {
            for &tid in &rest {
                samplers.entry(tid).or_insert_with(|| {
                    UserSampler::start(tid)
                        .inspect_err(|e| tracing::debug!(tid, %e, "cannot be sampled"))
                        .ok()
                });
            }
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Whether a task sleeps in open(2) of a FIFO nobody has opened at the other end (`wait_for_partner`, fs/pipe.c). It may
/// do so for ever; it has changed nothing since it fell asleep, and will change nothing when it wakes up.
#[must_use]
pub fn waits_for_partner(tid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{tid}/wchan"))
        .is_ok_and(|symbol| matches!(symbol.trim(), "wait_for_partner" | "fifo_open"))
}

/// Whether a task works for an io_uring, and if so whether it waits for its next request (io_uring/io-wq.c, io_uring/sqpoll.c). Such a task never leaves the
/// call in which it was made, as `/proc/TID/syscall` has it; only where it sleeps tells.
fn worker_waits(tid: u32) -> Option<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    is_worker(&stat).then(|| {
        std::fs::read_to_string(format!("/proc/{tid}/wchan"))
            .is_ok_and(|symbol| matches!(symbol.trim(), "io_wq_worker" | "io_sq_thread"))
    })
}

/// Whether `/proc/TID/stat` has PF_IO_WORKER (linux/sched.h) in its ninth field.
fn is_worker(stat: &str) -> bool {
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & 0x10 != 0)
}

/// Whether a task is gone, or sleeps where it changes nothing. `/proc/TID/syscall` says "running", or the call's number and arguments
/// (-1: asleep outside any call), for a task that is off its CPU (fs/proc/base.c, proc_pid_syscall).
fn asleep_or_gone(tid: u32, classes: &[u8]) -> bool {
    if let Some(waits) = worker_waits(tid) {
        return waits;
    }
    match std::fs::read_to_string(format!("/proc/{tid}/syscall")) {
        Ok(text) => {
            harmless(&text, classes, |fd| changes_nothing(tid, fd)) || waits_for_partner(tid) || stopped(tid)
        }
        Err(_) => !std::path::Path::new(&format!("/proc/{tid}")).exists(),
    }
}

/// Whether a task is stopped by SIGSTOP or its like: state `T`, not the `t` of a debugger's (fs/proc/array.c). It is in `do_signal_stop`, on
/// its way back to user mode; `/proc/TID/syscall` still names the last call it made.
fn stopped(tid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
    // The command's name is in parentheses and may hold any byte.
    stat.rsplit(|b| *b == b')').next().is_some_and(|rest| rest.starts_with(b" T "))
}

/// Whether a descriptor of a task is neither a regular file nor a directory: a write to a pipe or socket may block for ever.
fn changes_nothing(tid: u32, fd: u64) -> bool {
    std::fs::metadata(format!("/proc/{tid}/fd/{fd}")).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Whether the call a sleeping task is in changes nothing. `inert` tells of a descriptor whether writing to it changes no tree.
fn harmless(text: &str, classes: &[u8], inert: impl Fn(u64) -> bool) -> bool {
    let mut words = text.split_whitespace();
    let number = match words.next().map(str::parse::<i64>) {
        Some(Ok(-1)) => return true,
        Some(Ok(number)) => number,
        _ => return false,
    };
    let Some(&class) = usize::try_from(number).ok().and_then(|n| classes.get(n)) else { return false };
    let mut argument = |n: u8| {
        let word = words.nth(n as usize)?;
        u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok()
    };
    match class {
        CALL_OTHER | CALL_PROBE => true,
        _ if class & CALL_DATA != 0 => argument(class & 15).is_some_and(inert),
        _ if class & !15 == CALL_OPEN => {
            argument(class & 15).is_some_and(|flags| flags & u64::from(calls::open_write()) == 0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_io_uring_are_told_by_their_flags() {
        assert!(is_worker("12 (iou-wrk-11) S 1 11 11 0 -1 16464 0 0 0"));
        assert!(is_worker("12 (a) Z 1) R 1 11 11 0 -1 4194320 0 0 0"));
        assert!(!is_worker("12 (cat) S 1 11 11 0 -1 4194304 0 0 0"));
        assert!(!is_worker("garbage"));
    }

    #[test]
    fn only_calls_that_change_nothing_are_evidence() {
        let classes = calls::classes();
        let (pipe, file) = (|_| true, |_| false);
        let text = |number: libc::c_long, arguments: &str| format!("{number} {arguments} 0x7ffc 0x7f00\n");
        assert!(harmless(&text(libc::SYS_futex, "0x1 0x2 0x3"), &classes, file));
        assert!(harmless("-1 0x7f 0x55", &classes, file));
        assert!(!harmless("running\n", &classes, pipe));
        assert!(!harmless("", &classes, pipe));
        assert!(!harmless(&text(libc::SYS_pwrite64, "0x1"), &classes, file));
        assert!(harmless(&text(libc::SYS_write, "0x1 0x7f 0x10"), &classes, |fd| fd == 1));
        assert!(harmless(&text(libc::SYS_splice, "0x4 0x0 0x5"), &classes, |fd| fd == 5));
        assert!(harmless(&text(libc::SYS_openat, "0xffffff9c 0x7f 0x0"), &classes, file));
        assert!(!harmless(&text(libc::SYS_openat, "0xffffff9c 0x7f 0x41"), &classes, file));
        assert!(!harmless(&text(libc::SYS_renameat2, "0x1 0x2"), &classes, pipe));
    }
}
