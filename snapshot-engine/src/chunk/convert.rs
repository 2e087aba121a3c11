//! A layer's files to one blob, on all cores.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use crate::kernel::beneath::Dir;
use crate::kernel::descent::Places;
use crate::model::chunk::{BlobIndex, ChunkRef, Format};

use super::ChunkError;
use super::blob::{BlobFile, Known, OpenBlob, Placer};
use super::plan::{BATCH_CHUNKS, Plan, SMALL, large_buffers};
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
    /// The batch whose turn it is.
    turn: AtomicU64,
    /// Who waits for batch `n` sleeps at the `n`th of these, counted round, so that a turn wakes nobody else.
    beds: [(Mutex<()>, Condvar); BEDS],
    pub(super) ordered: Mutex<Ordered>,
    pub(super) known: RwLock<Known>,
    failure: Mutex<Option<ChunkError>>,
    failed: AtomicBool,
}

/// As many batches as may be ahead of the turn meet at different beds; if more do, some are woken for nothing.
const BEDS: usize = 16;

/// What only the worker whose turn it is touches.
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

    /// Whether every batch before this one has been placed.
    pub(super) fn is_turn(&self, batch: u64) -> bool {
        self.turn.load(Ordering::Acquire) == batch && !self.failed.load(Ordering::Acquire)
    }

    fn bed(&self, batch: u64) -> &(Mutex<()>, Condvar) {
        &self.beds[(batch % BEDS as u64) as usize]
    }

    /// Waits until every batch before `batch` has been placed; `false` if one of them failed.
    pub(super) fn wait_turn(&self, batch: u64) -> bool {
        let (bed, woken) = self.bed(batch);
        let waits =
            |_: &mut ()| self.turn.load(Ordering::Acquire) != batch && !self.failed.load(Ordering::Acquire);
        let _guard = woken.wait_while(lock(bed), waits).unwrap_or_else(PoisonError::into_inner);
        self.is_turn(batch)
    }

    pub(super) fn pass_turn(&self) {
        let next = self.turn.load(Ordering::Relaxed) + 1;
        self.turn.store(next, Ordering::Release);
        let (bed, woken) = self.bed(next);
        // Whoever has looked before the store holds the lock until he sleeps; whoever looks later sees it.
        drop(lock(bed));
        woken.notify_all();
    }

    /// Stops all workers; the first reason is kept.
    pub(super) fn fail(&self, error: ChunkError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
        for (bed, woken) in &self.beds {
            // As in `pass_turn`.
            drop(lock(bed));
            woken.notify_all();
        }
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
        turn: AtomicU64::new(0),
        beds: Default::default(),
        ordered: Mutex::new(Ordered {
            placer: Placer::new(job.format, job.own),
            contents: vec![Vec::new(); job.files.len()],
        }),
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
    let blob = placer.close(shared.file);
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
