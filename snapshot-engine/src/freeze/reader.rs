//! What the window reads, and in which order.
//!
//! Runs while writers may be held: no allocation, no lock, no log, no sleep. It writes to the [`Arena`] only and
//! reads through descriptors that were opened before ([`Hot`]); new names of a directory are opened below that
//! directory's descriptor. Every loop looks at the clock (G5).
//!
//! ```text
//!   taken slot ── has a descriptor ── file: statx, attributes, dirty blocks
//!        │                         └─ directory: statx, attributes, all entries
//!        │                                            │ entry unknown, or its slot has no descriptor: statx, all of it
//!        └─ has none: must have turned up as such an entry, or be gone from the directories that named it; else Cold
//! ```

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use snapshot_ebpf::{DIRECT, MAPPED, META, TAIL, WHOLE};

use super::arena::{Arena, END, Record, Span, TakenBits, TakenSlot, touched};
use super::gate::Abandoned;
use super::place::{PATH, in_proc, locate, reopen};
use crate::kernel::beneath::Stat;
use crate::kernel::directory::{entries, getdents};
use crate::kernel::holes;
use crate::model::dirty::Ino;
use crate::track::Live;
use crate::track::slots::{SlotIndex, Slots};

/// Nanoseconds of the monotonic clock, which is also `bpf_ktime_get_ns`. Through the vDSO: no system call.
#[inline]
#[must_use]
pub fn now() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

/// A file is read in pieces of this size, with a look at the clock between them.
const PIECE: usize = 256 << 10;
/// The largest directory record: a name of 255 bytes.
const DIRENT_MAX: usize = 280;

/// What a descriptor that was made ready is of, and so how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else, open as a location (`O_PATH`): only its metadata can change.
    Other,
}

impl Kind {
    /// By what `statx(2)` says.
    #[must_use]
    pub fn of(stat: &Stat) -> Kind {
        if stat.is_dir() {
            Kind::Directory
        } else if stat.is_file() {
            Kind::File
        } else {
            Kind::Other
        }
    }
}

/// The inodes that were made ready: an open descriptor each.
#[derive(Debug)]
pub struct Hot<'a> {
    items: Vec<(BorrowedFd<'a>, Kind)>,
    /// Slot -> 1 + index into `items`.
    by_slot: Vec<u32>,
}

impl<'a> Hot<'a> {
    /// A table of descriptors: inode, descriptor, kind.
    #[must_use]
    pub fn new(slots: Slots<'_>, ready: impl Iterator<Item = (Ino, BorrowedFd<'a>, Kind)>) -> Hot<'a> {
        let mut hot = Hot { items: Vec::new(), by_slot: touched(slots.len() as usize) };
        for (ino, fd, kind) in ready {
            if let Some(slot) = slots.find(ino.0) {
                hot.items.push((fd, kind));
                hot.by_slot[slot.0 as usize] = u32::try_from(hot.items.len()).unwrap_or(0);
            }
        }
        hot
    }

    #[inline]
    fn get(&self, slot: SlotIndex) -> Option<(BorrowedFd<'a>, Kind)> {
        self.items.get((*self.by_slot.get(slot.0 as usize)? as usize).checked_sub(1)?).copied()
    }

    /// Whether a slot's inode was made ready.
    #[must_use]
    pub fn has(&self, slot: SlotIndex) -> bool {
        self.get(slot).is_some()
    }
}

