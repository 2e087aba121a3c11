//! Content: from the live upperdir into the shadow's data files.
//!
//! ```text
//!   shadow (one thread)                     copiers (one per core)
//!   open, statx, xattrs, probe  -- Job -->  [sync] -> clone | in the kernel | ring
//!   index <- commit             <- Done --
//! ```
//!
//! A job owns its source descriptor, so a copier never resolves a name in the container's tree. A file is read up to the size its
//! statx gave and never further: one that grows without end holds nobody, it is dirty again. For the same reason a short read
//! is not an error: the file was cut meanwhile, which is an event of its own.
//!
//! What can be cloned is cloned. What is in the page cache, and all that is short, the kernel copies from there (`copy_file_range`): a ninth less
//! processor time than by way of our memory. Only long extents that come from the disk go through the ring, up to [`BUFFERS`] reads in
//! flight; the writes land in the page cache from the same registered buffers by plain `pwrite`. They are not sent through the ring,
//! because ext4 refuses non-blocking buffered writes (`ext4_buffered_write_iter`, fs/ext4/file.c), so that each would be handed
//! to a kernel worker.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::clone;
use crate::kernel::beneath::{Stat, Xattrs};
use crate::kernel::uring::{Completion, Ring};
use crate::kernel::{holes, writeback};
use crate::model::dirty::Ino;

/// Bytes of one buffer.
const BUFFER: usize = 256 << 10;
/// Buffers of each copier's ring.
const BUFFERS: u16 = 32;
/// Shorter extents are not worth the ring; read-ahead serves them well enough when they are cold.
const STREAM_FROM: u64 = 4 << 20;
/// Jobs that wait for a copier; each holds a descriptor.
const QUEUE: usize = 256;

/// The name of a data file.
pub(super) fn data_name(ino: Ino, serial: u64) -> String {
    format!("{}-{serial}", ino.0)
}

/// What of a file is to be copied.
#[derive(Debug)]
pub(super) enum Plan {
    /// All of it, into a new data file.
    Whole,
    /// These ranges, into the data file that is there. Sorted, disjoint.
    Ranges(Vec<Range<u64>>),
}

/// One file to copy.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ino: Ino,
    pub(super) source: OwnedFd,
    pub(super) stat: Stat,
    pub(super) xattrs: Xattrs,
    pub(super) plan: Plan,
    pub(super) serial: u64,
    /// Somebody maps it: clean its pages before they are read (T4).
    pub(super) sync: bool,
    /// See `Known::young`.
    pub(super) young: bool,
    /// See `Known::steady`.
    pub(super) steady: bool,
}

/// Where copying failed.
#[derive(Debug)]
pub(super) enum Fault {
    Upper(&'static str, io::Error),
    Shadow(&'static str, io::Error),
}

/// A finished job.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    /// Bytes copied, bytes cloned.
    pub(super) result: Result<(u64, u64), Fault>,
}

/// The copying threads. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Copier {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    moved: Arc<AtomicU64>,
}

