//! Names for chunks and the blobs that hold them.
//!
//! ```text
//! file content:  [ChunkRef]  --blob, index-->  Blob.chunks[index] = ChunkInfo { digest, offset, slot, .. }
//! blob file:     | chunk | chunk | ...            (compressed offsets, `ChunkInfo::offset`)
//! EROFS device:  | slot | slot | ...              (4 KiB-aligned uncompressed offsets, `ChunkInfo::slot`)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::format::{BadChunkSize, BlobLayout, ChunkSize, Compressor, Digester, Format, FsVersion};

/// The block size of the images and the alignment of a chunk's slot.
pub const BLOCK: u64 = 4096;
/// The most chunks a blob may hold: an index takes 24 bits (`EROFS` chunk index of RAFS v6).
pub const MAX_CHUNKS_PER_BLOB: usize = (1 << 24) - 1;

/// The digest of a chunk's raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkDigest(pub [u8; 32]);

impl fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The id of a blob: the sha256 of the whole blob file, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId(pub [u8; 32]);

impl BlobId {
    /// That of a blob which is still being written. A bootstrap inside its own blob cannot know the id, and holds as many `x`
    /// instead (builder/src/core, `dump_bootstrap`); readers then take the name of the file they were given.
    pub const NOT_YET: BlobId = BlobId([0; 32]);
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == BlobId::NOT_YET {
            return f.write_str(&"x".repeat(64));
        }
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A position in a table of blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobIndex(pub u16);

/// One chunk of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Which blob of the table that goes with the tree.
    pub blob: BlobIndex,
    /// Position in [`Blob::chunks`].
    pub index: u32,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkInfo {
    /// Digest of the raw bytes.
    pub digest: ChunkDigest,
    /// Its number in the blob.
    pub index: u32,
    /// Raw bytes.
    pub size: u32,
    /// Bytes in the blob; equal to `size` when stored raw.
    pub stored: u32,
    /// Where it begins in the blob file.
    pub offset: u64,
    /// Where it begins in the uncompressed address space, a multiple of [`BLOCK`].
    pub slot: u64,
}

impl ChunkInfo {
    /// Whether the blob holds it compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.stored != self.size
    }
}

/// What a blob has behind its chunks, as the tables of a bootstrap say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobTail {
    /// Which parts there are (`BlobFeatures`).
    pub features: u32,
    /// How the chunk information is compressed (`compress::Algorithm`): 0 for not at all, 3 for zstd.
    pub info_compressor: u32,
    /// Bytes of the chunk information in the blob; 0 where there is none.
    pub info_stored: u64,
    /// Its bytes uncompressed.
    pub info_size: u64,
    /// Bytes of the table of contents with its tar header; 0 where there is none.
    pub toc_size: u32,
    /// SHA-256 of those bytes.
    pub toc_digest: [u8; 32],
}

/// A finished blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its id and file name.
    pub id: BlobId,
    /// How its chunks were made.
    pub format: Format,
    /// Its chunks, in the order of their slots; of a blob that is known from a bootstrap those the bootstrap names.
    pub chunks: Vec<ChunkInfo>,
    /// How many chunks it has.
    pub chunk_count: u32,
    /// Where the part with the chunk data ends, its tar header included, and the chunk information begins (`ci_offset`).
    pub data_end: u64,
    /// Length of the blob file; of one that is being written, the place of the bootstrap in it.
    pub file_size: u64,
    /// End of the last slot.
    pub uncompressed_size: u64,
    /// What it has besides chunks.
    pub tail: BlobTail,
}