/// Takes a slot's dirt into the arena; what an earlier look in the same attempt took stays with it.
#[inline]
pub fn take(arena: &mut Arena, slots: Slots<'_>, slot: SlotIndex) -> Result<(), Abandoned> {
    if slot.0 >= slots.len() {
        return Ok(());
    }
    // Forgotten since its event: the inode had left the tree. Should it come back, it does so as a new entry of a directory.
    if slots.ino(slot).is_none() {
        let _ = slots.take_state(slot);
        return Ok(());
    }
    let index = match arena.taken[slot.0 as usize] {
        0 => {
            if !arena.dirty.push(TakenSlot::new(slot)) {
                arena.left_out = Some(slot);
                return Err(Abandoned::TooMuch);
            }
            let index = arena.dirty.len() - 1;
            arena.taken[slot.0 as usize] = u32::try_from(index + 1).unwrap_or(u32::MAX);
            index
        }
        known => known as usize - 1,
    };
    let state = slots.take_state(slot);
    let taken = &mut arena.dirty[index];
    taken.turn = arena.turn;
    taken.state |= state;
    taken.unread |= state;
    // There is room for each of them once.
    if !std::mem::replace(&mut taken.waits, true)
        && !arena.todo.push(u32::try_from(index).unwrap_or(u32::MAX))
    {
        return Err(Abandoned::TooMuch);
    }
    let (bits, dirty) = (&mut arena.bits, &mut arena.dirty[index]);
    slots.take_bits(slot, |w, taken| {
        let word = u32::try_from(w).unwrap_or(u32::MAX);
        if bits.push(TakenBits { word, bits: taken, next: dirty.bits }) {
            dirty.bits = u32::try_from(bits.len() - 1).unwrap_or(END);
        } else {
            // No room to remember the bits one by one: the whole file, then (T1).
            dirty.state |= WHOLE;
            dirty.unread |= WHOLE;
        }
    });
    Ok(())
}

/// The reader of one attempt.
pub struct Reader<'a, 'h> {
    /// Where everything goes.
    pub arena: &'a mut Arena,
    /// The watched inodes.
    pub slots: Slots<'a>,
    /// The descriptors made ready.
    pub hot: &'a Hot<'h>,
    /// The control page, for questions about descriptors.
    pub live: &'a Live,
    /// Everybody stands still: no store through a mapping either (T4).
    pub nobody_stores: bool,
    /// When to give up.
    pub deadline: u64,
    /// The gate is not up yet: only what cannot change without an event may be read ([`super::early`]).
    pub early: bool,
}

impl Reader<'_, '_> {
    /// Captures everything that was taken and not read yet.
    pub fn capture(&mut self) -> Result<(), Abandoned> {
        let mut i = 0;
        while i < self.arena.todo.len() {
            self.in_time()?;
            let index = self.arena.todo[i] as usize;
            let taken = self.arena.dirty[index];
            if let Some((fd, kind)) = self.hot.get(taken.slot) {
                self.known(fd, kind, taken)?;
                self.listed_now(index, kind);
            }
            i += 1;
        }
        // Directories found on the way; listing one may find more.
        let mut i = 0;
        while i < self.arena.opened.len() {
            // Taken out while it is listed, as the list may grow meanwhile; no allocation: the place stays.
            let Some((directory, ino)) = self.arena.opened[i].take() else {
                return Err(Abandoned::Unreadable);
            };
            let listed = self.list(directory.as_fd(), ino);
            self.arena.opened[i] = Some((directory, ino));
            listed?;
            i += 1;
        }
        // Whoever has no descriptor was not read early, so he is still among these.
        let mut waiting = self.arena.todo.iter().map(|&index| &self.arena.dirty[index as usize]);
        if waiting.any(|t| !t.through_entry && !self.hot.has(t.slot) && !self.gone(t)) {
            return Err(Abandoned::Cold);
        }
        Ok(())
    }

    /// Captures of what was taken all that can be captured before the gate is up; the rest waits on.
    pub fn capture_early(&mut self) {
        let mut waiting = 0;
        for i in 0..self.arena.todo.len() {
            let index = self.arena.todo[i];
            if self.in_time().is_err() || !self.known_early(index as usize) {
                self.arena.todo[waiting] = index;
                waiting += 1;
            }
        }
        self.arena.todo.truncate(waiting);
    }

    /// Reads a page and the metadata of some file that was made ready, and forgets them.
    pub fn rehearse(&mut self) {
        let Some((fd, kind)) = self.hot.items.iter().copied().find(|(_, kind)| *kind == Kind::File) else {
            return;
        };
        let mark = self.arena.mark();
        // What it says is of no interest.
        let _ = self.known(fd, kind, TakenSlot { unread: META, ..TakenSlot::new(SlotIndex(0)) });
        let _ = self.content(fd, 0, 4096);
        self.arena.back_to(mark);
    }

