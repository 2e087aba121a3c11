//! Namespaces and fork without exec, for processes that must go on as loaded where no program can be found.

use std::io;

use rustix::thread::UnshareFlags;

use crate::model::pid::Pid;

/// Who returns from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller, with its child.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks the calling process, which must have one thread only.
///
/// # Errors
/// As `fork(2)`, and when there are several threads: a lock one of them holds (malloc's, stdout's) would stay locked in the child for ever.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork without exec from a process of {threads} threads")));
    }
    // SAFETY: the calling thread is the only one (just counted, and nobody else is there to start another), so no lock and no
    // other state of this address space is half changed when it is copied; the child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(Pid(child.unsigned_abs()))),
    }
}

/// Moves the calling process into new namespaces. Of a new PID namespace only its later children are members.
///
/// # Errors
/// As `unshare(2)`.
pub fn new_namespaces(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only namespaces are unshared here, never the table of descriptors (`FILES`), whose split is what makes
    // the call unsafe for code that relies on descriptors of other threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn will_not_fork_among_threads() {
        // The test harness runs each test on a thread of its own.
        assert!(super::fork().is_err());
    }
}