impl Copier {
    pub(super) fn start(data: &Arc<OwnedFd>, clones: bool, threads: usize) -> io::Result<Copier> {
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(QUEUE);
        let (finished, done) = crossbeam_channel::unbounded();
        let moved = Arc::new(AtomicU64::new(0));
        let threads = (0..threads.max(1))
            .map(|n| {
                let (queue, finished, data) = (queue.clone(), finished.clone(), Arc::clone(data));
                let mut engine =
                    Engine { data, clones, buffer: Vec::new(), ring: None, moved: Arc::clone(&moved) };
                std::thread::Builder::new().name(format!("copier-{n}")).spawn(move || {
                    for job in queue {
                        let result = engine.run(&job);
                        if finished.send(Done { job, result }).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Copier { jobs: Some(jobs), done, threads, moved })
    }

    /// Hands a job over; false when the threads are gone.
    pub(super) fn push(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// The finished jobs.
    pub(super) fn done(&self) -> &Receiver<Done> {
        &self.done
    }

    /// Bytes moved since this was last asked.
    pub(super) fn moved(&self) -> u64 {
        self.moved.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        // Closing the queue ends the threads; they are waited for, so that none writes into a shadow that is being removed.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// What one copier works with.
struct Engine {
    data: Arc<OwnedFd>,
    clones: bool,
    buffer: Vec<u8>,
    /// Made for the first large file. The outer `None`: not tried yet; the inner: the kernel has io_uring disabled.
    ring: Option<Option<Ring>>,
    moved: Arc<AtomicU64>,
}

type Copied<T> = Result<T, Fault>;

fn upper<T>(op: &'static str, result: Result<T, impl Into<io::Error>>) -> Copied<T> {
    result.map_err(|e| Fault::Upper(op, e.into()))
}

fn shadow<T>(op: &'static str, result: Result<T, impl Into<io::Error>>) -> Copied<T> {
    result.map_err(|e| Fault::Shadow(op, e.into()))
}

impl Engine {
    fn run(&mut self, job: &Job) -> Copied<(u64, u64)> {
        let name = data_name(job.ino, job.serial);
        let source = job.source.as_fd();
        let size = job.stat.size;
        match &job.plan {
            Plan::Whole => {
                if job.sync {
                    upper("write back", writeback::sync_range(source, 0..size))?;
                }
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let target = rustix::fs::openat(&*self.data, &name, flags, Mode::RUSR | Mode::WUSR);
                let target = shadow("create", target)?;
                self.whole(job, source, target.as_fd())
            }
            Plan::Ranges(ranges) => {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let target = shadow("open", rustix::fs::openat(&*self.data, &name, flags, Mode::empty()))?;
                // First the size: what lay behind it is gone for good, and what comes back behind it later is zeros.
                shadow("truncate", rustix::fs::ftruncate(&target, size))?;
                let mut bytes = 0;
                for range in ranges {
                    let range = range.start..range.end.min(size);
                    if range.is_empty() {
                        continue;
                    }
                    if job.sync {
                        upper("write back", writeback::sync_range(source, range.clone()))?;
                    }
                    bytes += self.range(source, target.as_fd(), range, true)?;
                }
                Ok((bytes, 0))
            }
        }
    }

    fn whole(&mut self, job: &Job, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Copied<(u64, u64)> {
        let size = job.stat.size;
        if self.clones && size >= clone::CLONE_FROM && job.stat.blocks > 0 {
            match rustix::fs::ioctl_ficlone(target, source) {
                Ok(()) => {
                    // It may have grown, or been cut, since its statx. Not without need: XFS reads the last block of a file that is set to the size
                    // it has, and so copies what was just cloned (`xfs_setattr_size`, fs/xfs/xfs_iops.c).
                    let stat = shadow("look at", rustix::fs::fstat(target))?;
                    if u64::try_from(stat.st_size) != Ok(size) {
                        shadow("truncate", rustix::fs::ftruncate(target, size))?;
                    }
                    self.moved.fetch_add(size, Ordering::Relaxed);
                    return Ok((0, size));
                }
                // A single file may be refused (a swap file, another block size): that one is copied.
                Err(e) if clone::unsupported(e) || e == Errno::TXTBSY => {}
                Err(e) => return shadow("clone into", Err(e)),
            }
        }
        let dense = job.stat.blocks * 512 >= size;
        let bytes = if dense && size < STREAM_FROM {
            self.piece(source, target, 0..size)?
        } else {
            self.range(source, target, 0..size, false)?
        };
        if bytes < size {
            // Holes, or it was cut meanwhile.
            shadow("truncate", rustix::fs::ftruncate(target, size))?;
        }
        Ok((bytes, 0))
    }

    /// Copies the data of a range; where the source has a hole the target gets one too if it is not new (`punch`).
    fn range(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        range: Range<u64>,
        punch: bool,
    ) -> Copied<u64> {
        if holes::hidden(source) {
            upper("write back", writeback::sync_range(source, range.clone()))?;
        }
        let mut at = range.start;
        let mut bytes = 0;
        while at < range.end {
            let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
                Ok(data) => data.min(range.end),
                // No data from here to the end of the file.
                Err(Errno::NXIO) => range.end,
                // A file system without holes says it cannot seek for them: everything is data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(e) => return upper("seek in", Err(e)),
            };
            if data > at && punch {
                self.punch(target, at..data)?;
            }
            if data >= range.end {
                break;
            }
            let hole = match rustix::fs::seek(source, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data => hole.min(range.end),
                // Cut meanwhile, or no holes here.
                Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => range.end,
                Err(e) => return upper("seek in", Err(e)),
            };
            bytes += if hole - data < STREAM_FROM || cached(source, data) && cached(source, hole - 1) {
                self.piece(source, target, data..hole)?
            } else {
                self.stream(source, target, data..hole)?
            };
            at = hole;
        }
        Ok(bytes)
    }

    fn punch(&mut self, target: BorrowedFd<'_>, range: Range<u64>) -> Copied<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(target, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; BUFFER];
                let mut at = range.start;
                while at < range.end {
                    let len = (range.end - at).min(BUFFER as u64);
                    write_all(target, &zeros[..usize::try_from(len).unwrap_or(BUFFER)], at)?;
                    at += len;
                }
                Ok(())
            }
            Err(e) => shadow("punch a hole in", Err(e)),
        }
    }

    /// Copies a short extent: for so few bytes the ring would cost more than it saves.
    fn piece(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, range: Range<u64>) -> Copied<u64> {
        let mut at = range.start;
        // Where files can be cloned, the kernel would try that first, and write back what it clones.
        while !self.clones && at < range.end {
            // Not all at once: somebody watches how far it is.
            let len = usize::try_from((range.end - at).min(STREAM_FROM)).unwrap_or(BUFFER);
            match rustix::fs::copy_file_range(source, Some(&mut { at }), target, Some(&mut { at }), len) {
                Ok(0) => break,
                Ok(copied) => {
                    at += copied as u64;
                    self.moved.fetch_add(copied as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                // Between these two files it cannot; or something is wrong, and the other way tells with which of them.
                Err(_) => break,
            }
        }
        if self.buffer.is_empty() && at < range.end {
            self.buffer.resize(BUFFER, 0);
        }
        while at < range.end {
            let len = usize::try_from(range.end - at).map_or(BUFFER, |len| len.min(BUFFER));
            let read = match rustix::io::pread(source, &mut self.buffer[..len], at) {
                Ok(0) => break,
                Ok(read) => read,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(e) => return upper("read", Err(e)),
            };
            write_all(target, &self.buffer[..read], at)?;
            at += read as u64;
            self.moved.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(at - range.start)
    }

    /// Copies a long range with many reads in flight.
    fn stream(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, range: Range<u64>) -> Copied<u64> {
        // A kernel with io_uring disabled is no reason not to copy.
        let Some(ring) = self.ring.get_or_insert_with(|| Ring::new(BUFFERS, BUFFER).ok()) else {
            return self.piece(source, target, range);
        };
        let registered = ring.register_file(source).ok();
        let mut next = range.start;
        let mut bytes = 0;
        let mut failed = None;
        loop {
            while next < range.end && failed.is_none() {
                let Some(buf) = ring.take() else { break };
                let len = usize::try_from(range.end - next).map_or(BUFFER, |len| len.min(BUFFER));
                let read = match &registered {
                    Some(file) => ring.read_registered(file, next, buf, len, next),
                    None => ring.read(source, next, buf, 0, len, next),
                };
                if let Err(e) = read {
                    failed = Some(Fault::Upper("read", e));
                    break;
                }
                next += len as u64;
            }
            if ring.in_flight() == 0 {
                break;
            }
            if let Err(e) = ring.wait() {
                // Requests may still be running on `source`: the ring is dropped, which waits for them.
                self.ring = None;
                return upper("read", Err(e));
            }
            while let Some(Completion { user: at, buf, result }) = ring.completed() {
                let end = (at + BUFFER as u64).min(range.end);
                match result {
                    _ if failed.is_some() => ring.release(buf),
                    // Cut meanwhile: zeros, and dirty again.
                    Ok(0) => ring.release(buf),
                    Ok(read) => {
                        let read = read as usize;
                        match write_all(target, &ring.bytes(&buf)[..read], at) {
                            Ok(()) => {
                                bytes += read as u64;
                                self.moved.fetch_add(read as u64, Ordering::Relaxed);
                                ring.release(buf);
                            }
                            Err(fault) => {
                                failed = Some(fault);
                                ring.release(buf);
                                continue;
                            }
                        }
                        // The rest of a short read; at the end of a file that was cut it gives 0.
                        let rest = at + read as u64;
                        if rest < end {
                            match finish(source, target, rest..end) {
                                Ok(more) => bytes += more,
                                Err(fault) => failed = Some(fault),
                            }
                        }
                    }
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                        ring.release(buf);
                        match finish(source, target, at..end) {
                            Ok(more) => bytes += more,
                            Err(fault) => failed = Some(fault),
                        }
                    }
                    Err(e) => {
                        ring.release(buf);
                        failed = Some(Fault::Upper("read", e));
                    }
                }
            }
        }
        if let Some(file) = registered {
            ring.forget_file(file);
        }
        failed.map_or(Ok(bytes), Err)
    }
}

/// Whether the byte at this place can be read without waiting for the disk: so it is for most of what a container has just worked on.
fn cached(source: BorrowedFd<'_>, at: u64) -> bool {
    let mut byte = [0];
    let to = &mut [io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(source, to, at, ReadWriteFlags::NOWAIT).is_ok()
}

/// What a read of the ring left over, copied in small steps.
fn finish(source: BorrowedFd<'_>, target: BorrowedFd<'_>, range: Range<u64>) -> Copied<u64> {
    let mut buffer = [0; 16 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).map_or(buffer.len(), |len| len.min(buffer.len()));
        match rustix::io::pread(source, &mut buffer[..len], at) {
            Ok(0) => break,
            Ok(read) => {
                write_all(target, &buffer[..read], at)?;
                at += read as u64;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => return upper("read", Err(e)),
        }
    }
    Ok(at - range.start)
}

/// Writes all of it.
pub(super) fn write_all(target: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Copied<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(target, bytes, at) {
            Ok(0) => return shadow("write", Err(io::Error::from(io::ErrorKind::WriteZero))),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return shadow("write", Err(e)),
        }
    }
    Ok(())
}