    /// Captures one inode before the gate is up. False: it has to wait, and the arena is as before.
    fn known_early(&mut self, index: usize) -> bool {
        let taken = self.arena.dirty[index];
        let Some((fd, kind)) = self.hot.get(taken.slot) else { return false };
        // T4: stores to a mapped file's dirty pages are no events. The state tells what the last event saw, the question what is so now.
        if taken.state & (MAPPED | DIRECT) != 0 || kind == Kind::File && self.ask(fd) != (false, false) {
            return false;
        }
        let mark = self.arena.mark();
        if self.known(fd, kind, taken).is_err() {
            self.arena.back_to(mark);
            return false;
        }
        self.listed_now(index, kind);
        let taken = &mut self.arena.dirty[index];
        taken.unread = 0;
        taken.read_to = taken.bits;
        taken.waits = false;
        true
    }

    fn listed_now(&mut self, index: usize, kind: Kind) {
        if kind == Kind::Directory {
            self.arena.dirty[index].listed = self.arena.turn;
        }
    }

    /// Whether an inode without a descriptor, which no listing has shown, is gone. Every directory that named it was listed since it was
    /// taken, and so was every directory that has changed since: it has no name any more. (A listing of an earlier turn did not look for it.)
    fn gone(&self, taken: &TakenSlot) -> bool {
        let listed = |slot: SlotIndex| match self.arena.taken[slot.0 as usize] {
            0 => false,
            index => self.arena.dirty[index as usize - 1].listed >= taken.turn,
        };
        taken.kin.is_some_and(|kin| kin.into_iter().flatten().all(listed))
    }

    #[inline]
    fn in_time(&self) -> Result<(), Abandoned> {
        if now() >= self.deadline { Err(Abandoned::Deadline) } else { Ok(()) }
    }

    #[inline]
    fn record(&mut self, record: Record) -> Result<(), Abandoned> {
        if self.arena.records.push(record) { Ok(()) } else { Err(Abandoned::TooMuch) }
    }

    /// An inode the shadow knows, through its descriptor.
    fn known(&mut self, fd: BorrowedFd<'_>, kind: Kind, taken: TakenSlot) -> Result<(), Abandoned> {
        if taken.unread & MAPPED != 0 && !self.nobody_stores {
            return Err(Abandoned::Mapped);
        }
        if taken.unread & DIRECT != 0 && self.ask(fd).1 {
            return Err(Abandoned::DirectIo);
        }
        let stat = self.inode(fd, c"", AtFlags::EMPTY_PATH, false)?;
        if stat.stx_nlink == 0 {
            return Ok(());
        }
        if taken.unread & META != 0 {
            if kind == Kind::Other {
                let mut path = [0; PATH];
                let path = in_proc(&mut path, fd)?;
                // Followed, as the link in /proc leads to the inode itself and, if that is a symbolic link, no further.
                self.attributes(
                    |list| rustix::fs::listxattr(path, list),
                    |name, value| rustix::fs::getxattr(path, name, value),
                )?;
            } else {
                self.attributes(
                    |list| rustix::fs::flistxattr(fd, list),
                    |name, value| rustix::fs::fgetxattr(fd, name, value),
                )?;
            }
        }
        match kind {
            Kind::Directory => return self.list(fd, stat.stx_ino),
            Kind::Other => return Ok(()),
            Kind::File => {}
        }
        let size = stat.stx_size;
        if taken.unread & WHOLE != 0 {
            return self.content(fd, 0, size);
        }
        let shift = self.slots.block_shift(taken.slot);
        let mut at = taken.bits;
        while at != taken.read_to {
            let word = self.arena.bits[at as usize];
            let mut bits = word.bits;
            while bits != 0 {
                let first = bits.trailing_zeros();
                let run = (bits >> first).trailing_ones();
                let start = (u64::from(word.word) * 64 + u64::from(first)) << shift;
                self.content(fd, start, (start + (u64::from(run) << shift)).min(size))?;
                bits &= if first + run == 64 { 0 } else { !0 << (first + run) };
            }
            at = word.next;
        }
        if taken.unread & TAIL != 0 {
            self.content(fd, self.slots.covered(taken.slot), size)?;
        }
        Ok(())
    }

