//! The memory the window writes to: all of it allocated, touched and locked before the gate goes up.
//!
//! ```text
//!   bytes    [ content | listing | attributes | names | content ... ]      one locked block, filled from the front
//!   records  [ what each piece is, and the inode it belongs to ]          a list of fixed capacity
//!   dirty    [ slots taken in this attempt, with their state ]            kept to be put back (T3)
//!   bits     [ words of block bits taken, chained by slot ]
//!   todo     [ which of `dirty` are still to be read ]
//! ```
//!
//! What was read before the gate went up ([`super::early`]) lies in front of what the window reads. Both are applied in this order, as two
//! rounds would be, so an inode that is in it twice ends as it was read last.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::Statx;

use crate::kernel::beneath::Stat;
use crate::kernel::directory::entries;
use crate::kernel::scheduling::Locked;
use crate::model::residual::{CapturedInode, Listing, Residual};
use crate::track::slots::SlotIndex;

/// A list that never grows past what was reserved: pushing never allocates.
#[derive(Debug)]
pub struct Fixed<T> {
    items: Vec<T>,
}

impl<T: Copy> Fixed<T> {
    /// A list with room for `capacity` items, all of it touched.
    #[must_use]
    pub fn new(capacity: usize, blank: T) -> Fixed<T> {
        Fixed::with(capacity, || blank)
    }
}

impl<T> Fixed<T> {
    /// A list with room for `capacity` items, all of it touched.
    #[must_use]
    pub fn with(capacity: usize, blank: impl FnMut() -> T) -> Fixed<T> {
        let mut items = Vec::with_capacity(capacity);
        items.resize_with(capacity, blank);
        let mut items = std::hint::black_box(items);
        items.clear();
        Fixed { items }
    }

    /// Appends; false if there is no room.
    #[inline]
    #[must_use]
    pub fn push(&mut self, item: T) -> bool {
        if self.items.len() == self.items.capacity() {
            return false;
        }
        self.items.push(item);
        true
    }

    /// Empties it.
    #[inline]
    pub fn clear(&mut self) {
        self.items.clear();
    }

    /// Forgets all but the first `len`.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
    }
}

impl<T> std::ops::Deref for Fixed<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> std::ops::DerefMut for Fixed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

/// No next item.
pub const END: u32 = u32::MAX;

/// A slot taken in this attempt.
#[derive(Debug, Clone, Copy)]
pub struct TakenSlot {
    /// Which.
    pub slot: SlotIndex,
    /// State bits, of all times it was taken.
    pub state: u64,
    /// Those of them that came since it was read last.
    pub unread: u64,
    /// First of its words in `bits`, or [`END`]. What was taken last comes first.
    pub bits: u32,
    /// The first of its words that has been read already, with all behind it.
    pub read_to: u32,
    /// Its index is in [`Arena::todo`].
    pub waits: bool,
    /// It was captured through a directory's entry, because it had no descriptor.
    pub through_entry: bool,
    /// The turn in which it was taken last.
    pub turn: u32,
    /// It is a directory, and all its entries were looked at in this turn last; 0: never.
    pub listed: u32,
    /// The directories that named it when the last round ended, if that is known and they are few.
    pub kin: Option<Kin>,
}

impl TakenSlot {
    /// A slot of which nothing was taken yet.
    #[must_use]
    pub fn new(slot: SlotIndex) -> TakenSlot {
        TakenSlot {
            slot,
            state: 0,
            unread: 0,
            bits: END,
            read_to: END,
            waits: false,
            through_entry: false,
            turn: 0,
            listed: 0,
            kin: None,
        }
    }
}

/// The directories that name an inode: no name at all, one, or two.
pub type Kin = [Option<SlotIndex>; 2];

/// A word of block bits taken.
#[derive(Debug, Clone, Copy)]
pub struct TakenBits {
    /// Which word of the slot.
    pub word: u32,
    /// The bits.
    pub bits: u64,
    /// The next word of the slot, or [`END`].
    pub next: u32,
}

