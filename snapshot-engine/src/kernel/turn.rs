//! Whose turn it is at a container's freezer: one engine on the machine at a time.
//!
//! Two engines that freeze one container at once would be wrong together: the first thaws in the middle of the second's window, and the second takes
//! the first's freeze for a pause by the owner. So whoever asks whether it is paused, or freezes it, holds a `flock(2)` on the cgroup's own directory
//! meanwhile. It needs no file of ours, is the same for every work directory, and is dropped by the kernel with its process. The fence needs none: every
//! engine has its own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// It is ours until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _directory: OwnedFd,
}

impl Turn {
    /// Takes the turn; `None` if another engine has it.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn attempt(cgroup: &Path) -> io::Result<Option<Turn>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(cgroup, flags, Mode::empty())?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Turn { _directory: directory })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Turn::attempt(dir.path()).unwrap();
        assert!(first.is_some() && Turn::attempt(dir.path()).unwrap().is_none());
        drop(first);
        assert!(Turn::attempt(dir.path()).unwrap().is_some());
    }
}
