//! The tasks of a target.

use std::io;

use super::{Target, process};
use crate::model::pid::Pid;

/// One thread of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Task {
    /// Its process (thread group).
    pub pid: Pid,
    /// The thread.
    pub tid: Pid,
}

/// Every thread of every process that is in the target's cgroup subtrees or in its mount namespace, sorted. The container forks meanwhile:
/// the list is what was seen, not a fence.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read for another reason than that a process went away.
pub fn tasks(target: &Target) -> io::Result<Vec<Task>> {
    let mut processes = target.cgroup.processes()?;
    for pid in process::all()? {
        if process::namespace(pid, "mnt").is_ok_and(|n| n == target.mount_namespace) {
            processes.insert(pid);
        }
    }
    // Should the engine share the target's mount namespace, it is still no part of it.
    processes.remove(&Pid::own());
    let mut tasks = Vec::new();
    for pid in processes {
        match process::threads(pid) {
            Ok(threads) => tasks.extend(threads.into_iter().map(|tid| Task { pid, tid })),
            Err(e) if process::is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    tasks.sort_unstable();
    Ok(tasks)
}
