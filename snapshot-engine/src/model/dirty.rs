//! What the tracker tells the pre-copy, and the promises between them.

use std::ops::Range;
use std::os::fd::BorrowedFd;

/// An inode number of the upper's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// What may have changed of one inode since it was last taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// The inode.
    pub ino: Ino,
    /// Size, times, owner, mode, link count, attributes; of a directory also its entries.
    pub meta: bool,
    /// Any byte of the content. `ranges` and `tail` are then of no interest.
    pub whole: bool,
    /// Direct I/O was begun on it, which may land after its call has returned: who reads it asks [`Watch::probe`] first.
    pub direct: bool,
    /// Every byte from here to the end of the file (a write behind the blocks the tracker has bits for).
    pub tail: Option<u64>,
    /// Byte ranges of the content, sorted and disjoint, in whole blocks: pages of files that were large when they were first
    /// watched, 64 KiB of others.
    pub ranges: Vec<Range<u64>>,
}

/// What the kernel says of an open file right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe {
    /// Somebody holds a shared mapping of it that may be written (`i_mmap_writable` > 0): T4 applies.
    pub mapped: bool,
    /// Direct I/O is under way (`i_dio_count` > 0).
    pub direct_io: bool,
}

/// The tracker as the pre-copy sees it.
pub trait Watch {
    /// From now on events on this inode are recorded. `size` is a hint for how many block bits it will need.
    /// Watching an inode twice is harmless. The caller still has to [`settle`](Watch::settle) before it reads the inode (T2): an event
    /// of a call that is under way may have passed before the inode was known.
    ///
    /// # Errors
    /// [`Full`] when the tracker's tables are full; the caller starts over with larger ones.
    fn watch(&mut self, ino: Ino, size: u64) -> Result<(), Full>;

    /// Forgets an inode that is gone from the tree.
    fn unwatch(&mut self, ino: Ino);

    /// Takes everything dirty: what is returned is clean afterwards, and the caller answers for it (T3).
    fn take(&mut self) -> Vec<Dirty>;

    /// Makes dirty again what was taken and could not be used (T3).
    fn put_back(&mut self, dirty: &[Dirty]);

    /// Waits until every modifying call that was under way when this was called has ended (T2). False when one of
    /// them does not end in time: what is read now must be put back afterwards.
    fn settle(&mut self) -> bool;

    /// Asks the kernel about an open file of the upper that is to be read next; `whole`: all of it. If it is mapped, the caller cleans the pages before he reads
    /// them (T4).
    fn probe(&self, fd: BorrowedFd<'_>, whole: bool) -> Probe;
}

/// The tracker's tables have no room for another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tracker's tables are full")]
pub struct Full;

/// A tracker for a tree that nobody changes: everybody is frozen, or there is nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Still;

impl Watch for Still {
    fn watch(&mut self, _: Ino, _: u64) -> Result<(), Full> {
        Ok(())
    }
    fn unwatch(&mut self, _: Ino) {}
    fn take(&mut self) -> Vec<Dirty> {
        Vec::new()
    }
    fn put_back(&mut self, _: &[Dirty]) {}
    fn settle(&mut self) -> bool {
        true
    }
    fn probe(&self, _: BorrowedFd<'_>, _: bool) -> Probe {
        Probe::default()
    }
}
