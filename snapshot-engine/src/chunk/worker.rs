//! One worker: batches from reading to writing.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::SeekFrom;

use crate::kernel::descent::Opener;
use crate::kernel::uring::{Buf, Ring};
use crate::kernel::{holes, writeback};
use crate::model::chunk::{ChunkDigest, ChunkRef};

use super::ChunkError;
use super::codec::{Encoder, digest};
use super::convert::{Shared, lock};
use super::plan::{BATCH_CHUNKS, SMALL, Unit, large_buffers};

/// Where a chunk's raw bytes are.
enum Raw {
    Small(Buf),
    Large(Buf),
    /// In a hole: zeros, never read.
    Hole,
}

/// A chunk on its way.
struct Piece {
    unit: Unit,
    raw: Raw,
    digest: ChunkDigest,
    /// Its compressed form in the batch's scratch; `None` when it is stored raw, or known already.
    packed: Option<std::ops::Range<usize>>,
}

/// A batch that waits for its turn.
struct Ready {
    number: u64,
    pieces: Vec<Piece>,
    scratch: Vec<u8>,
}

/// Batches a worker holds: while one waits for its turn the next is made ready, so that a worker sleeps only when it is this far ahead. More would not fit into
/// its core's cache.
pub(super) const HELD: usize = 2;

struct Worker<'a, 'b> {
    shared: &'a Shared<'b>,
    small: Ring,
    large: Ring,
    encoder: Encoder,
    zeros: Vec<u8>,
    /// Digests of runs of zeros: a sparse file has many chunks and two lengths.
    zero_digests: HashMap<usize, ChunkDigest>,
    opener: Opener<'a>,
    /// Memory of batches that are done, for others.
    scratch: Vec<Vec<u8>>,
}

pub(super) fn run(shared: &Shared<'_>) -> Result<(), ChunkError> {
    let format = shared.job.format;
    let chunk = format.chunk_size.bytes() as usize;
    let mut worker = Worker {
        shared,
        small: Ring::new((HELD * BATCH_CHUNKS) as u16, SMALL).map_err(ChunkError::Ring)?,
        large: Ring::new((HELD * large_buffers(format.chunk_size)) as u16, chunk)
            .map_err(ChunkError::Ring)?,
        encoder: Encoder::new(format.compressor).map_err(ChunkError::Compress)?,
        zeros: Vec::new(),
        zero_digests: HashMap::new(),
        opener: Opener::new(shared.job.root),
        scratch: Vec::new(),
    };
    let mut units = Vec::with_capacity(BATCH_CHUNKS);
    let mut held: VecDeque<Ready> = VecDeque::with_capacity(HELD);
    loop {
        if let Some(first) = held.front()
            && shared.is_turn(first.number)
            && let Some(first) = held.pop_front()
        {
            worker.place_and_write(first)?;
        } else if held.len() < HELD
            && let Some(number) = shared.claim(&mut units)
        {
            held.push_back(worker.make_ready(number, &units)?);
        } else if let Some(first) = held.front() {
            if !shared.wait_turn(first.number) {
                return Ok(());
            }
        } else {
            return Ok(());
        }
    }
}

impl Worker<'_, '_> {
    /// All of a batch that can be done out of turn.
    fn make_ready(&mut self, number: u64, units: &[Unit]) -> Result<Ready, ChunkError> {
        let mut scratch = self.scratch.pop().unwrap_or_default();
        let mut pieces = self.read(units)?;
        self.prepare(&mut pieces, &mut scratch)?;
        Ok(Ready { number, pieces, scratch })
    }

