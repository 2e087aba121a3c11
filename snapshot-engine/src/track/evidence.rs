//! No call that began before the tracker was attached is still running: how we know.
//!
//! The programs count a call from its entry on, so one that was under way when they were attached is not counted: its bytes could land
//! after we have read the file, with its event before we watched it. So each task that lived at that moment must have been seen
//! outside a modifying call since:
//!
//! * it entered or left any system call (the programs note it in TASKS), or
//! * it sleeps in a call that changes nothing (`/proc/TID/syscall`), or in the opening of a FIFO, or
//! * it was sampled in user mode (it computes and makes no calls), or
//! * it is gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use snapshot_ebpf::CALL_OTHER;

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

/// Whether a task is gone, or sleeps where it changes nothing. `/proc/TID/syscall` says "running", or the call's number and arguments
/// (-1: asleep outside any call), for a task that is off its CPU (fs/proc/base.c, proc_pid_syscall).
fn asleep_or_gone(tid: u32, classes: &[u32]) -> bool {
    match std::fs::read_to_string(format!("/proc/{tid}/syscall")) {
        Ok(text) => harmless(&text, classes) || waits_for_partner(tid),
        Err(_) => !std::path::Path::new(&format!("/proc/{tid}")).exists(),
    }
}

fn harmless(text: &str, classes: &[u32]) -> bool {
    let Some(number) = text.split_whitespace().next() else { return false };
    match number.parse::<i64>() {
        Ok(-1) => true,
        Ok(n) => usize::try_from(n).ok().and_then(|n| classes.get(n)).is_some_and(|&c| c == CALL_OTHER),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_change_nothing_are_evidence() {
        let classes = calls::classes();
        assert!(harmless(&format!("{} 0x1 0x2 0x3", libc::SYS_futex), &classes));
        assert!(harmless("-1 0x7f 0x55", &classes));
        assert!(!harmless("running\n", &classes));
        assert!(!harmless(&format!("{} 0x1", libc::SYS_pwrite64), &classes));
        assert!(!harmless("", &classes));
    }
}
