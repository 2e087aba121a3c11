//! One inode: its bytes, and what they need of space.
//!
//! ```text
//! | inode, 64 | attributes | tail of a directory, link target, or chunk indexes (8-aligned) |
//! ```

use zerocopy::little_endian::{U16, U32, U64};

use crate::model::chunk::{BLOCK, ChunkSize};
use crate::model::tree::{Kind, Meta, Mtime};

use super::layout::{CHUNK_INDEXES, ChunkIndex, INODE_SIZE, Inode, SLOT};

/// `EROFS_FT_*` of a node.
pub(super) fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Dir(_) => 2,
        Kind::Char(_) => 3,
        Kind::Block(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// Where the data of an inode is (`EROFS_INODE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// All in whole blocks, or none at all.
    Plain,
    /// Whole blocks elsewhere, the tail behind the inode.
    Inline,
    /// Chunk indexes behind the inode.
    Chunks,
}

/// What an inode needs in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) data: Data,
    /// Bytes of attributes.
    pub(super) xattrs: u64,
    /// Bytes of data: of a directory, a link target, or a file.
    pub(super) size: u64,
    /// Bytes from the inode's start, with attributes and what follows.
    pub(super) body: u64,
    /// Whole blocks elsewhere.
    pub(super) blocks: u64,
}

impl Shape {
    pub(super) fn special(xattrs: u64) -> Shape {
        Shape { data: Data::Plain, xattrs, size: 0, body: INODE_SIZE + xattrs, blocks: 0 }
    }

    pub(super) fn file(xattrs: u64, size: u64, chunks: u64) -> Shape {
        let array = if chunks == 0 { 0 } else { chunks * size_of::<ChunkIndex>() as u64 };
        let body = Shape::chunks_at(xattrs) + array;
        Shape { data: Data::Chunks, xattrs, size, body, blocks: 0 }
    }

    /// A directory or symbolic link: the tail lies behind the inode if both fit one block, because the kernel maps it by
    /// block (fs/erofs/data.c `erofs_map_blocks`: "inline data across blocks" is corruption).
    pub(super) fn inlined(xattrs: u64, size: u64) -> Shape {
        let tail = size % BLOCK;
        let head = INODE_SIZE + xattrs;
        if tail != 0 && head + tail <= BLOCK {
            Shape { data: Data::Inline, xattrs, size, body: head + tail, blocks: size / BLOCK }
        } else {
            Shape { data: Data::Plain, xattrs, size, body: head, blocks: size.div_ceil(BLOCK) }
        }
    }

    /// Where chunk indexes begin in the body.
    pub(super) fn chunks_at(xattrs: u64) -> u64 {
        (INODE_SIZE + xattrs).next_multiple_of(8)
    }

    /// The first place from `at` on where this inode may begin.
    pub(super) fn place(&self, at: u64) -> u64 {
        let at = at.next_multiple_of(SLOT);
        if self.data == Data::Inline && at % BLOCK + self.body > BLOCK {
            at.next_multiple_of(BLOCK)
        } else {
            at
        }
    }
}

/// What an inode says besides its owner and permissions.
pub(super) struct Fields {
    pub(super) xattr_icount: u16,
    pub(super) union: u32,
    pub(super) ino: u32,
    pub(super) nlink: u32,
    pub(super) mtime: Mtime,
}

/// `i_u` of a regular file.
pub(super) fn chunk_format(chunk_size: ChunkSize) -> u32 {
    CHUNK_INDEXES | (chunk_size.bits() - 12)
}

pub(super) fn encode(meta: &Meta, kind: &Kind, shape: &Shape, fields: &Fields) -> Inode {
    let layout = match shape.data {
        Data::Plain => 0,
        Data::Inline => 2,
        Data::Chunks => 4,
    };
    Inode {
        // Version 1: the extended form, the only one with a modification time.
        format: U16::new(1 | layout << 1),
        xattr_icount: U16::new(fields.xattr_icount),
        mode: U16::new(((kind.type_bits() | meta.mode & 0o7777) & 0xffff) as u16),
        reserved: U16::ZERO,
        size: U64::new(shape.size),
        union: U32::new(fields.union),
        ino: U32::new(fields.ino),
        uid: U32::new(meta.uid),
        gid: U32::new(meta.gid),
        mtime: U64::new(fields.mtime.sec.cast_unsigned()),
        mtime_nsec: U32::new(fields.mtime.nsec),
        nlink: U32::new(fields.nlink),
        reserved2: [0; 16],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_never_cross_a_block() {
        for size in [0u64, 1, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 8200] {
            for xattrs in [0u64, 12 + 8, 4000] {
                let shape = Shape::inlined(xattrs, size);
                for at in [4096u64, 4097, 8000, 8191] {
                    let placed = shape.place(at);
                    assert!(placed >= at && placed.is_multiple_of(SLOT));
                    if shape.data == Data::Inline {
                        assert_eq!(placed / BLOCK, (placed + shape.body - 1) / BLOCK);
                        assert_eq!(shape.blocks * BLOCK + size % BLOCK, size);
                    } else {
                        assert!(shape.blocks * BLOCK >= size);
                    }
                }
            }
        }
    }
}
