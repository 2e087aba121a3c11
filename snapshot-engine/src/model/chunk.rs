//! Names for chunks and the blobs that hold them.
//!
//! ```text
//! file content:  [ChunkRef]  --blob, index-->  Blob.chunks[index] = ChunkInfo { digest, offset, slot, .. }
//! blob file:     | chunk | chunk | ...            (compressed offsets, `ChunkInfo::offset`)
//! EROFS device:  | slot | slot | ...              (4 KiB-aligned uncompressed offsets, `ChunkInfo::slot`)
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// The id of a blob: the sha256 of the whole blob file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// Which chunk of that blob.
    pub index: u32,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkInfo {
    /// Digest of the raw bytes.
    pub digest: ChunkDigest,
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

/// How the chunks of a blob are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Compressor {
    /// Not at all: such an image can be mounted by the kernel's EROFS.
    None,
    /// LZ4 blocks: quick to make and to read.
    Lz4Block,
    /// Zstandard frames, level 3: small.
    #[default]
    Zstd,
}

/// How chunks are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Digester {
    /// BLAKE3, the default of the format.
    #[default]
    Blake3,
    /// SHA-256.
    Sha256,
}

/// A word that names no known option value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {what}: give {allowed}")]
pub struct UnknownWord {
    /// What was given.
    pub given: String,
    /// What it was meant to be.
    pub what: &'static str,
    /// What may be given.
    pub allowed: &'static str,
}

impl FromStr for Compressor {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Compressor, UnknownWord> {
        match word {
            "none" => Ok(Compressor::None),
            "lz4_block" | "lz4" => Ok(Compressor::Lz4Block),
            "zstd" => Ok(Compressor::Zstd),
            _ => Err(UnknownWord {
                given: word.to_owned(),
                what: "compressor",
                allowed: "none, lz4_block or zstd",
            }),
        }
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compressor::None => "none",
            Compressor::Lz4Block => "lz4_block",
            Compressor::Zstd => "zstd",
        })
    }
}

impl FromStr for Digester {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Digester, UnknownWord> {
        match word {
            "blake3" => Ok(Digester::Blake3),
            "sha256" => Ok(Digester::Sha256),
            _ => Err(UnknownWord { given: word.to_owned(), what: "digester", allowed: "blake3 or sha256" }),
        }
    }
}

impl fmt::Display for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Digester::Blake3 => "blake3",
            Digester::Sha256 => "sha256",
        })
    }
}

/// The size of a chunk: a power of two from 4 KiB to 16 MiB, the range RAFS v6 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkSize(u32);

/// A chunk size the format does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk size {0} is not allowed: give a power of two from 4096 to 16777216")]
pub struct BadChunkSize(pub u64);

impl ChunkSize {
    /// Checks a size in bytes.
    ///
    /// # Errors
    /// When it is not a power of two from 4 KiB to 16 MiB.
    pub fn new(bytes: u64) -> Result<ChunkSize, BadChunkSize> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 12..=1 << 24).contains(&size) => Ok(ChunkSize(size)),
            _ => Err(BadChunkSize(bytes)),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The base-2 logarithm.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// How many chunks a file of `size` bytes has.
    #[must_use]
    pub fn count(self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.0))
    }
}

impl Default for ChunkSize {
    fn default() -> ChunkSize {
        ChunkSize(1 << 20)
    }
}

/// How chunks are made. Equal options give equal bytes; they are part of a cached layer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Format {
    /// Compression of the chunks.
    pub compressor: Compressor,
    /// Digest of the chunks.
    pub digester: Digester,
    /// Size of all chunks but the last of a file.
    pub chunk_size: ChunkSize,
}

/// A finished blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its id and file name.
    pub id: BlobId,
    /// How its chunks were made.
    pub format: Format,
    /// Its chunks, in the order of their slots.
    pub chunks: Vec<ChunkInfo>,
    /// Where the chunk data ends and the chunk information begins (`ci_offset`).
    pub data_size: u64,
    /// Length of the blob file.
    pub file_size: u64,
    /// End of the last slot.
    pub uncompressed_size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_checked() {
        assert!(ChunkSize::new(4096).is_ok());
        assert!(ChunkSize::new(16 << 20).is_ok());
        for bad in [0, 1, 2048, 4097, 32 << 20, u64::MAX] {
            assert_eq!(ChunkSize::new(bad), Err(BadChunkSize(bad)));
        }
        assert_eq!(ChunkSize::default().count(0), 0);
        assert_eq!(ChunkSize::default().count((1 << 20) + 1), 2);
    }

    #[test]
    fn words_round_trip() {
        for c in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
            assert_eq!(c.to_string().parse(), Ok(c));
        }
        for d in [Digester::Blake3, Digester::Sha256] {
            assert_eq!(d.to_string().parse(), Ok(d));
        }
        assert!("brotli".parse::<Compressor>().is_err());
    }
}