    /// Opens the files of a batch and reads them, all requests in flight at once.
    fn read(&mut self, units: &[Unit]) -> Result<Vec<Piece>, ChunkError> {
        let mut fds: Vec<(usize, OwnedFd)> = Vec::with_capacity(units.len());
        let mut holes = Holes::default();
        let mut pieces: Vec<Option<Raw>> = Vec::with_capacity(units.len());
        for (i, unit) in units.iter().enumerate() {
            if fds.last().is_none_or(|(file, _)| *file != unit.file) {
                let fd = self.open(unit.file)?;
                holes = Holes::default();
                fds.push((unit.file, fd));
            }
            let Some((_, fd)) = fds.last() else { return Err(ChunkError::Worker) };
            let failed = |source| ChunkError::Read { path: self.shared.path(unit.file), source };
            if self.shared.job.files[unit.file].sparse && holes.covers(fd, unit).map_err(failed)? {
                pieces.push(Some(Raw::Hole));
                continue;
            }
            let ring = if unit.len > SMALL { &mut self.large } else { &mut self.small };
            let buf = ring.take().ok_or(ChunkError::Worker)?;
            ring.read(fd.as_fd(), unit.offset, buf, 0, unit.len, i as u64)
                .map_err(|source| ChunkError::Read { path: self.shared.path(unit.file), source })?;
            pieces.push(None);
        }
        self.large.submit().map_err(ChunkError::Ring)?;
        self.small.submit().map_err(ChunkError::Ring)?;
        reap(self.shared, &mut self.small, units, &fds, &mut pieces, Raw::Small)?;
        reap(self.shared, &mut self.large, units, &fds, &mut pieces, Raw::Large)?;
        let none = ChunkDigest([0; 32]);
        units
            .iter()
            .zip(pieces)
            .map(|(unit, raw)| {
                let raw = raw.ok_or(ChunkError::Worker)?;
                Ok(Piece { unit: *unit, raw, digest: none, packed: None })
            })
            .collect()
    }

    /// Opens a file and makes sure that it is the one the walk saw.
    fn open(&mut self, file: usize) -> Result<OwnedFd, ChunkError> {
        let source = &self.shared.job.files[file];
        let failed = |source| ChunkError::Read { path: self.shared.path(file), source };
        let way = self.opener.way(self.shared.job.dirs, source.dir);
        let dir = self.opener.open(way).map_err(failed)?;
        let (fd, stat) = dir.open_file(&source.name).map_err(failed)?;
        let changed = |what| Err(ChunkError::Changed { path: self.shared.path(file), what });
        if stat.ino != source.ino {
            return changed("it is another file");
        }
        if stat.size != source.size {
            return changed("its size");
        }
        Ok(fd)
    }

    /// Digests and compresses.
    fn prepare(&mut self, pieces: &mut [Piece], scratch: &mut Vec<u8>) -> Result<(), ChunkError> {
        let digester = self.shared.job.format.digester;
        scratch.clear();
        for piece in pieces {
            let len = piece.unit.len;
            if matches!(piece.raw, Raw::Hole) && self.zeros.is_empty() {
                self.zeros.resize(self.shared.job.format.chunk_size.bytes() as usize, 0);
            }
            let data = match &piece.raw {
                Raw::Small(buf) => &self.small.bytes(buf)[..len],
                Raw::Large(buf) => &self.large.bytes(buf)[..len],
                Raw::Hole => &self.zeros[..len],
            };
            piece.digest = match &piece.raw {
                Raw::Hole => {
                    // A batch of hostile sparse files may have any number of lengths.
                    if self.zero_digests.len() > 1024 {
                        self.zero_digests.clear();
                    }
                    *self.zero_digests.entry(len).or_insert_with(|| digest(digester, data))
                }
                _ => digest(digester, data),
            };
            // What is in the blob already need not be compressed. Only chunks of earlier turns are known, so this
            // saves work and decides nothing.
            let known = self.shared.known.read().unwrap_or_else(PoisonError::into_inner);
            if known.contains_key(&(piece.digest, len as u32)) {
                continue;
            }
            drop(known);
            let start = scratch.len();
            if self.encoder.encode(data, scratch).map_err(ChunkError::Compress)? {
                piece.packed = Some(start..scratch.len());
            }
        }
        Ok(())
    }

    /// In turn: decides which chunks are new and where they go; then, out of turn, writes them.
    fn place_and_write(&mut self, batch: Ready) -> Result<(), ChunkError> {
        self.place(&batch)?;
        for piece in batch.pieces {
            match piece.raw {
                Raw::Small(buf) => self.small.release(buf),
                Raw::Large(buf) => self.large.release(buf),
                Raw::Hole => {}
            }
        }
        self.scratch.push(batch.scratch);
        Ok(())
    }

