//! The structures of RAFS v5 as they lie in the file; all integers little-endian, every part 8-aligned.
//!
//! ```text
//! 0            8192
//! | superblock | inode table | prefetch table | blob table | extended blob table | inode | inode | ...
//!
//! inode:      | Inode, 128 | name | link target | attributes | ChunkEntry, 80, * i_child_count |
//! blob table: { u32 readahead offset, u32 readahead size, id } NUL { .. } NUL { .. }        no NUL after the last
//! attributes: u64 bytes of all pairs, { u32 length of the rest, name with prefix, NUL, value } ...
//! ```
//!
//! The chunks are [`super::super::layout::ChunkEntry`], as in v6. Source: `rafs/src/metadata/layout/v5.rs` of nydus.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of the file, "RAFS" (`RAFSV5_SUPER_MAGIC`).
pub const SUPER_MAGIC: u32 = 0x5241_4653;
/// Second word (`RAFS_SUPER_VERSION_V5`).
pub const SUPER_VERSION: u32 = 0x500;
/// Bytes of the superblock (`RAFSV5_SUPERBLOCK_SIZE`).
pub const SUPER_SIZE: usize = 8192;
/// Everything in the file begins at a multiple of this.
pub const ALIGN: u64 = 8;
/// The root's inode number; numbers count up from it without a gap.
pub const ROOT_INO: u64 = 1;
/// An inode's offset, divided by [`ALIGN`], is below this (`RafsV5InodeTable::get`): inodes lie in the first 4 GiB.
pub const MAX_INODE_SLOT: u64 = 1 << 29;

/// Bits of [`Inode::flags`] (`RafsV5InodeFlags`).
pub mod inode_flags {
    /// A target follows the name.
    pub const SYMLINK: u64 = 0x1;
    /// The inode has more names, each with an entry of its own.
    pub const HARDLINK: u64 = 0x2;
    /// Attributes follow.
    pub const XATTR: u64 = 0x4;
    /// Chunks are left out where the file has holes; not written by any builder.
    pub const HAS_HOLE: u64 = 0x8;
}

const _: () = {
    assert!(size_of::<Super>() == SUPER_SIZE);
    assert!(size_of::<ExtBlob>() == 64);
    assert!(size_of::<BlobHead>() == 8);
    assert!(size_of::<Inode>() == 128);
    assert!(size_of::<XattrTable>() == 8);
};

/// The superblock (`RafsV5SuperBlock`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Super {
    /// [`SUPER_MAGIC`].
    pub magic: U32,
    /// [`SUPER_VERSION`].
    pub version: U32,
    /// [`SUPER_SIZE`].
    pub size: U32,
    /// Size of a chunk.
    pub chunk_size: U32,
    /// As in v6: [`super::super::layout::flags`].
    pub flags: U64,
    /// Inodes, each counted once however many names it has.
    pub inodes: U64,
    /// Offset of the inode table: for inode number n, at index n - 1, the inode's offset divided by [`ALIGN`] (u32).
    pub inode_table_offset: U64,
    /// Offset of the prefetch table: inode numbers (u32).
    pub prefetch_table_offset: U64,
    /// Offset of the blob table.
    pub blob_table_offset: U64,
    /// Entries of the inode table: one for each name in the tree.
    pub inode_table_entries: U32,
    /// Entries of the prefetch table.
    pub prefetch_table_entries: U32,
    /// Bytes of the blob table, with its padding.
    pub blob_table_size: U32,
    /// Entries of the extended blob table: as many as there are blobs.
    pub ext_blob_table_entries: U32,
    /// Offset of the extended blob table.
    pub ext_blob_table_offset: U64,
    /// Zero.
    pub reserved: [u8; SUPER_SIZE - 80],
}

/// Before the id of a blob in the blob table (`RafsV5BlobTable::store`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlobHead {
    /// Where the data to read ahead begins in the blob.
    pub readahead_offset: U32,
    /// How many bytes of it; 0 for none.
    pub readahead_size: U32,
}

/// An entry of the extended blob table (`RafsV5ExtBlobEntry`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtBlob {
    /// Chunks in the blob.
    pub chunk_count: U32,
    /// [`super::super::layout::blob_features`].
    pub features: U32,
    /// End of the last chunk in the uncompressed address space.
    pub uncompressed_size: U64,
    /// Length of the blob's chunk data.
    pub compressed_size: U64,
    /// Zero.
    pub reserved: [u8; 40],
}

/// An inode (`RafsV5Inode`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Inode {
    /// Of a file: digest of its chunks' digests; of a directory: of its children's; of a link: of its target; else of nothing.
    pub digest: [u8; 32],
    /// The directory's inode number; 0 for the root.
    pub parent: U64,
    /// Its own number, [`ROOT_INO`] for the root.
    pub ino: U64,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Zero.
    pub projid: U32,
    /// Type and permissions.
    pub mode: U32,
    /// Length of a file or a link target; of a directory a figure made from its names.
    pub size: U64,
    /// Blocks of 512 bytes.
    pub blocks: U64,
    /// [`inode_flags`].
    pub flags: U64,
    /// Names.
    pub nlink: U32,
    /// Of a directory: inode number of the first child; the others follow, sorted by name.
    pub child_index: U32,
    /// Of a directory: how many children; of a file: how many chunks.
    pub child_count: U32,
    /// Bytes of the name; `/` for the root.
    pub name_size: U16,
    /// Bytes of the link target.
    pub symlink_size: U16,
    /// Device number.
    pub rdev: U32,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: U32,
    /// Seconds of the modification time, two's complement.
    pub mtime: U64,
    /// Zero.
    pub reserved: [u8; 8],
}

/// Before the attributes of an inode (`RafsV5XAttrsTable`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrTable {
    /// Bytes of all pairs with their lengths; not of this word, nor of the padding.
    pub size: U64,
}
