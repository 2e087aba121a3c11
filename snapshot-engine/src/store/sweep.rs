//! Removing: what the user no longer wants, and what killed engines left.

use std::fs;
use std::io;
use std::path::Path;

use super::lock::Lock;
use super::{Error, SnapshotId, Store, durable, record};
use crate::kernel::removal;

impl Store {
    /// Takes a snapshot's directory out of sight with one rename, then removes it. A kill between the two leaves trash, which the next sweep removes;
    /// nothing half removed is ever listed.
    pub(super) fn discard(&self, path: &Path) -> Result<(), Error> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let trash = self.snapshots().join(format!(".trash-{}", name.to_string_lossy()));
        {
            let _lock = self.locked()?;
            fs::rename(path, &trash).map_err(|e| Error::io("remove", path, e))?;
            durable::sync_dir(&self.snapshots())?;
        }
        // Without the store's lock: a tree may be large.
        remove_tree(&trash)
    }

    /// Removes leftovers: directories without record or frozen upperdir whose lock is free, and trash. Failures are logged, for they
    /// must not keep a command from its work.
    pub(super) fn sweep(&self) {
        if let Err(e) = self.try_sweep() {
            tracing::warn!("leftovers could not be removed: {e}");
        }
    }

    fn try_sweep(&self) -> Result<(), Error> {
        let dir = self.snapshots();
        let mut trash = Vec::new();
        {
            // With the store's lock nobody is between mkdir and taking the new directory's lock.
            let _lock = self.locked()?;
            for entry in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))? {
                let entry = entry.map_err(|e| Error::io("read", &dir, e))?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                if name.starts_with(".trash-") {
                    trash.push(entry.path());
                } else if name.parse::<SnapshotId>().is_ok() && is_leftover(&entry.path())? {
                    let to = dir.join(format!(".trash-{name}"));
                    fs::rename(entry.path(), &to).map_err(|e| Error::io("remove", &to, e))?;
                    tracing::info!("{name} was left by a killed engine and is removed");
                    trash.push(to);
                }
            }
        }
        for path in trash {
            // The stages work below `work`; see `CutRequest::directory`.
            let work = path.join("work");
            match crate::kernel::held::thaw_left(&work) {
                Ok(Some(cgroup)) => {
                    tracing::warn!("{} was left frozen by a killed engine and is thawed", cgroup.display());
                }
                Ok(None) => {}
                Err(e) => return Err(Error::io("thaw what is noted in", &work, e)),
            }
            remove_tree(&path)?;
        }
        Ok(())
    }
}

fn is_leftover(path: &Path) -> Result<bool, Error> {
    let whole = || match record::read(&path.join("record.json")) {
        Ok(Some(record)) => record.is_whole(path),
        Ok(None) => false,
        // Of a newer engine, or damaged: not ours to judge.
        Err(_) => true,
    };
    // Without touching the lock of a snapshot that is well: somebody may be asking for it.
    if whole() {
        return Ok(false);
    }
    let lock = path.join("lock");
    match fs::symlink_metadata(&lock) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        // With the lock, look again: its record may just have been written.
        _ => Ok(Lock::attempt(&lock, false)?.is_some_and(|_lock| !whole())),
    }
}

/// Two sweeps may remove the same trash.
fn remove_tree(path: &Path) -> Result<(), Error> {
    removal::remove_tree(path).map_err(|e| Error::io("remove", path, e))
}