    fn place(&self, Ready { pieces, scratch, .. }: &Ready) -> Result<(), ChunkError> {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(2 * pieces.len());
        let mut bytes = 0;
        let mut ordered = lock(&self.shared.ordered);
        let start = ordered.placer.offset();
        for piece in pieces {
            let len = piece.unit.len;
            bytes += len as u64;
            let key = (piece.digest, len as u32);
            let found: Option<ChunkRef> =
                self.shared.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
            let name = if let Some(name) = found {
                ordered.placer.saved += len as u64;
                name
            } else {
                let data = match (&piece.packed, &piece.raw) {
                    (Some(packed), _) => &scratch[packed.clone()],
                    (None, Raw::Small(buf)) => &self.small.bytes(buf)[..len],
                    (None, Raw::Large(buf)) => &self.large.bytes(buf)[..len],
                    (None, Raw::Hole) => &self.zeros[..len],
                };
                let (name, padding) = ordered.placer.place(piece.digest, len as u32, data)?;
                slices.push(IoSlice::new(data));
                slices.push(IoSlice::new(padding));
                self.shared.known.write().unwrap_or_else(PoisonError::into_inner).insert(key, name);
                name
            };
            let content = ordered.contents.get_mut(piece.unit.file).ok_or(ChunkError::Worker)?;
            content.push(name);
        }
        drop(ordered);
        self.shared.pass_turn();
        (self.shared.progress)(bytes);
        self.shared.file.write(&mut slices, start)
    }
}

/// Waits for a ring's reads; short ones are continued until the file turns out to be shorter than it was.
fn reap(
    shared: &Shared<'_>,
    ring: &mut Ring,
    units: &[Unit],
    fds: &[(usize, OwnedFd)],
    pieces: &mut [Option<Raw>],
    wrap: fn(Buf) -> Raw,
) -> Result<(), ChunkError> {
    let mut done: HashMap<usize, usize> = HashMap::new();
    while ring.in_flight() > 0 {
        ring.wait().map_err(ChunkError::Ring)?;
        while let Some(completion) = ring.completed() {
            let i = completion.user as usize;
            let Some(unit) = units.get(i) else { return Err(ChunkError::Worker) };
            let failed = |source| ChunkError::Read { path: shared.path(unit.file), source };
            let n = match completion.result {
                Ok(n) => n as usize,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    retry(ring, unit, fds, completion.buf, done.get(&i).copied().unwrap_or(0), i)
                        .map_err(failed)?;
                    continue;
                }
                Err(e) => return Err(failed(e)),
            };
            let have = done.get(&i).copied().unwrap_or(0) + n;
            if n == 0 {
                return Err(ChunkError::Changed { path: shared.path(unit.file), what: "it shrank" });
            }
            if have >= unit.len {
                pieces[i] = Some(wrap(completion.buf));
            } else {
                done.insert(i, have);
                retry(ring, unit, fds, completion.buf, have, i).map_err(failed)?;
            }
        }
    }
    Ok(())
}

fn retry(
    ring: &mut Ring,
    unit: &Unit,
    fds: &[(usize, OwnedFd)],
    buf: Buf,
    have: usize,
    user: usize,
) -> io::Result<()> {
    let fd = fds.iter().find(|(file, _)| *file == unit.file).ok_or(io::ErrorKind::NotFound)?;
    ring.read(fd.1.as_fd(), unit.offset + have as u64, buf, have, unit.len - have, user as u64)
}

/// Where the next data of a sparse file begins, so that a hole of many chunks costs one call.
#[derive(Default)]
struct Holes {
    data: u64,
}

impl Holes {
    fn covers(&mut self, fd: &OwnedFd, unit: &Unit) -> io::Result<bool> {
        let end = unit.offset + unit.len as u64;
        if self.data < end {
            // A lower layer may have been unpacked a moment ago; a frozen upperdir is on the disk already.
            if self.data == 0 && holes::hidden(fd.as_fd()) {
                writeback::sync_range(fd.as_fd(), unit.offset..i64::MAX as u64)?;
            }
            self.data = match rustix::fs::seek(fd, SeekFrom::Data(unit.offset)) {
                Ok(data) => data,
                // No data up to the end.
                Err(rustix::io::Errno::NXIO) => u64::MAX,
                Err(rustix::io::Errno::INVAL) => unit.offset,
                Err(e) => return Err(e.into()),
            };
        }
        Ok(self.data >= end)
    }
}