    /// (mapped, direct I/O) of an open file.
    #[inline]
    fn ask(&self, fd: BorrowedFd<'_>) -> (bool, bool) {
        let (_, mapped, direct) = self.live.ask(fd);
        (mapped, direct)
    }

    fn inode(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &CStr,
        flags: AtFlags,
        fresh: bool,
    ) -> Result<Statx, Abandoned> {
        let stat = rustix::fs::statx(fd, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
            .map_err(|_| Abandoned::Unreadable)?;
        if !self.arena.stats.push(stat) {
            return Err(Abandoned::TooMuch);
        }
        let index = u32::try_from(self.arena.stats.len() - 1).unwrap_or(u32::MAX);
        self.record(Record::Inode { stat: index, fresh })?;
        Ok(stat)
    }

    fn content(&mut self, fd: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<(), Abandoned> {
        while at < end {
            self.in_time()?;
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
            let used = self.arena.used;
            let Some(room) = self.arena.bytes.get_mut(used..used + want) else {
                return Err(Abandoned::TooMuch);
            };
            let n = match rustix::io::pread(fd, room, at) {
                // Shorter than it was a moment ago: somebody we do not hold truncates it.
                Ok(0) => return Err(Abandoned::Unreadable),
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Abandoned::Unreadable),
            };
            self.arena.used += n;
            self.arena.data_bytes += n as u64;
            self.record(Record::Data { offset: at, span: Span { at: used, len: n } })?;
            at += n as u64;
        }
        Ok(())
    }

    fn attributes(
        &mut self,
        list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
        get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> Result<(), Abandoned> {
        let used = self.arena.used;
        let len = match list(&mut self.arena.bytes[used..]) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(Errno::RANGE) => return Err(Abandoned::TooMuch),
            Err(_) => return Err(Abandoned::Unreadable),
        };
        let names = Span { at: used, len };
        self.arena.used += len;
        self.record(Record::Names(names))?;
        let mut at = used;
        while at < used + len {
            let (front, back) = self.arena.bytes.split_at_mut(used + len);
            let Ok(name) = CStr::from_bytes_until_nul(&front[at..]) else {
                return Err(Abandoned::Unreadable);
            };
            at += name.count_bytes() + 1;
            let start = self.arena.used;
            let value = get(name, &mut back[start - (used + len)..]).map_err(|_| Abandoned::Unreadable)?;
            self.arena.used += value;
            self.record(Record::Value(Span { at: start, len: value }))?;
        }
        Ok(())
    }

    /// All entries of a directory; what is new among them is captured whole.
    fn list(&mut self, fd: BorrowedFd<'_>, ino: u64) -> Result<(), Abandoned> {
        self.record(Record::Directory(ino))?;
        rustix::fs::seek(fd, SeekFrom::Start(0)).map_err(|_| Abandoned::Unreadable)?;
        loop {
            self.in_time()?;
            let start = self.arena.used;
            let end = (start + PIECE).min(self.arena.bytes.len());
            if end - start < DIRENT_MAX {
                return Err(Abandoned::TooMuch);
            }
            let n = getdents(fd, &mut self.arena.bytes[start..end]).map_err(|_| Abandoned::Unreadable)?;
            // The end is recorded too: an empty directory has a listing.
            self.arena.used += n;
            self.record(Record::Listing(Span { at: start, len: n }))?;
            if n == 0 {
                break;
            }
        }
        let listed = self.listed();
        for r in listed {
            let Record::Listing(span) = self.arena.records[r] else { break };
            let mut at = span.at;
            let end = span.at + span.len;
            let mut looked = 0u32;
            while at < end {
                looked += 1;
                if looked.is_multiple_of(32) {
                    self.in_time()?;
                }
                // One at a time, by copy: the arena is written to while we go on.
                let mut record = [0u8; DIRENT_MAX];
                let bytes = &self.arena.bytes[at..end];
                let len = usize::from(u16::from_ne_bytes([bytes[16], bytes[17]]));
                if len > DIRENT_MAX || len == 0 {
                    return Err(Abandoned::Unreadable);
                }
                record[..len].copy_from_slice(&bytes[..len]);
                at += len;
                if let Some(entry) = entries(&record[..len]).next() {
                    self.arena.entries += 1;
                    self.entry(fd, entry.name, entry.ino)?;
                }
            }
        }
        Ok(())
    }

    /// The records of the listing just made.
    fn listed(&self) -> std::ops::Range<usize> {
        let end = self.arena.records.len();
        let count = self.arena.records.iter().rev().take_while(|r| matches!(r, Record::Listing(_))).count();
        end - count..end
    }

    fn entry(&mut self, directory: BorrowedFd<'_>, name: &CStr, ino: u64) -> Result<(), Abandoned> {
        if let Some(slot) = self.slots.find(ino) {
            let taken = self.arena.taken[slot.0 as usize];
            if taken == 0 || self.hot.has(slot) {
                return Ok(());
            }
            let taken = &mut self.arena.dirty[taken as usize - 1];
            if !self.early && std::mem::replace(&mut taken.through_entry, true) {
                return Ok(());
            }
        }
        // Nobody watches it: what happened to it until the gate is up would be no event.
        if self.early { Err(Abandoned::Cold) } else { self.fresh(directory, name) }
    }

    /// An inode the shadow does not know: all of it. Opened as a location first, so that what is read is what was looked at, whatever has the
    /// name by then; a device or a FIFO is never opened.
    fn fresh(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Abandoned> {
        let place = locate(directory, name)?;
        let stat = self.inode(place.as_fd(), c"", AtFlags::EMPTY_PATH, true)?;
        let mut path = [0; PATH];
        let path = in_proc(&mut path, place.as_fd())?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => {
                let fd = reopen(path, OFlags::empty())?;
                let (mapped, direct) = self.ask(fd.as_fd());
                if mapped && !self.nobody_stores {
                    return Err(Abandoned::Mapped);
                }
                if direct {
                    return Err(Abandoned::DirectIo);
                }
                self.attributes(
                    |list| rustix::fs::flistxattr(&fd, list),
                    |name, value| rustix::fs::fgetxattr(&fd, name, value),
                )?;
                // Of holes nothing is read: a new file is zeros where it has no data.
                let sparse = stat.stx_blocks.saturating_mul(512) < stat.stx_size;
                if sparse {
                    self.data(fd.as_fd(), stat.stx_size)
                } else {
                    self.content(fd.as_fd(), 0, stat.stx_size)
                }
            }
            libc::S_IFDIR => {
                let fd = reopen(path, OFlags::DIRECTORY)?;
                self.attributes(
                    |list| rustix::fs::flistxattr(&fd, list),
                    |name, value| rustix::fs::fgetxattr(&fd, name, value),
                )?;
                if self.arena.opened.push(Some((fd, stat.stx_ino))) {
                    Ok(())
                } else {
                    Err(Abandoned::TooMuch)
                }
            }
            kind => {
                if kind == libc::S_IFLNK {
                    self.link(place.as_fd())?;
                }
                // As in `known`: followed to the inode itself and no further.
                self.attributes(
                    |list| rustix::fs::listxattr(path, list),
                    |name, value| rustix::fs::getxattr(path, name, value),
                )
            }
        }
    }

    /// The parts of a sparse file that have data.
    fn data(&mut self, fd: BorrowedFd<'_>, size: u64) -> Result<(), Abandoned> {
        // Nothing can be written back in here.
        if holes::hidden(fd) {
            return self.content(fd, 0, size);
        }
        let mut at = 0;
        while at < size {
            self.in_time()?;
            let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
                Ok(start) => start.min(size),
                Err(Errno::NXIO) => break,
                // The file system cannot tell: all is data.
                Err(_) => return self.content(fd, at, size),
            };
            let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).map_or(size, |end| end.min(size));
            if end <= start {
                break;
            }
            self.content(fd, start, end)?;
            at = end;
        }
        Ok(())
    }

    fn link(&mut self, place: BorrowedFd<'_>) -> Result<(), Abandoned> {
        let used = self.arena.used;
        let room = &mut self.arena.bytes[used..];
        let room = if room.len() > 4096 { &mut room[..4096] } else { return Err(Abandoned::TooMuch) };
        let n = crate::kernel::directory::read_link(place, c"", room).map_err(|_| Abandoned::Unreadable)?;
        self.arena.used += n;
        self.record(Record::Link(Span { at: used, len: n }))
    }
}
