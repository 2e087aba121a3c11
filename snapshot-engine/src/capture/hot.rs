//! Open descriptors of what changes most, so that the window opens nothing.
//!
//! What was dirty in the last rounds is what will be dirty at the cut. A descriptor also pins the inode: while it is open its
//! number is not reused, so the window need not ask whose it is. It pins the disk space of a deleted file as well, which
//! is why an inode that leaves the tree is closed at once.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::model::dirty::Ino;

/// The most recently dirtied inodes, up to a limit.
#[derive(Debug)]
pub(super) struct Hot {
    limit: usize,
    clock: u64,
    open: HashMap<Ino, (OwnedFd, u64)>,
    order: BTreeMap<u64, Ino>,
}

impl Hot {
    pub(super) fn new(limit: usize) -> Hot {
        Hot { limit, clock: 0, open: HashMap::new(), order: BTreeMap::new() }
    }

    /// The most descriptors there may be.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes in a descriptor that was opened for reading; the least recently dirtied one makes room.
    pub(super) fn keep(&mut self, ino: Ino, fd: OwnedFd) {
        if self.limit == 0 {
            return;
        }
        self.close(ino);
        if self.open.len() >= self.limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.open.remove(&oldest);
        }
        self.clock += 1;
        self.order.insert(self.clock, ino);
        self.open.insert(ino, (fd, self.clock));
    }

    pub(super) fn has(&self, ino: Ino) -> bool {
        self.open.contains_key(&ino)
    }

    pub(super) fn close(&mut self, ino: Ino) {
        if let Some((_, used)) = self.open.remove(&ino) {
            self.order.remove(&used);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, BorrowedFd<'_>)> {
        self.open.iter().map(|(ino, (fd, _))| (*ino, fd.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut hot = Hot::new(2);
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for ino in [1, 2, 1, 3] {
            hot.keep(Ino(ino), open());
        }
        let mut left: Vec<u64> = hot.iter().map(|(ino, _)| ino.0).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 3]);
        hot.close(Ino(3));
        assert_eq!(hot.iter().count(), 1);
    }
}
