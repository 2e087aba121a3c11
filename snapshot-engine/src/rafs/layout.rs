//! The structures of RAFS v6 as they lie in the file; all integers little-endian.
//!
//! Sources: `rafs/src/metadata/layout/v6.rs`, `storage/src/meta/mod.rs`, `storage/src/device.rs` of nydus;
//! `fs/erofs/erofs_fs.h` of Linux.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the superblock is (`EROFS_SUPER_OFFSET`).
pub const SUPER_OFFSET: usize = 1024;
/// Where the device table is: right after both superblocks.
pub const DEVICE_OFFSET: usize = 1408;
/// `EROFS_SUPER_MAGIC_V1`.
pub const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
/// `feature_compat`: an image of RAFS (`EROFS_FEATURE_COMPAT_RAFS_V6`).
pub const COMPAT_RAFS_V6: u32 = 0x4000_0000;
/// `feature_incompat`: chunked files (4) and a device table (8), neither more nor less.
pub const INCOMPAT: u32 = 0xC;
/// An inode's slot; a nid counts them.
pub const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub const INODE_SIZE: u64 = 64;
/// First and last word of a blob's header (`BLOB_CCT_MAGIC`).
pub const BLOB_MAGIC: u32 = 0xb10b_b10b;
/// Blob features: 4 KiB-aligned slots, and no tar header before the data (`ALIGNED | CAP_TAR_TOC`).
pub const BLOB_FEATURES: u32 = 0x4000_0001;
/// `EROFS_CHUNK_FORMAT_INDEXES`.
pub const CHUNK_INDEXES: u32 = 0x20;

/// Bits of [`SuperExt::flags`] (`RafsSuperFlags`, rafs/src/metadata/mod.rs).
pub mod flags {
    /// Chunks are stored raw.
    pub const COMPRESSION_NONE: u64 = 0x1;
    /// Chunks are LZ4 blocks.
    pub const COMPRESSION_LZ4: u64 = 0x2;
    /// Digests are BLAKE3.
    pub const HASH_BLAKE3: u64 = 0x4;
    /// Digests are SHA-256.
    pub const HASH_SHA256: u64 = 0x8;
    /// Owners are those of the inodes.
    pub const EXPLICIT_UID_GID: u64 = 0x10;
    /// Inodes may have extended attributes.
    pub const HAS_XATTR: u64 = 0x20;
    /// Chunks are gzip streams.
    pub const COMPRESSION_GZIP: u64 = 0x40;
    /// Chunks are zstd frames.
    pub const COMPRESSION_ZSTD: u64 = 0x80;
    /// All blobs have the digests of their chunks in themselves.
    pub const INLINED_CHUNK_DIGEST: u64 = 0x100;
    /// The blobs are tar files, blocks have 512 bytes.
    pub const TARFS: u64 = 0x200;
    /// Nothing is encrypted.
    pub const ENCRYPTION_NONE: u64 = 0x100_0000;
    /// Chunks are encrypted.
    pub const ENCRYPTION_AES_128_XTS: u64 = 0x200_0000;
}

/// Bits of [`BlobEntry::features`] and [`BlobHeader::features`] (`BlobFeatures`, storage/src/device.rs).
pub mod blob_features {
    /// Slots are aligned to 4 KiB.
    pub const ALIGNED: u32 = 0x1;
    /// The bootstrap is in the blob.
    pub const INLINED_FS_META: u32 = 0x2;
    /// Chunk information is [`super::ChunkInfoV2`].
    pub const CHUNK_INFO_V2: u32 = 0x4;
    /// Chunks are parts of a gzip stream of others' making.
    pub const ZRAN: u32 = 0x8;
    /// Data and metadata are in separate blobs.
    pub const SEPARATE: u32 = 0x10;
    /// The digests of the chunks are in the blob: nydusd can verify its data.
    pub const INLINED_CHUNK_DIGEST: u32 = 0x20;
    /// The blob is a tar file.
    pub const TARFS: u32 = 0x40;
    /// Small chunks are compressed together.
    pub const BATCH: u32 = 0x80;
    /// Chunks are encrypted.
    pub const ENCRYPTED: u32 = 0x100;
    /// The data is not in a blob of the image's.
    pub const EXTERNAL: u32 = 0x800;
    /// Each part of the blob has a tar header behind it.
    pub const HAS_TAR_HEADER: u32 = 0x1000_0000;
    /// The blob ends with a table of contents.
    pub const HAS_TOC: u32 = 0x2000_0000;
    /// Tar headers and contents are there if their bits are set, and only then.
    pub const CAP_TAR_TOC: u32 = 0x4000_0000;
}

