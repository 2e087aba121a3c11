//! The live tree against what the shadow recorded (T6).
//!
//! The list of a file system's events can never be proved complete, so every name is looked at once with `statx(2)`: 0.7 us an
//! inode. The recorded stat was taken before the content was read, so a change during the read shows as well.
//! What is found is not a fault by itself: it may have been reported meanwhile. Only a difference the tracker knows nothing of is a miss.
//!
//! It is a net, not a proof: before Linux 6.13 (multigrain time stamps) two changes within one timer tick have one change time.

use super::index::Known;
use super::walk::moved;
use super::{Error, Shadow};
use crate::kernel::beneath::Stat;
use crate::model::dirty::Ino;

/// In what an inode of the live tree differs from the shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The name leads to another inode, or to another one under the same number.
    Replaced,
    /// Nothing has that name any more.
    Gone,
    /// It was listed but never read.
    Unread,
    /// The size.
    Size,
    /// Type or permissions.
    Mode,
    /// Owner or group.
    Owner,
    /// The number of hard links.
    Links,
    /// Only the time of the last change.
    Ctime,
}

/// A difference between the live tree and the shadow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The inode as the shadow knows it.
    pub ino: Ino,
    /// The directory it was found in; none for the root.
    pub parent: Option<Ino>,
    /// The live inode's change time; that of the directory when the name is gone.
    pub ctime: (i64, u32),
    /// What differs.
    pub what: Change,
}

impl Shadow {
    /// Compares every name the shadow has with the live tree. New names show as a difference of their directory.
    ///
    /// # Errors
    /// When a directory cannot be looked at for another reason than being gone.
    pub fn sweep(&mut self) -> Result<Vec<Difference>, Error> {
        let mut found = Vec::new();
        let mut stack: Vec<Ino> = self.index.roots().collect();
        // A circle of half-listed renames is walked once.
        let mut seen: std::collections::HashSet<Ino> = stack.iter().copied().collect();
        for root in &stack {
            match self.walker.locate(&self.index, *root) {
                Ok((_, stat)) => self.compare(*root, None, &stat, &mut found),
                Err(e) => return Err(Error::upper("look at", self.index.path(*root), e)),
            }
        }
        while let Some(ino) = stack.pop() {
            let dir = match self.walker.dir(&self.index, ino) {
                Ok(dir) => dir,
                // Said by the comparison of its own name.
                Err(e) if moved(&e) => continue,
                Err(e) => return Err(Error::upper("open", self.index.path(ino), e)),
            };
            for (name, child) in self.index.get(ino).and_then(|n| n.entries.as_ref()).into_iter().flatten() {
                match dir.stat(name) {
                    Ok(stat) => self.compare(*child, Some(ino), &stat, &mut found),
                    Err(e) if moved(&e) => {
                        let ctime = self.index.known(ino).map_or((0, 0), |known| known.stat.ctime);
                        found.push(Difference { ino: *child, parent: Some(ino), ctime, what: Change::Gone });
                    }
                    Err(e) => return Err(Error::upper("look at", self.index.path(*child), e)),
                }
                if self.index.get(*child).is_some_and(|node| node.entries.is_some()) && seen.insert(*child) {
                    stack.push(*child);
                }
            }
        }
        Ok(found)
    }

    fn compare(&self, ino: Ino, parent: Option<Ino>, live: &Stat, found: &mut Vec<Difference>) {
        let what = match self.index.known(ino) {
            None => Some(Change::Unread),
            Some(known) => difference(known, live),
        };
        if let Some(what) = what {
            found.push(Difference { ino, parent, ctime: live.ctime, what });
        }
    }
}

fn difference(known: &Known, live: &Stat) -> Option<Change> {
    let had = &known.stat;
    if had.ino != live.ino || had.btime != live.btime {
        Some(Change::Replaced)
    } else if had.size != live.size && !live.is_dir() {
        Some(Change::Size)
    } else if had.mode != live.mode {
        Some(Change::Mode)
    } else if (had.uid, had.gid) != (live.uid, live.gid) {
        Some(Change::Owner)
    } else if had.nlink != live.nlink {
        Some(Change::Links)
    } else if had.ctime != live.ctime {
        Some(Change::Ctime)
    } else {
        None
    }
}
