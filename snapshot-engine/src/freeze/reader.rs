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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use snapshot_ebpf::{BLOCK_SHIFT, DIRECT, MAPPED, META, TAIL, WHOLE};

use super::arena::{Arena, END, Record, Span, TakenBits, TakenSlot, touched};
use super::gate::Abandoned;
use crate::kernel::beneath::{READ, Stat};
use crate::kernel::directory::{entries, getdents};
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
    arena.dirty[index].state |= slots.take_state(slot);
    for w in 0..slots.bit_words(slot) {
        let bits = slots.take_word(slot, w);
        if bits != 0 {
            let next = arena.dirty[index].bits;
            let word = u32::try_from(w).unwrap_or(u32::MAX);
            if !arena.bits.push(TakenBits { word, bits, next }) {
                // No room to remember the bits one by one: the whole file, then (T1).
                arena.dirty[index].state |= WHOLE;
                continue;
            }
            arena.dirty[index].bits = u32::try_from(arena.bits.len() - 1).unwrap_or(END);
        }
    }
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
}

impl Reader<'_, '_> {
    /// Captures everything that was taken.
    pub fn capture(&mut self) -> Result<(), Abandoned> {
        let mut i = 0;
        while i < self.arena.dirty.len() {
            self.in_time()?;
            let taken = self.arena.dirty[i];
            if let Some((fd, kind)) = self.hot.get(taken.slot) {
                self.known(fd, kind, taken)?;
                self.arena.dirty[i].listed = kind == Kind::Directory;
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
        if self.arena.dirty.iter().any(|t| !t.through_entry && !self.hot.has(t.slot) && !self.gone(t)) {
            return Err(Abandoned::Cold);
        }
        Ok(())
    }

    /// Whether an inode without a descriptor, which no listing has shown, is gone. Every directory that named it was listed now, and so was every
    /// directory that has changed since: it has no name any more.
    fn gone(&self, taken: &TakenSlot) -> bool {
        let listed = |slot: SlotIndex| match self.arena.taken[slot.0 as usize] {
            0 => false,
            index => self.arena.dirty[index as usize - 1].listed,
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
        if taken.state & MAPPED != 0 && !self.nobody_stores {
            return Err(Abandoned::Mapped);
        }
        if taken.state & DIRECT != 0 && self.ask(fd).1 {
            return Err(Abandoned::DirectIo);
        }
        let stat = self.inode(fd, c"", AtFlags::EMPTY_PATH, false)?;
        if stat.stx_nlink == 0 {
            return Ok(());
        }
        if taken.state & META != 0 {
            if kind == Kind::Other {
                let mut path = [0; 320];
                let path = below(&mut path, fd, c"")?;
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
        if taken.state & WHOLE != 0 {
            return self.content(fd, 0, size);
        }
        let mut at = taken.bits;
        while at != END {
            let word = self.arena.bits[at as usize];
            let mut bits = word.bits;
            while bits != 0 {
                let first = bits.trailing_zeros();
                let run = (bits >> first).trailing_ones();
                let start = (u64::from(word.word) * 64 + u64::from(first)) << BLOCK_SHIFT;
                self.content(fd, start, (start + (u64::from(run) << BLOCK_SHIFT)).min(size))?;
                bits &= if first + run == 64 { 0 } else { !0 << (first + run) };
            }
            at = word.next;
        }
        if taken.state & TAIL != 0 {
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
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0)).map_err(|_| Abandoned::Unreadable)?;
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
            if std::mem::replace(&mut taken.through_entry, true) {
                return Ok(());
            }
        }
        self.fresh(directory, name)
    }

    /// An inode the shadow does not know: all of it.
    fn fresh(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Abandoned> {
        let stat = rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .map_err(|_| Abandoned::Unreadable)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => {
                let fd = open(directory, name, READ)?;
                let (mapped, direct) = self.ask(fd.as_fd());
                if mapped && !self.nobody_stores {
                    return Err(Abandoned::Mapped);
                }
                if direct {
                    return Err(Abandoned::DirectIo);
                }
                let stat = self.inode(fd.as_fd(), c"", AtFlags::EMPTY_PATH, true)?;
                self.attributes(
                    |list| rustix::fs::flistxattr(&fd, list),
                    |name, value| rustix::fs::fgetxattr(&fd, name, value),
                )?;
                self.content(fd.as_fd(), 0, stat.stx_size)
            }
            libc::S_IFDIR => {
                let fd = open(directory, name, READ | OFlags::DIRECTORY)?;
                let ino = self.inode(fd.as_fd(), c"", AtFlags::EMPTY_PATH, true)?.stx_ino;
                self.attributes(
                    |list| rustix::fs::flistxattr(&fd, list),
                    |name, value| rustix::fs::fgetxattr(&fd, name, value),
                )?;
                if self.arena.opened.push(Some((fd, ino))) { Ok(()) } else { Err(Abandoned::TooMuch) }
            }
            kind => {
                self.inode(directory, name, AtFlags::SYMLINK_NOFOLLOW, true)?;
                if kind == libc::S_IFLNK {
                    self.link(directory, name)?;
                }
                let mut path = [0; 320];
                let path = below(&mut path, directory, name)?;
                self.attributes(
                    |list| rustix::fs::llistxattr(path, list),
                    |name, value| rustix::fs::lgetxattr(path, name, value),
                )
            }
        }
    }

    fn link(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Abandoned> {
        let used = self.arena.used;
        let room = &mut self.arena.bytes[used..];
        let room = if room.len() > 4096 { &mut room[..4096] } else { return Err(Abandoned::TooMuch) };
        let n =
            crate::kernel::directory::read_link(directory, name, room).map_err(|_| Abandoned::Unreadable)?;
        self.arena.used += n;
        self.record(Record::Link(Span { at: used, len: n }))
    }
}

#[inline]
fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Abandoned> {
    // One component, not followed: it cannot lead out of the directory.
    rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(|_| Abandoned::Unreadable)
}

/// `/proc/self/fd/N/name`, or `/proc/self/fd/N` for an empty name, in memory of the caller's, for calls that take no descriptor.
fn below<'b>(path: &'b mut [u8; 320], directory: BorrowedFd<'_>, name: &CStr) -> Result<&'b CStr, Abandoned> {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        let room = path.get_mut(at..at + bytes.len())?;
        room.copy_from_slice(bytes);
        at += bytes.len();
        Some(())
    };
    let mut digits = [0; 10];
    let mut n = directory.as_raw_fd().unsigned_abs();
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
        if n == 0 {
            break;
        }
    }
    put(b"/proc/self/fd/").and_then(|()| put(&digits[first..])).ok_or(Abandoned::Unreadable)?;
    if !name.is_empty() {
        put(b"/").and_then(|()| put(name.to_bytes())).ok_or(Abandoned::Unreadable)?;
    }
    put(b"\0").ok_or(Abandoned::Unreadable)?;
    CStr::from_bytes_until_nul(path).map_err(|_| Abandoned::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_descriptor_is_built_without_allocating() {
        let file = std::fs::File::open("/proc").unwrap();
        let mut buffer = [0; 320];
        let path = below(&mut buffer, file.as_fd(), c"self").unwrap();
        assert_eq!(path.to_str().unwrap(), format!("/proc/self/fd/{}/self", file.as_raw_fd()));
    }
}
