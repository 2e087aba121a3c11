//! A layer's files to one blob, on all cores.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use sha2::Sha256;

use crate::kernel::beneath::Dir;
use crate::kernel::descent::Places;
use crate::model::chunk::{BlobIndex, ChunkRef, Format};

use super::ChunkError;
use super::blob::{BlobFile, ChunkKey, Known, OpenBlob, Placer};
use super::plan::{BATCH_CHUNKS, Plan, SMALL, large_buffers};
use super::turn::Turn;
use super::worker::{self, HELD};

/// A regular file to read, as the walk saw it.
#[derive(Debug, Clone)]
pub struct Source {
    /// Which directory it is in, a number of [`Job::dirs`].
    pub dir: usize,
    /// Its name there.
    pub name: CString,
    /// Its length.
    pub size: u64,
    /// Its inode number: what is opened must be the same.
    pub ino: u64,
    /// Whether it has fewer blocks than its size needs, so that holes are worth looking for.
    pub sparse: bool,
}

/// What to convert.
pub struct Job<'a> {
    /// The root of the tree.
    pub root: &'a Dir,
    /// Its directories.
    pub dirs: &'a Places,
    /// Files in tree order.
    pub files: &'a [Source],
    /// How to make chunks.
    pub format: Format,
    /// Chunks of other blobs that need not be stored again.
    pub known: Known,
    /// What this blob will be called in chunk references.
    pub own: BlobIndex,
    /// Where to put the blob.
    pub blob_dir: &'a Path,
    /// How many workers; 0 for one per CPU.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Converted {
    /// The blob, to be finished; `None` if every chunk was known already.
    pub blob: Option<OpenBlob>,
    /// The chunks of each file of the job.
    pub contents: Vec<Vec<ChunkRef>>,
    /// Raw bytes that were found again and not stored a second time.
    pub saved: u64,
}

/// What the workers share.
pub(super) struct Shared<'a> {
    pub(super) job: Job<'a>,
    pub(super) file: BlobFile,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
    plan: Mutex<Plan>,
    /// Who may place his batch.
    pub(super) placing: Turn,
    /// Who may hash his batch.
    pub(super) naming: Turn,
    pub(super) ordered: Mutex<Ordered>,
    /// The blob's SHA-256 so far: its name.
    pub(super) name: Mutex<Sha256>,
    pub(super) known: RwLock<Known>,
    failure: Mutex<Option<ChunkError>>,
    pub(super) failed: AtomicBool,
}

/// What only the worker that may place touches.
pub(super) struct Ordered {
    pub(super) placer: Placer,
    pub(super) contents: Vec<Vec<ChunkRef>>,
}

/// A panic elsewhere is reported by its own thread; the data behind the lock is then not used for a result.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    /// The next batch, unless all are done or one has failed.
    pub(super) fn claim(&self, units: &mut Vec<super::plan::Unit>) -> Option<u64> {
        if self.failed.load(Ordering::Acquire) { None } else { lock(&self.plan).claim(units) }
    }

    /// Whether a blob has this chunk: one that is known stays known.
    pub(super) fn is_known(&self, key: &ChunkKey) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Stops all workers; the first reason is kept.
    pub(super) fn fail(&self, error: ChunkError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
        self.placing.wake();
        self.naming.wake();
    }

    /// The path of a file for messages.
    pub(super) fn path(&self, file: usize) -> PathBuf {
        let Some(source) = self.job.files.get(file) else { return PathBuf::new() };
        self.job.dirs.path(source.dir).join(std::ffi::OsStr::from_bytes(source.name.to_bytes()))
    }
}

/// Workers to use: bounded so that all buffers together stay below 256 MiB.
fn workers(asked: usize, format: Format) -> usize {
    const MEMORY: usize = 192 << 20;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = if asked == 0 { cpus } else { asked };
    // Of each batch the buffers, large and small, and the compressed copy of what is in them.
    let batch = large_buffers(format.chunk_size) * format.chunk_size.bytes() as usize + BATCH_CHUNKS * SMALL;
    let each = 2 * HELD * batch;
    wanted.clamp(1, (MEMORY / each).max(1))
}

/// Reads, digests, compresses and writes; `progress` is told the bytes as they are placed.
///
/// # Errors
/// When a file cannot be read or has changed, or the blob cannot be written. Then nothing is left in the blob directory.
pub fn convert(mut job: Job<'_>, progress: &(dyn Fn(u64) + Sync)) -> Result<Converted, ChunkError> {
    if job.files.is_empty() {
        return Ok(Converted { blob: None, contents: Vec::new(), saved: 0 });
    }
    let workers = workers(job.workers, job.format);
    let sizes = job.files.iter().map(|f| f.size).collect();
    let shared = Shared {
        file: BlobFile::create(job.blob_dir)?,
        progress,
        plan: Mutex::new(Plan::new(sizes, job.format.chunk_size)),
        placing: Turn::default(),
        naming: Turn::default(),
        ordered: Mutex::new(Ordered {
            placer: Placer::new(job.format, job.own),
            contents: vec![Vec::new(); job.files.len()],
        }),
        name: Mutex::default(),
        known: RwLock::new(std::mem::take(&mut job.known)),
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
        job,
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                // A panicking worker must not leave the others waiting for its turn.
                let guard = OnPanic(&shared);
                if let Err(e) = worker::run(&shared) {
                    shared.fail(e);
                }
                drop(guard);
            });
        }
    });
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    let Ordered { placer, contents } = shared.ordered.into_inner().unwrap_or_else(PoisonError::into_inner);
    let saved = placer.saved;
    let name = shared.name.into_inner().unwrap_or_else(PoisonError::into_inner);
    let blob = placer.close(shared.file, name);
    Ok(Converted { blob, contents, saved })
}

struct OnPanic<'a, 'b>(&'a Shared<'b>);

impl Drop for OnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(ChunkError::Worker);
        }
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
