//! One worker: batches from reading to writing.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::SeekFrom;
use sha2::Digest as _;

use crate::kernel::descent::Opener;
use crate::kernel::uring::{Buf, Ring};
use crate::kernel::{holes, writeback};
use crate::model::chunk::ChunkDigest;

use super::ChunkError;
use super::codec::{Encoder, Scratch, digest};
use super::convert::{Shared, lock};
use super::plan::{BATCH_CHUNKS, SMALL, Unit, large_buffers};

/// Where a chunk's bytes are, as they are to be stored. A buffer is given back as soon as they are not needed, so that the next batch finds it in the core's cache.
enum Data {
    Small(Buf),
    Large(Buf),
    /// In a hole: zeros, never read.
    Hole,
    /// Compressed, in the batch's scratch.
    Packed(Range<usize>),
    /// Nowhere: a blob has them already.
    Known,
}

/// A chunk on its way.
struct Piece {
    unit: Unit,
    data: Data,
    digest: ChunkDigest,
    /// What follows it in the blob; `None` while it has no place there, or when it needs none.
    padding: Option<&'static [u8]>,
}

/// A batch that is read and compressed.
struct Batch {
    number: u64,
    pieces: Vec<Piece>,
    scratch: Scratch,
    /// Its chunks have their places in the blob, and are written.
    placed: bool,
}

/// Batches a worker holds: while they wait for their turns the next is made ready, so that a worker sleeps only when it is this far ahead. More would not fit into
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
    scratch: Vec<Scratch>,
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
    let mut held: VecDeque<Batch> = VecDeque::with_capacity(HELD);
    loop {
        // Hashing comes first: all else can be done by any number of workers, this by one, so that nothing is faster.
        if let Some(first) = held.front()
            && first.placed
            && shared.naming.is(first.number)
        {
            worker.hash(first);
            held.pop_front().into_iter().for_each(|done| worker.release(done));
        } else if let Some(batch) = held.iter_mut().find(|batch| !batch.placed)
            && shared.placing.is(batch.number)
        {
            let start = worker.place(batch)?;
            worker.write(batch, start)?;
        } else if held.len() < HELD
            && let Some(number) = shared.claim(&mut units)
        {
            held.push_back(worker.make_ready(number, &units)?);
        } else if let Some(first) = held.front() {
            // The first of all batches that are not done has both turns, so its worker never waits.
            let turn = if first.placed { &shared.naming } else { &shared.placing };
            if !turn.wait(first.number, &shared.failed) {
                return Ok(());
            }
        } else {
            return Ok(());
        }
    }
}

impl Worker<'_, '_> {
    /// All of a batch that can be done out of turn.
    fn make_ready(&mut self, number: u64, units: &[Unit]) -> Result<Batch, ChunkError> {
        let mut scratch = self.scratch.pop().unwrap_or_default();
        scratch.clear();
        let mut pieces = self.read(units)?;
        self.prepare(&mut pieces, &mut scratch)?;
        Ok(Batch { number, pieces, scratch, placed: false })
    }