/// A stretch of the arena's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Where it starts.
    pub at: usize,
    /// How long it is.
    pub len: usize,
}

/// What the window has captured, piece by piece. `inode` is an index into `stats`.
#[derive(Debug, Clone, Copy)]
pub enum Record {
    /// Everything after it up to the next one of its kind belongs to this inode.
    Inode {
        /// Index into `stats`.
        stat: u32,
        /// The shadow does not know it.
        fresh: bool,
    },
    /// Content.
    Data {
        /// Where in the file.
        offset: u64,
        /// The bytes.
        span: Span,
    },
    /// The target of a symbolic link.
    Link(Span),
    /// All attributes' names, as `listxattr(2)` gives them; a [`Record::Value`] follows for each.
    Names(Span),
    /// An attribute's value.
    Value(Span),
    /// A directory, by inode number; its listing follows.
    Directory(u64),
    /// A directory's entries, as `getdents64(2)` gives them; several may follow each other.
    Listing(Span),
}

/// How far the arena is filled.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    used: usize,
    records: usize,
    stats: usize,
    entries: u64,
    data_bytes: u64,
}

/// The arena.
#[derive(Debug)]
pub struct Arena {
    pub(super) bytes: Locked,
    pub(super) used: usize,
    pub(super) records: Fixed<Record>,
    pub(super) stats: Fixed<Statx>,
    pub(super) dirty: Fixed<TakenSlot>,
    pub(super) bits: Fixed<TakenBits>,
    /// Indexes into `dirty`: what is still to be read.
    pub(super) todo: Fixed<u32>,
    /// How much was read before the gate went up.
    pub(super) early: Mark,
    /// Turns of taking and then reading: the early ones from 1 on, and the window's.
    pub(super) turn: u32,
    /// Slot -> 1 + index into `dirty`; 0: not taken.
    pub(super) taken: Vec<u32>,
    /// Directories that are new, with their inode numbers: opened by the window, closed after it.
    pub(super) opened: Fixed<Option<(OwnedFd, u64)>>,
    /// A slot there was no room for; it keeps its dirt, and has to be looked at again as the ring names it no more (T1).
    pub(super) left_out: Option<SlotIndex>,
    /// Directory entries looked at.
    pub(super) entries: u64,
    /// Content bytes read.
    pub(super) data_bytes: u64,
}

/// Zeros whose pages are there: `vec![0; n]` alone would leave them to be faulted in by the window.
pub(super) fn touched(len: usize) -> Vec<u32> {
    let mut words = vec![1; len];
    words.fill(0);
    std::hint::black_box(words)
}

/// How much an attempt may capture.
const MAX_DIRTY: usize = 8 << 10;
const MAX_BITS: usize = 32 << 10;
const MAX_RECORDS: usize = 64 << 10;
const MAX_STATS: usize = 16 << 10;

