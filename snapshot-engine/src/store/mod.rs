//! The snapshots on disk.
//!
//! ```text
//! WORK_DIR/snapshot-engine/            0700, ours, no symbolic link
//!   lock                               held while a snapshot is born or removed, and while pauses.json is rewritten
//!   pauses.json                        the histogram of pauses
//!   snapshots/snapshot-<unix ns>/
//!     lock                             held (flock) by the process that works on the snapshot; its pid, for people
//!     frozen/                          the frozen upperdir
//!     record.json                      what is known of it; written to another name, fsync, rename, fsync of the directory
//!     progress                         0 to 1; advisory
//!     image/                           the bootstrap and the blobs that were made of the upperdir
//!     layout/                          the image until it is delivered, if it goes anywhere but to an OCI layout
//!     push.json                        uploads to a registry that have not ended
//!     background.log                   what the background process had to say
//!   snapshots/.trash-..                on its way out
//! ```
//!
//! The life of a snapshot directory, and what a kill at each point leaves:
//!
//! ```text
//!   mkdir -> lock -> frozen/ -> record.json: pending -> processing -> completed | failed
//!   '------ leftover ------'    '---- interrupted: resume ----'
//! ```
//!
//! * **A record is the birth.** A directory without record or frozen upperdir is no snapshot: it is never listed, and whoever opens the store for
//!   writing removes it, unless its lock is held.
//! * **A lock is the life.** `pending` or `processing` with nobody holding the lock is `interrupted`; the kernel drops the lock of a killed process.

mod claim;
mod durable;
mod error;
mod id;
mod lock;
pub mod pauses;
mod record;
mod root;
mod sweep;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use claim::{Claimed, Draft};
pub use error::Error;
pub use id::SnapshotId;
pub use record::{Failure, Record, SCHEMA_VERSION, SnapshotStatus, State, version_for};

use lock::Lock;

/// One work directory's snapshots.
#[derive(Debug, Clone)]
pub struct Store {
    work_dir: PathBuf,
    root: PathBuf,
}

impl Store {
    /// Opens the store of a work directory for writing: creates what is missing, and removes what killed engines left.
    ///
    /// # Errors
    /// When the directory cannot be made, is not ours, or others could write it.
    pub fn open(work_dir: &Path) -> Result<Store, Error> {
        let work_dir = root::absolute(work_dir)?;
        let root = root::create(&work_dir)?;
        let store = Store { work_dir, root };
        store.sweep();
        Ok(store)
    }

    /// Opens the store for reading; `None` if there is none yet. Changes nothing.
    ///
    /// # Errors
    /// When it exists and is not ours.
    pub fn open_existing(work_dir: &Path) -> Result<Option<Store>, Error> {
        let work_dir = root::absolute(work_dir)?;
        Ok(root::check_existing(&work_dir)?.map(|root| Store { work_dir, root }))
    }

    /// The work directory it was opened with, absolute.
    #[must_use]
    pub fn work_dir(&self) -> &Path {
        &self.work_dir
    }

    /// The file of the pause histogram.
    #[must_use]
    pub fn pauses_file(&self) -> PathBuf {
        self.root.join("pauses.json")
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn locked(&self) -> Result<Lock, Error> {
        Lock::wait(&self.root.join("lock"))
    }

    /// Replaces a file of the store durably, computed from what it holds now (`None`: it does not exist), with no other process between.
    ///
    /// # Errors
    /// When reading, `change` or writing fails.
    pub fn rewrite<E: From<Error>>(
        &self,
        file: &Path,
        change: impl FnOnce(Option<Vec<u8>>) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let _lock = self.locked()?;
        let old = match fs::read(file) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("read", file, e).into()),
        };
        let new = change(old)?;
        Ok(durable::write(file, &new)?)
    }

    /// Begins a snapshot: a new directory whose lock we hold. Two that begin in the same nanosecond get different ids: `mkdir` decides.
    ///
    /// # Errors
    /// When the directory or its lock cannot be made.
    pub fn begin(&self) -> Result<Draft, Error> {
        let _lock = self.locked()?;
        let mut id = SnapshotId::now();
        loop {
            let path = self.snapshots().join(id.to_string());
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Draft::new(self.clone(), id, path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => id = id.next(),
                Err(e) => return Err(Error::io("create", &path, e)),
            }
        }
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read. A record that cannot be read is logged and left out.
    pub fn list(&self) -> Result<Vec<SnapshotStatus>, Error> {
        let mut all = Vec::new();
        for id in self.ids()? {
            match self.status(id) {
                Ok(status) => all.push(status),
                Err(Error::Unknown { .. }) => {}
                Err(e) => tracing::warn!("{id} is left out: {e}"),
            }
        }
        Ok(all)
    }

    /// How far a snapshot is.
    ///
    /// # Errors
    /// [`Error::Unknown`] also for a leftover.
    pub fn status(&self, id: SnapshotId) -> Result<SnapshotStatus, Error> {
        let path = self.path(id);
        // The lock before the record: a process that ends between the two reads has written its last state by then.
        let holder = lock::holder(&path.join("lock"))?;
        let record = self.record(id)?;
        Ok(record::status(record, &path, holder))
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`Error::Unknown`] also for a leftover; [`Error::Record`] for one that cannot be understood.
    pub fn record(&self, id: SnapshotId) -> Result<Record, Error> {
        let path = self.path(id);
        match record::read(&path.join("record.json"))? {
            Some(record) if record.is_whole(&path) => Ok(record),
            _ => Err(Error::Unknown { given: id.to_string() }),
        }
    }

    /// Finds a snapshot by its id or an unambiguous beginning of it, with or without `snapshot-`.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Ambiguous`].
    pub fn find(&self, given: &str) -> Result<SnapshotId, Error> {
        let digits = given.strip_prefix("snapshot-").unwrap_or(given);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Error::Unknown { given: given.to_owned() });
        }
        let mut matching = Vec::new();
        for id in self.ids()? {
            let known = id.as_u64().to_string();
            if known == digits {
                return Ok(id);
            }
            if known.starts_with(digits) && !matches!(self.record(id), Err(Error::Unknown { .. })) {
                matching.push(id);
            }
        }
        match matching[..] {
            [] => Err(Error::Unknown { given: given.to_owned() }),
            [id] => Ok(id),
            _ => Err(Error::Ambiguous { given: given.to_owned(), count: matching.len() }),
        }
    }

    /// Takes a snapshot to work on it.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process does.
    pub fn claim(&self, id: SnapshotId) -> Result<Claimed, Error> {
        Claimed::new(self.clone(), id, self.path(id))
    }

    /// Takes over the lock this process was started with on descriptor 0 (see `pipeline::background`); if that is not the snapshot's lock, as
    /// [`claim`](Store::claim).
    ///
    /// # Errors
    /// As [`claim`](Store::claim).
    pub fn adopt(&self, id: SnapshotId) -> Result<Claimed, Error> {
        Claimed::adopt(self.clone(), id, self.path(id))
    }

    /// Removes a snapshot with its frozen upperdir. The image stays.
    ///
    /// # Errors
    /// [`Error::Busy`] while a process works on it.
    pub fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        let claimed = self.claim(id)?;
        let path = self.path(id);
        self.discard(&path)?;
        drop(claimed);
        Ok(())
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    fn ids(&self) -> Result<Vec<SnapshotId>, Error> {
        let dir = self.snapshots();
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("read", &dir, e))?;
            ids.extend(entry.file_name().to_str().and_then(|name| name.parse::<SnapshotId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

#[cfg(test)]
pub(crate) mod tests;