/// Bits of [`ChunkEntry::flags`] (`BlobChunkFlags`).
pub mod chunk_flags {
    /// Stored compressed.
    pub const COMPRESSED: u32 = 0x1;
    /// Encrypted.
    pub const ENCRYPTED: u32 = 0x4;
    /// Compressed together with others.
    pub const BATCH: u32 = 0x8;
    /// `crc32` is set: CRC-32C of the raw bytes. Known to readers from 2.3 on.
    pub const HAS_CRC32: u32 = 0x10;
}

macro_rules! sizes {
    ($($name:ident = $size:literal),* $(,)?) => {
        $(const _: () = assert!(size_of::<$name>() == $size);)*
    };
}

sizes! {
    Super = 128,
    SuperExt = 256,
    Device = 128,
    BlobEntry = 256,
    ChunkEntry = 80,
    Inode = 64,
    InodeCompact = 32,
    ChunkIndex = 8,
    DirentHead = 12,
    XattrHeader = 12,
    XattrEntry = 4,
    ChunkInfoV1 = 16,
    ChunkInfoV2 = 24,
    BlobHeader = 4096,
}

/// The EROFS superblock (`struct erofs_super_block`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of erofs_fs.h under their own names")]
pub struct Super {
    pub magic: U32,
    pub checksum: U32,
    pub feature_compat: U32,
    pub blkszbits: u8,
    pub extslots: u8,
    pub root_nid: U16,
    pub inos: U64,
    pub build_time: U64,
    pub build_time_nsec: U32,
    pub blocks: U32,
    pub meta_blkaddr: U32,
    pub xattr_blkaddr: U32,
    pub uuid: [u8; 16],
    pub volume: [u8; 16],
    pub feature_incompat: U32,
    pub union: U16,
    pub extra_devices: U16,
    pub devt_slotoff: U16,
    pub reserved: [u8; 38],
}

/// The superblock of RAFS behind it (`RafsV6SuperBlockExt`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of RafsV6SuperBlockExt under their own names")]
pub struct SuperExt {
    pub flags: U64,
    pub blob_table_offset: U64,
    pub blob_table_size: U32,
    pub chunk_size: U32,
    pub chunk_table_offset: U64,
    pub chunk_table_size: U64,
    pub prefetch_table_offset: U64,
    pub prefetch_table_size: U32,
    pub padding: U32,
    pub reserved: [u8; 200],
}

/// A slot of the device table (`RafsV6Device`, `struct erofs_deviceslot`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of RafsV6Device under their own names")]
pub struct Device {
    pub blob_id: [u8; 64],
    pub blocks: U32,
    pub mapped_blkaddr: U32,
    pub reserved: [u8; 56],
}

/// An entry of the blob table (`RafsV6Blob`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of RafsV6Blob under their own names")]
pub struct BlobEntry {
    pub blob_id: [u8; 64],
    pub blob_index: U32,
    pub chunk_size: U32,
    pub chunk_count: U32,
    pub compression_algo: U32,
    pub digest_algo: U32,
    pub features: U32,
    pub compressed_size: U64,
    pub uncompressed_size: U64,
    pub toc_size: U32,
    pub ci_compressor: U32,
    pub ci_offset: U64,
    pub ci_compressed_size: U64,
    pub ci_uncompressed_size: U64,
    pub toc_digest: [u8; 32],
    pub meta_digest: [u8; 32],
    pub meta_size: U64,
    pub cipher_iv: [u8; 8],
    pub cipher_algo: U32,
    pub reserved: [u8; 36],
}

