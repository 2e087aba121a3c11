//! From an inode number to an open descriptor, without ever leaving the tree.
//!
//! The index says under which name an inode was last seen; the container may have renamed it since. So every step is opened
//! beneath the directory before it and its inode number is checked: what comes back is the inode asked for, or an error
//! that means "look again in the next round". No step recurses and no path is built, so depth is bounded by memory only.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::index::Index;
use crate::kernel::beneath::{self, Dir, Stat};
use crate::model::dirty::Ino;

/// How many directories are kept open.
const OPEN_DIRECTORIES: usize = 512;

/// Open directories of the upper, by inode number. An entry cannot be mistaken for a successor under the same number:
/// the kernel does not reuse the number of an inode that is open.
#[derive(Debug)]
pub(super) struct Walker {
    /// The upperdir's root, and those of the grafts.
    roots: HashMap<Ino, Arc<Dir>>,
    open: HashMap<Ino, (Arc<Dir>, u64)>,
    clock: u64,
}

/// Whether an error says that the inode is not where it was, rather than that it cannot be read.
pub(super) fn moved(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE | libc::EXDEV)
    )
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

impl Walker {
    pub(super) fn new(roots: HashMap<Ino, Arc<Dir>>) -> Walker {
        Walker { roots, open: HashMap::new(), clock: 0 }
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// As `openat2(2)`; `ESTALE` when the index leads elsewhere.
    pub(super) fn dir(&mut self, index: &Index, ino: Ino) -> io::Result<Arc<Dir>> {
        self.clock += 1;
        let mut way = Vec::new();
        let mut at = ino;
        let mut dir = loop {
            if let Some(root) = self.roots.get(&at) {
                break Arc::clone(root);
            }
            if let Some((dir, used)) = self.open.get_mut(&at) {
                *used = self.clock;
                break Arc::clone(dir);
            }
            // Listings of different moments may have made a circle.
            if way.len() > index.len() {
                return Err(stale());
            }
            let (parent, name) = index.get(at).and_then(|node| node.links.last()).ok_or_else(stale)?;
            way.push((at, name));
            at = *parent;
        };
        for (step, name) in way.into_iter().rev() {
            let next = dir.open_dir(name)?;
            if beneath::stat_fd(next.as_fd())?.ino != step.0 {
                return Err(stale());
            }
            dir = Arc::new(next);
            self.keep(step, Arc::clone(&dir));
        }
        Ok(dir)
    }

    fn keep(&mut self, ino: Ino, dir: Arc<Dir>) {
        if self.open.len() >= OPEN_DIRECTORIES {
            // Half at once, so that the cost of choosing is spread over as many openings.
            let mut used: Vec<u64> = self.open.values().map(|(_, used)| *used).collect();
            let middle = used.len() / 2;
            let (_, pivot, _) = used.select_nth_unstable(middle);
            let pivot = *pivot;
            if self.open.values().any(|(_, used)| *used > pivot) {
                self.open.retain(|_, (_, used)| *used > pivot);
            } else {
                // One long path fills the table within one call: everything is equally old.
                self.open.clear();
            }
        }
        self.open.insert(ino, (dir, self.clock));
    }

    /// Closes a directory that is gone.
    pub(super) fn close(&mut self, ino: Ino) {
        self.open.remove(&ino);
    }

    /// Opens an inode as a location (`O_PATH`) with its stat, by any name the index has for it.
    ///
    /// # Errors
    /// As `openat2(2)`; `ESTALE` when no name leads to it any more.
    pub(super) fn locate(&mut self, index: &Index, ino: Ino) -> io::Result<(OwnedFd, Stat)> {
        if let Some(root) = self.roots.get(&ino) {
            let fd = root.open_path(c".")?;
            let stat = beneath::stat_fd(fd.as_fd())?;
            return Ok((fd, stat));
        }
        let mut last = stale();
        for (parent, name) in index.get(ino).into_iter().flat_map(|node| node.links.iter().rev()) {
            match self.dir(index, *parent).and_then(|dir| dir.open_path(name)) {
                Ok(fd) => {
                    let stat = beneath::stat_fd(fd.as_fd())?;
                    if stat.ino == ino.0 {
                        return Ok((fd, stat));
                    }
                }
                Err(e) if moved(&e) => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }
}
