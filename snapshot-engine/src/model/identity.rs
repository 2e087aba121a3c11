//! What tells that a file of a live upperdir has not changed from one snapshot to the next.
//!
//! ```text
//!   cut 1:  live inode 77, born b, changed c, n bytes  <->  the frozen file 9001  ->  chunks of image 1
//!   cut 2:  live inode 77, born b, changed c, n bytes  <->  the frozen file 9417  ->  the same chunks, and it is not read
//! ```
//!
//! The change time is the kernel's own: who may write a file can set its modification time, and not this one. What it does not
//! tell by itself, and who therefore must not have an identity, is said where they are made (`capture::settled`).

use serde::{Deserialize, Serialize};

use super::inode::Stat;

/// A regular file of a live upperdir at a cut. Equal ones of two cuts in one [`Realm`] had the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Its inode number.
    pub ino: u64,
    /// Its birth time: with the number it identifies an inode over the reuse of the number.
    pub btime: (i64, u32),
    /// When anything of it was last changed.
    pub ctime: (i64, u32),
    /// Its length in bytes.
    pub size: u64,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Identity {
        Identity { ino: stat.ino, btime: stat.btime, ctime: stat.ctime, size: stat.size }
    }
}

/// Within what identities may be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Realm {
    /// The boot of the machine: after a loss of power a file may have new bytes and its old change time.
    pub boot: String,
    /// The device of the live upperdir.
    pub dev: u64,
    /// Its root's inode number.
    pub ino: u64,
    /// And birth time.
    pub btime: (i64, u32),
}

/// A directory of the frozen upperdir's kind: whether it is still the very one that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its device.
    pub dev: u64,
    /// Its inode number.
    pub ino: u64,
    /// Its birth time.
    pub btime: (i64, u32),
}

impl From<&Stat> for Place {
    fn from(stat: &Stat) -> Place {
        Place { dev: stat.dev, ino: stat.ino, btime: stat.btime }
    }
}

/// The files of a frozen upperdir whose live originals can be recognised in the next snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Where they come from.
    pub realm: Realm,
    /// The frozen upperdir's root: inode numbers below are of this very tree, not of a copy of it.
    pub frozen: Place,
    /// By the inode number of the frozen file, in its order.
    files: Vec<(u64, Identity)>,
}

impl Settled {
    /// Of files of the tree at `frozen`, by their inode numbers there, each once.
    #[must_use]
    pub fn new(realm: Realm, frozen: Place, mut files: Vec<(u64, Identity)>) -> Settled {
        files.sort_unstable_by_key(|(ino, _)| *ino);
        Settled { realm, frozen, files }
    }

    /// The files, by inode number.
    #[must_use]
    pub fn files(&self) -> &[(u64, Identity)] {
        &self.files
    }

    /// The original of a frozen file.
    #[must_use]
    pub fn identity(&self, ino: u64) -> Option<&Identity> {
        self.files.binary_search_by_key(&ino, |(ino, _)| *ino).ok().map(|at| &self.files[at].1)
    }
}