impl Arena {
    /// An arena of `bytes` for a tracker with `slots` slots.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(bytes: usize, slots: u32) -> io::Result<Arena> {
        // A value to fill the list with; each is overwritten before it is used.
        let blank = rustix::fs::statx(
            rustix::fs::CWD,
            c"/",
            rustix::fs::AtFlags::empty(),
            rustix::fs::StatxFlags::empty(),
        )?;
        Ok(Arena {
            bytes: Locked::new(bytes)?,
            used: 0,
            records: Fixed::new(MAX_RECORDS, Record::Link(Span::default())),
            stats: Fixed::new(MAX_STATS, blank),
            dirty: Fixed::new(MAX_DIRTY, TakenSlot::new(SlotIndex(0))),
            bits: Fixed::new(MAX_BITS, TakenBits { word: 0, bits: 0, next: END }),
            todo: Fixed::new(MAX_DIRTY, 0),
            early: Mark::default(),
            turn: 1,
            taken: touched(slots as usize),
            opened: Fixed::with(1024, || None),
            left_out: None,
            entries: 0,
            data_bytes: 0,
        })
    }

    /// Forgets everything. Outside the window.
    pub fn reset(&mut self) {
        self.used = 0;
        self.records.clear();
        self.stats.clear();
        for d in self.dirty.iter() {
            self.taken[d.slot.0 as usize] = 0;
        }
        self.dirty.clear();
        self.bits.clear();
        self.todo.clear();
        self.early = Mark::default();
        self.turn = 1;
        self.opened.clear();
        self.entries = 0;
        self.data_bytes = 0;
    }

    /// How many inodes were taken.
    #[must_use]
    pub fn inodes(&self) -> u64 {
        self.dirty.len() as u64
    }

    /// Inodes and content bytes captured inside the window.
    #[must_use]
    pub fn captured(&self) -> (u64, u64) {
        let (early_inodes, early_bytes) = self.captured_early();
        (self.stats.len() as u64 - early_inodes, self.data_bytes - early_bytes)
    }

    /// Inodes and content bytes captured before the gate went up, and still good when it was.
    #[must_use]
    pub fn captured_early(&self) -> (u64, u64) {
        (self.early.stats as u64, self.early.data_bytes)
    }

    /// Directory entries looked at inside the window.
    #[must_use]
    pub fn entries_captured(&self) -> u64 {
        self.entries - self.early.entries
    }

    /// Pieces of content read inside the window.
    #[must_use]
    pub fn reads_captured(&self) -> u64 {
        let inside = self.records[self.early.records..].iter();
        inside.filter(|record| matches!(record, Record::Data { .. })).count() as u64
    }

    /// How far it is filled.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            used: self.used,
            records: self.records.len(),
            stats: self.stats.len(),
            entries: self.entries,
            data_bytes: self.data_bytes,
        }
    }

    /// Forgets what was captured since the mark.
    pub(super) fn back_to(&mut self, mark: Mark) {
        self.used = mark.used;
        self.records.truncate(mark.records);
        self.stats.truncate(mark.stats);
        self.entries = mark.entries;
        self.data_bytes = mark.data_bytes;
    }

    /// The bytes of a span.
    #[must_use]
    pub fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.at..span.at + span.len]
    }
}

/// Everything captured, as the shadow takes it in. Outside the window.
#[must_use]
pub fn residual(arena: &Arena) -> Residual<'_> {
    let mut residual = Residual::default();
    let mut names: Option<&[u8]> = None;
    for record in arena.records.iter() {
        match *record {
            Record::Inode { stat, fresh } => {
                let stat = Stat::from(&arena.stats[stat as usize]);
                residual.inodes.push(CapturedInode {
                    stat,
                    fresh,
                    data: Vec::new(),
                    link: &[],
                    xattrs: None,
                });
            }
            Record::Directory(ino) => residual.listings.push(Listing { ino, entries: Vec::new() }),
            Record::Listing(span) => {
                if let Some(listing) = residual.listings.last_mut() {
                    listing.entries.extend(entries(arena.slice(span)).map(|e| (e.name, e.ino, e.kind)));
                }
            }
            _ => {
                let Some(inode) = residual.inodes.last_mut() else { continue };
                match *record {
                    Record::Data { offset, span } => inode.data.push((offset, arena.slice(span))),
                    Record::Link(span) => inode.link = arena.slice(span),
                    Record::Names(span) => {
                        names = Some(arena.slice(span));
                        inode.xattrs = Some(Vec::new());
                    }
                    Record::Value(span) => {
                        let rest = names.unwrap_or_default();
                        let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
                        let pair = (rest[..end].to_vec(), arena.slice(span).to_vec());
                        inode.xattrs.get_or_insert_default().push(pair);
                        names = rest.get(end + 1..);
                    }
                    _ => {}
                }
            }
        }
    }
    for inode in &mut residual.inodes {
        if let Some(xattrs) = &mut inode.xattrs {
            xattrs.sort();
        }
    }
    residual
}