    /// Opens the files of a batch and reads them, all requests in flight at once.
    fn read(&mut self, units: &[Unit]) -> Result<Vec<Piece>, ChunkError> {
        let mut fds: Vec<(usize, OwnedFd)> = Vec::with_capacity(units.len());
        let mut holes = Holes::default();
        let mut pieces: Vec<Option<Data>> = Vec::with_capacity(units.len());
        for (i, unit) in units.iter().enumerate() {
            if fds.last().is_none_or(|(file, _)| *file != unit.file) {
                let fd = self.open(unit.file)?;
                holes = Holes::default();
                fds.push((unit.file, fd));
            }
            let Some((_, fd)) = fds.last() else { return Err(ChunkError::Worker) };
            let failed = |source| ChunkError::Read { path: self.shared.path(unit.file), source };
            if self.shared.job.files[unit.file].sparse && holes.covers(fd, unit).map_err(failed)? {
                pieces.push(Some(Data::Hole));
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
        reap(self.shared, &mut self.small, units, &fds, &mut pieces, Data::Small)?;
        reap(self.shared, &mut self.large, units, &fds, &mut pieces, Data::Large)?;
        let none = ChunkDigest([0; 32]);
        units
            .iter()
            .zip(pieces)
            .map(|(unit, data)| {
                let data = data.ok_or(ChunkError::Worker)?;
                Ok(Piece { unit: *unit, data, digest: none, padding: None })
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

    /// The bytes of a piece.
    fn bytes<'c>(&'c self, piece: &'c Piece, scratch: &'c Scratch) -> &'c [u8] {
        let len = piece.unit.len;
        match &piece.data {
            Data::Small(buf) => &self.small.bytes(buf)[..len],
            Data::Large(buf) => &self.large.bytes(buf)[..len],
            Data::Hole => &self.zeros[..len],
            Data::Packed(range) => scratch.bytes(range),
            Data::Known => &[],
        }
    }

    /// Gives back the buffer of what is not needed any more.
    fn let_go(&mut self, data: Data) {
        match data {
            Data::Small(buf) => self.small.release(buf),
            Data::Large(buf) => self.large.release(buf),
            Data::Hole | Data::Packed(_) | Data::Known => {}
        }
    }

    fn release(&mut self, batch: Batch) {
        for piece in batch.pieces {
            self.let_go(piece.data);
        }
        self.scratch.push(batch.scratch);
    }

    /// Digests and compresses.
    fn prepare(&mut self, pieces: &mut [Piece], scratch: &mut Scratch) -> Result<(), ChunkError> {
        let digester = self.shared.job.format.digester;
        for piece in pieces {
            let len = piece.unit.len;
            let data = match &piece.data {
                Data::Small(buf) => &self.small.bytes(buf)[..len],
                Data::Large(buf) => &self.large.bytes(buf)[..len],
                _ => {
                    if self.zeros.is_empty() {
                        self.zeros.resize(self.shared.job.format.chunk_size.bytes() as usize, 0);
                    }
                    &self.zeros[..len]
                }
            };
            piece.digest = match &piece.data {
                Data::Hole => {
                    // A batch of hostile sparse files may have any number of lengths.
                    if self.zero_digests.len() > 1024 {
                        self.zero_digests.clear();
                    }
                    *self.zero_digests.entry(len).or_insert_with(|| digest(digester, data))
                }
                _ => digest(digester, data),
            };
            // What is in a blob already need not be compressed, nor kept. Known chunks stay known.
            let other = if self.shared.is_known(&(piece.digest, len as u32)) {
                Data::Known
            } else if let Some(packed) = self.encoder.encode(data, scratch).map_err(ChunkError::Compress)? {
                Data::Packed(packed)
            } else {
                continue;
            };
            let raw = std::mem::replace(&mut piece.data, other);
            self.let_go(raw);
        }
        Ok(())
    }

    /// In turn: decides which chunks are new, and where they go: from the offset on that it gives.
    fn place(&self, batch: &mut Batch) -> Result<u64, ChunkError> {
        let mut ordered = lock(&self.shared.ordered);
        let start = ordered.placer.offset();
        let mut known = self.shared.known.write().unwrap_or_else(PoisonError::into_inner);
        for piece in &mut batch.pieces {
            let len = piece.unit.len as u32;
            let name = match known.entry((piece.digest, len)) {
                Entry::Occupied(found) => {
                    ordered.placer.saved += u64::from(len);
                    *found.get()
                }
                Entry::Vacant(free) => {
                    let stored = match &piece.data {
                        Data::Packed(range) => range.len() as u32,
                        Data::Small(_) | Data::Large(_) | Data::Hole => len,
                        Data::Known => return Err(ChunkError::Worker),
                    };
                    let (name, padding) = ordered.placer.place(piece.digest, len, stored)?;
                    piece.padding = Some(padding);
                    *free.insert(name)
                }
            };
            ordered.contents.get_mut(piece.unit.file).ok_or(ChunkError::Worker)?.push(name);
        }
        drop(known);
        drop(ordered);
        batch.placed = true;
        self.shared.placing.pass();
        Ok(start)
    }

    /// What of a placed batch the blob has, in its order.
    fn stored<'c>(&'c self, batch: &'c Batch) -> impl Iterator<Item = &'c [u8]> {
        batch
            .pieces
            .iter()
            .filter_map(|piece| Some([self.bytes(piece, &batch.scratch), piece.padding?]))
            .flatten()
    }

    /// Out of turn: writes what has its place.
    fn write(&self, batch: &Batch, start: u64) -> Result<(), ChunkError> {
        let mut slices: Vec<IoSlice<'_>> = self.stored(batch).map(IoSlice::new).collect();
        self.shared.file.write(&mut slices, start)
    }

    /// In turn: adds it to the blob's name.
    fn hash(&self, batch: &Batch) {
        let mut name = lock(&self.shared.name);
        for bytes in self.stored(batch) {
            name.update(bytes);
        }
        drop(name);
        self.shared.naming.pass();
        (self.shared.progress)(batch.pieces.iter().map(|piece| piece.unit.len as u64).sum());
    }
}

/// Waits for a ring's reads; short ones are continued until the file turns out to be shorter than it was.
fn reap(
    shared: &Shared<'_>,
    ring: &mut Ring,
    units: &[Unit],
    fds: &[(usize, OwnedFd)],
    pieces: &mut [Option<Data>],
    wrap: fn(Buf) -> Data,
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
