//! A snapshot in our hands: before its birth ([`Draft`]) and after ([`Claimed`]). Both hold its lock.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::lock::Lock;
use super::{Error, Record, SnapshotId, Store, durable};

/// A snapshot that is being cut. Dropped without [`publish`](Draft::publish), its directory is removed.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    id: SnapshotId,
    path: PathBuf,
    /// `None` once published.
    lock: Option<Lock>,
}

impl Draft {
    pub(super) fn new(store: Store, id: SnapshotId, path: PathBuf) -> Result<Draft, Error> {
        match Lock::attempt(&path.join("lock"), true) {
            Ok(Some(mut lock)) => {
                lock.sign();
                Ok(Draft { store, id, path, lock: Some(lock) })
            }
            Ok(None) => Err(Error::Busy { pid: None }),
            Err(e) => {
                let _ = fs::remove_dir(&path);
                Err(e)
            }
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Its directory. The frozen upperdir must come to be at `frozen` in it; the stages may keep other things beside it while they work.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it a snapshot: from the rename of the record on, it is listed and outlives us.
    ///
    /// # Errors
    /// When the record cannot be written durably; the draft is then dropped, and with it its directory.
    pub fn publish(mut self, record: Record) -> Result<Claimed, Error> {
        save(&self.path, &record)?;
        durable::sync_dir(&self.store.snapshots())?;
        match self.lock.take() {
            Some(lock) => Ok(Claimed { store: self.store.clone(), path: self.path.clone(), lock, record }),
            None => Err(Error::Busy { pid: None }),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(e) = self.store.discard(&self.path)
        {
            tracing::warn!(
                "{} could not be removed: {e}; the next command will try again",
                self.path.display()
            );
        }
    }
}

/// A snapshot we work on. Dropping it lets go of the lock and changes nothing.
#[derive(Debug)]
pub struct Claimed {
    store: Store,
    path: PathBuf,
    lock: Lock,
    record: Record,
}

impl Claimed {
    pub(super) fn new(store: Store, id: SnapshotId, path: PathBuf) -> Result<Claimed, Error> {
        store.record(id)?;
        let lock = Lock::take(&path.join("lock"))?;
        Claimed::with_lock(store, id, path, lock)
    }

    pub(super) fn adopt(store: Store, id: SnapshotId, path: PathBuf) -> Result<Claimed, Error> {
        match Lock::inherited(io::stdin(), &path.join("lock")) {
            Ok(Some(lock)) => Claimed::with_lock(store, id, path, lock),
            _ => Claimed::new(store, id, path),
        }
    }

    fn with_lock(store: Store, id: SnapshotId, path: PathBuf, lock: Lock) -> Result<Claimed, Error> {
        // Read under the lock: nobody else writes it now.
        let record = store.record(id)?;
        Ok(Claimed { store, path, lock, record })
    }

    /// What is known of it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The store it is in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its background process writes.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.path.join("background.log")
    }

    /// Changes the record, durably.
    ///
    /// # Errors
    /// When it cannot be written; it is then as it was, here and on disk.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = self.record.clone();
        change(&mut record);
        save(&self.path, &record)?;
        self.record = record;
        Ok(())
    }

    /// Says how far we are, 0 to 1. Advisory: a failure changes nothing.
    pub fn set_progress(&self, fraction: f64) {
        if let Err(e) =
            durable::write_advisory(&self.path.join("progress"), format!("{fraction:.4}\n").as_bytes())
        {
            tracing::debug!("progress is not written: {e}");
        }
    }

    /// Removes the frozen upperdir of a completed snapshot.
    ///
    /// # Errors
    /// As `unlink(2)`; it can be called again.
    pub fn drop_frozen(&self) -> Result<(), Error> {
        let frozen = self.path.join("frozen");
        crate::kernel::removal::remove_tree(&frozen).map_err(|e| Error::io("remove", &frozen, e))
    }

    /// Removes the layout of a completed snapshot, and what was kept for its delivery.
    ///
    /// # Errors
    /// As `unlink(2)`; it can be called again.
    pub fn drop_layout(&self) -> Result<(), Error> {
        let _ = fs::remove_file(self.path.join("push.json"));
        let layout = self.path.join("layout");
        crate::kernel::removal::remove_tree(&layout).map_err(|e| Error::io("remove", &layout, e))
    }

    /// A descriptor that holds the same lock, to give to a child.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn share_lock(&self) -> Result<OwnedFd, Error> {
        self.lock.share().map_err(|e| Error::io("share", &self.path.join("lock"), e))
    }
}

fn save(directory: &Path, record: &Record) -> Result<(), Error> {
    let path = directory.join("record.json");
    let mut text =
        serde_json::to_vec_pretty(record).map_err(|source| Error::Record { path: path.clone(), source })?;
    text.push(b'\n');
    durable::write(&path, &text)
}
