//! What can go wrong with the shadow, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the shadow could not be made, kept up to date or frozen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The live upperdir could not be read.
    #[error("cannot {op} {path:?} in the upperdir")]
    Upper {
        /// What was being done.
        op: &'static str,
        /// Where, relative to the upperdir's root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The shadow could not be written.
    #[error("cannot {op} {path:?} in the shadow; {}", remedy(source))]
    Shadow {
        /// What was being done.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An extended attribute could not be set on the copy.
    #[error("cannot set the attribute {name} on the copy of {path:?}; {}", xattr_remedy(source))]
    Xattr {
        /// The attribute.
        name: String,
        /// Whose, relative to the upperdir's root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The upperdir has more inodes than the engine will hold.
    #[error("the upperdir has more than {limit} entries; raise --max-entries if that is meant to be")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// The upperdir has more attributes than the engine will hold in memory.
    #[error(
        "the upperdir has more than {limit} bytes of extended attributes and link targets; remove some in the container"
    )]
    TooManyAttributes {
        /// The limit.
        limit: usize,
    },
    /// The tracker's tables are full.
    #[error(
        "the tracker has no room for another inode after {watched}: the container has made more files since than its tables were made for; try \
         again, or use --tracker none with a larger --max-pause"
    )]
    TrackerFull {
        /// How many inodes the shadow knows.
        watched: usize,
    },
    /// The work directory is inside the upperdir: the shadow would copy itself.
    #[error("the work directory {dir:?} is inside the upperdir {upper:?}; choose --work-dir outside of it")]
    Nested {
        /// The work directory.
        dir: PathBuf,
        /// The upperdir.
        upper: PathBuf,
    },
    /// One tree is in another.
    #[error("{path:?} is the root of another tree that is copied; leave out one of the two (--with-path)")]
    Overlap {
        /// Where, relative to the upperdir's root.
        path: PathBuf,
    },
    /// The work directory is inside a tree that is added.
    #[error(
        "the work directory {dir:?} is inside {path:?}; choose --work-dir outside of what --with-path adds"
    )]
    NestedInGraft {
        /// The work directory.
        dir: PathBuf,
        /// Where it was found, relative to the upperdir's root.
        path: PathBuf,
    },
    /// Another engine works there.
    #[error("the work directory {dir:?} is in use by another snapshot; choose another --work-dir")]
    Busy {
        /// The work directory.
        dir: PathBuf,
    },
    /// Inode numbers are unique within a subvolume only, and the shadow knows inodes by number.
    #[error(
        "{path:?} in the upperdir is a btrfs subvolume of its own, which a snapshot cannot hold; move it out of the container's layer"
    )]
    Subvolume {
        /// Where, relative to the upperdir's root.
        path: PathBuf,
    },
    /// What the window handed over does not fit what the shadow has.
    #[error("the shadow is not whole at {path:?}: {what}; the snapshot is void and must be taken again")]
    Incomplete {
        /// Where, relative to the upperdir's root.
        path: PathBuf,
        /// What is missing or contradictory.
        what: &'static str,
    },
    /// Something is at the place of the frozen upperdir already.
    #[error("{path:?} exists already and is not replaced; choose another name for the snapshot")]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// The frozen upperdir belongs on another file system than the shadow: no rename can publish it.
    #[error(
        "{path:?} is on another file system than the work directory {dir:?}; put both on one with --work-dir"
    )]
    OtherFileSystem {
        /// Where the frozen upperdir should go.
        path: PathBuf,
        /// The work directory.
        dir: PathBuf,
    },
    /// Somebody wanted it to end.
    #[error("it was asked to stop")]
    Stopped,
    /// A copying thread could not be started or has died.
    #[error("the copying threads are gone")]
    Threads {
        /// Why.
        source: io::Error,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "there is no room: free some or choose another file system with --work-dir"
        }
        _ => "check the file system, or choose another with --work-dir",
    }
}

fn xattr_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "the work directory's file system does not take that namespace: choose another with --work-dir"
        }
        Some(libc::EPERM) => "the engine needs CAP_SYS_ADMIN in the initial user namespace",
        Some(libc::ENOSPC | libc::EDQUOT | libc::E2BIG) => {
            "the work directory's file system has no room for it: choose another with --work-dir"
        }
        _ => "check the file system, or choose another with --work-dir",
    }
}

impl Error {
    pub(super) fn upper(op: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Error {
        Error::Upper { op, path: path.into(), source: source.into() }
    }

    pub(super) fn shadow(op: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Shadow { op, path: path.as_ref().into(), source: source.into() }
    }
}
