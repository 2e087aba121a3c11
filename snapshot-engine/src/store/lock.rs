//! `flock(2)` on a file: held by an open file description, dropped by the kernel with its last descriptor, so never left by a killed process.
//!
//! The description can be handed to a child by giving it the descriptor: the lock is then held without a gap, by both, until both have closed it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::Error;

/// A held lock.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation))?)
}

/// Whether the path still leads to the file we have locked: it may have been removed while we waited.
fn still_there(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Lock {
    /// Waits for the lock, creating its file.
    pub(super) fn wait(path: &Path) -> Result<Lock, Error> {
        let file = open(path, true).map_err(|e| Error::io("open", path, e))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", path, e))?;
        Ok(Lock { file })
    }

    /// Takes the lock if nobody has it; `None` if somebody has, or if its file vanished meanwhile.
    pub(super) fn attempt(path: &Path, create: bool) -> Result<Option<Lock>, Error> {
        let file = match open(path, create) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", path, e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(Error::io("lock", path, e.into())),
        }
        if !still_there(&file, path).map_err(|e| Error::io("look at", path, e))? {
            return Ok(None);
        }
        Ok(Some(Lock { file }))
    }

    /// As [`attempt`](Lock::attempt), for an eighth of a second: somebody who asks for the [`holder`] has the lock for an instant.
    pub(super) fn take(path: &Path) -> Result<Lock, Error> {
        for _ in 0..25 {
            if let Some(mut lock) = Lock::attempt(path, false)? {
                lock.sign();
                return Ok(lock);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(Error::Busy { pid: signature(path) })
    }

    /// The lock as a descriptor that was handed to us, if it is one of this path's file.
    pub(super) fn inherited(descriptor: impl AsFd, path: &Path) -> io::Result<Option<Lock>> {
        let file = File::from(descriptor.as_fd().try_clone_to_owned()?);
        if !still_there(&file, path)? {
            return Ok(None);
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let mut lock = Lock { file };
                lock.sign();
                Ok(Some(lock))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes our pid into the file. Only for people: who holds the lock is the kernel's business.
    pub(super) fn sign(&mut self) {
        let text = std::process::id().to_string();
        let _ = self
            .file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(text.as_bytes()));
    }

    /// A descriptor that holds the same lock.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

fn signature(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Who holds a lock: `None` if nobody does.
pub(super) fn holder(path: &Path) -> Result<Option<Option<u32>>, Error> {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    // A shared lock: two who ask at once do not see each other.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(signature(path))),
        Err(e) => Err(Error::io("lock", path, e.into())),
    }
}
