//! RAFS, the read-only file system format of Nydus images: bytes from values, no I/O.
//!
//! ```text
//! bootstrap (an EROFS image whose file data is on other devices)        blob
//! | 0 | superblock | ext | devices | blob table | inodes | chunks |      | chunk data | chunk infos | header |
//!                                                    \________________________^
//! ```
//!
//! Versions 6 and 5 are written; their structures and rules are those of `rafs/src/metadata/layout/`, `builder/src/core/` and
//! `storage/src/meta/` of github.com/dragonflyoss/nydus, and of `fs/erofs/erofs_fs.h` of Linux. Equal trees give equal bytes: names and attributes are sorted, and no clock is read.

pub mod blob;
mod bootstrap;
mod dirent;
pub mod flat;
mod inode;
pub mod layout;
pub mod read;
#[cfg(test)]
#[path = "sample_tests.rs"]
mod sample;
pub mod toc;
mod used;
pub mod v5;
mod xattr;

use crate::model::chunk::{Blob, BlobIndex, Format, FsVersion};
use crate::model::tree::{NodeId, Tree};

/// The most blobs: a device id of v6 has 8 bits and 0 is the bootstrap.
pub const MAX_BLOBS: usize = 254;

/// A bootstrap and what it refers to.
#[derive(Debug)]
pub struct Bootstrap {
    /// The file.
    pub bytes: Vec<u8>,
    /// The blobs of its table, by position in the table given; those no file needs are left out.
    pub blobs: Vec<BlobIndex>,
    /// Names in the tree, the root included.
    pub entries: u64,
    /// Distinct chunks.
    pub chunks: u64,
}

/// Writes the bootstrap of a merged tree whose chunk references name positions of `blobs`. Files in `prefetch`, and those below
/// directories in it, are to be fetched first.
///
/// # Errors
/// When the tree holds something the format cannot.
pub fn write(
    tree: &Tree,
    blobs: &[Blob],
    format: Format,
    prefetch: &[NodeId],
) -> Result<Bootstrap, RafsError> {
    match format.version {
        FsVersion::V5 => v5::bootstrap::write(tree, blobs, format, prefetch),
        FsVersion::V6 => bootstrap::write(tree, blobs, format, prefetch),
    }
}

/// Why a tree cannot be written as RAFS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RafsError {
    /// An attribute of a kind the format has no number for.
    #[error(
        "`{}`: attribute `{}` cannot be stored in RAFS v6: remove it, or write v5",
        lossy(path),
        lossy(attribute)
    )]
    Attribute {
        /// Path of the file.
        path: Vec<u8>,
        /// The attribute's name.
        attribute: Vec<u8>,
    },
    /// More attribute bytes than an inode can have.
    #[error("`{}`: attributes take more than 256 KiB: remove some, or write v5", lossy(path))]
    Attributes {
        /// Path of the file.
        path: Vec<u8>,
    },
    /// A file with more chunks than are sensible.
    #[error(
        "the files have more than {most} chunks in all: use a larger chunk size, or leave sparse files out"
    )]
    TooManyChunks {
        /// How many there may be.
        most: u64,
    },
    /// A directory or symbolic link of 4 GiB or an image of more inodes than can be numbered.
    #[error("the tree is too large for RAFS ({what}): snapshot a smaller one")]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// More blobs than a chunk index can name.
    #[error("the image needs {0} blobs, RAFS allows 254: squash some layers")]
    TooManyBlobs(usize),
    /// Blobs made with different options.
    #[error("the layers' blobs were made with different options: convert them with the same")]
    MixedFormats,
    /// A chunk reference that leads nowhere.
    #[error("`{}`: its chunks do not fit its size or the blobs: convert the layer again", lossy(path))]
    Chunks {
        /// Path of the file.
        path: Vec<u8>,
    },
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
