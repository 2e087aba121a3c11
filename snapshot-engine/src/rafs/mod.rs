//! RAFS, the read-only file system format of Nydus images: bytes from values, no I/O.
//!
//! ```text
//! bootstrap (an EROFS image whose file data is on other devices)        blob
//! | 0 | superblock | ext | devices | blob table | inodes | chunks |      | chunk data | chunk infos | header |
//!                                                    \________________________^
//! ```
//!
//! Version 6 is written; its structures and rules are those of `rafs/src/metadata/layout/v6.rs`, `builder/src/core/v6.rs` and
//! `storage/src/meta/` of github.com/dragonflyoss/nydus, and of `fs/erofs/erofs_fs.h` of Linux. Equal trees give equal
//! bytes: names and attributes are sorted, and no clock is read.

pub mod blob;
pub mod bootstrap;
mod dirent;
mod inode;
pub mod layout;
pub mod version;
mod xattr;

/// Why a tree cannot be written as RAFS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RafsError {
    /// An attribute of a kind the format has no number for.
    #[error("`{}`: attribute `{}` cannot be stored in RAFS v6: remove it", lossy(path), lossy(attribute))]
    Attribute {
        /// Path of the file.
        path: Vec<u8>,
        /// The attribute's name.
        attribute: Vec<u8>,
    },
    /// More attribute bytes than an inode can have.
    #[error("`{}`: attributes take more than 256 KiB: remove some", lossy(path))]
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
    #[error("the tree is too large for RAFS v6 ({what}): snapshot a smaller one")]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// More blobs than a chunk index can name.
    #[error("the image needs {0} blobs, RAFS v6 allows 254: squash some layers")]
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