/// An entry of the chunk table (`RafsV5ChunkInfo`, used by v6 too).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of RafsV5ChunkInfo under their own names")]
pub struct ChunkEntry {
    pub digest: [u8; 32],
    pub blob_index: U32,
    pub flags: U32,
    pub compressed_size: U32,
    pub uncompressed_size: U32,
    pub compressed_offset: U64,
    pub uncompressed_offset: U64,
    pub file_offset: U64,
    pub index: U32,
    pub crc32: U32,
}

/// An extended inode (`struct erofs_inode_extended`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of erofs_fs.h under their own names")]
pub struct Inode {
    pub format: U16,
    pub xattr_icount: U16,
    pub mode: U16,
    pub reserved: U16,
    pub size: U64,
    pub union: U32,
    pub ino: U32,
    pub uid: U32,
    pub gid: U32,
    pub mtime: U64,
    pub mtime_nsec: U32,
    pub nlink: U32,
    pub reserved2: [u8; 16],
}

/// A compact inode (`struct erofs_inode_compact`): read, never written, because it has no modification time.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of erofs_fs.h under their own names")]
pub struct InodeCompact {
    pub format: U16,
    pub xattr_icount: U16,
    pub mode: U16,
    pub nlink: U16,
    pub size: U32,
    pub reserved: U32,
    pub union: U32,
    pub ino: U32,
    pub uid: U16,
    pub gid: U16,
    pub reserved2: U32,
}

/// A chunk of a file (`struct erofs_inode_chunk_index`; RAFS keeps the chunk's index in the bits EROFS does not look at).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkIndex {
    /// Bits 0 to 15 of the chunk's index in its blob.
    pub index_low: U16,
    /// Device: the blob's index + 1.
    pub device: u8,
    /// Bits 16 to 23 of the chunk's index.
    pub index_high: u8,
    /// Where its slot begins, in blocks.
    pub block: U32,
}

/// The fixed part of a directory entry (`struct erofs_dirent`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirentHead {
    /// The inode it leads to.
    pub nid: U64,
    /// Where the name begins in the block.
    pub name_offset: U16,
    /// `EROFS_FT_*`.
    pub file_type: u8,
    /// Zero.
    pub reserved: u8,
}

/// Before an inode's attributes (`struct erofs_xattr_ibody_header`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrHeader {
    /// Zero: no filter.
    pub name_filter: U32,
    /// Zero: none shared.
    pub shared_count: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Before an attribute's name and value (`struct erofs_xattr_entry`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Length of the name without its prefix.
    pub name_len: u8,
    /// Which prefix.
    pub name_index: u8,
    /// Length of the value.
    pub value_size: U16,
}

/// A chunk in a blob's chunk information (`BlobChunkInfoV1Ondisk`, storage/src/meta/chunk_info_v1.rs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV1 {
    /// Slot (bits 12 to 43), low 20 bits of size - 1 (44 to 63), high bits (8 to 11).
    pub uncompressed: U64,
    /// Offset (bits 0 to 39), high bits of stored size - 1 (40 to 43), low 20 bits (44 to 63).
    pub compressed: U64,
}

/// A chunk in a blob's chunk information, second form (`BlobChunkInfoV2Ondisk`, storage/src/meta/chunk_info_v2.rs). Others
/// write it for batched, encrypted and gzip-ranged blobs; it is read, never written, here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV2 {
    /// Slot / 4096 (bits 0 to 31), size - 1 (32 to 55), flags (56 to 63): compressed 1, zran 2, batch 4, encrypted 8, CRC 0x10.
    pub uncompressed: U64,
    /// Offset (bits 0 to 39), stored size (40 to 63).
    pub compressed: U64,
    /// CRC, or index and offset in a batch or zran context.
    pub data: U64,
}

/// The last block of a blob (`BlobCompressionContextHeader`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of BlobCompressionContextHeader under their own names")]
pub struct BlobHeader {
    pub magic: U32,
    pub features: U32,
    pub ci_compressor: U32,
    pub ci_entries: U32,
    pub ci_offset: U64,
    pub ci_compressed_size: U64,
    pub ci_uncompressed_size: U64,
    pub zran_offset: U64,
    pub zran_size: U64,
    pub zran_count: U32,
    pub reserved: [u8; 4032],
    pub magic2: U32,
}
