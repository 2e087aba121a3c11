//! The reader: bytes in, an image out. No I/O.
//!
//! ```text
//! bootstrap --v6--> superblock, blobs, chunks --v6_tree--> Tree
//!           --v5--> superblock, blobs --v5_inode--> Tree, chunks       faults: what is damaged, with its path
//! blob      --blob_meta--> places of its chunks, as it says itself; --toc--> its parts, a bootstrap among them
//! ```
//!
//! What is read may have been made to hurt the reader, so:
//!
//! * every offset, length and count is checked against the bytes there are ([`bytes`]);
//! * what is of variable length is paid for out of a budget of as many bytes as the input has ([`bytes::Budget`]). Structures of a
//!   whole image never overlap, so it always suffices; directories that share their blocks would cost the square of the input;
//! * nothing recurses: depth costs no stack.
//!
//! Damage below one inode does not hide the rest: it is noted as a fault, the inode is left out, and reading goes on.

mod blob_meta;
mod bytes;
mod dirent;
mod error;
mod faults;
mod image;
mod superblock;
mod toc;
mod v5;
mod v5_inode;
mod v6;
mod v6_tree;
mod xattr;

pub use blob_meta::{BlobMeta, MetaChunk, MetaPlace, header as blob_header};
pub use error::ReadError;
pub use faults::MAX_FAULTS;
pub use image::{BlobInfo, Chunk, Chunks, Counts, Image, Superblock};
pub use toc::{Part, Stored, parts};

/// What could be read, and what could not.
#[derive(Debug)]
pub struct Reading {
    /// The image, without what is damaged.
    pub image: Image,
    /// What is damaged, at most [`MAX_FAULTS`] of it.
    pub faults: Vec<ReadError>,
}

impl Reading {
    /// The image, if nothing of it is damaged.
    ///
    /// # Errors
    /// The first fault.
    pub fn whole(mut self) -> Result<Image, ReadError> {
        if self.faults.is_empty() { Ok(self.image) } else { Err(self.faults.swap_remove(0)) }
    }
}

/// Reads a bootstrap of either version.
///
/// # Errors
/// When it is none, or so damaged that there is no tree to show.
pub fn bootstrap(bytes: &[u8]) -> Result<Reading, ReadError> {
    let bytes = bytes::Bytes(bytes);
    if v6::is_one(bytes) {
        v6::read(bytes)
    } else if v5::is_one(bytes) {
        v5::read(bytes)
    } else {
        Err(ReadError::NotRafs)
    }
}

#[cfg(test)]
mod tests;
