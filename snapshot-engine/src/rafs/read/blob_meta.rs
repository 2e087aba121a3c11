//! The end of a blob: what the blob itself says of its chunks. The drawing is in `rafs/blob.rs`.

use serde::Serialize;

use crate::model::chunk::{BLOCK, Compressor};

use super::super::layout::{BLOB_MAGIC, BlobHeader, ChunkInfoV1, ChunkInfoV2, blob_features};
use super::bytes::Bytes;
use super::{ReadError, superblock};

/// Where a blob keeps the places of its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaPlace {
    /// The blob's features; one of them says which form the places have.
    pub features: u32,
    /// How many chunks.
    pub chunks: u32,
    /// How the places are compressed.
    pub compressor: Compressor,
    /// Offset in the blob; the header follows them, without padding.
    pub offset: u64,
    /// Bytes in the blob.
    pub compressed_size: u64,
    /// Bytes uncompressed.
    pub uncompressed_size: u64,
}

impl MetaPlace {
    /// Whether the numbers go together (`RafsV6Blob::validate`).
    pub(super) fn check(&self, at: u64) -> Result<(), ReadError> {
        let entry = if self.features & blob_features::CHUNK_INFO_V2 != 0 {
            size_of::<ChunkInfoV2>()
        } else {
            size_of::<ChunkInfoV1>()
        };
        let fits = self.uncompressed_size == u64::from(self.chunks) * entry as u64
            && self.compressed_size <= self.uncompressed_size
            && self.offset.checked_add(self.compressed_size).is_some()
            && (self.compressor != Compressor::None || self.compressed_size == self.uncompressed_size);
        if fits { Ok(()) } else { Err(ReadError::Damaged { what: "the size of a blob's metadata", at }) }
    }
}

/// A chunk as its blob tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MetaChunk {
    /// Raw bytes.
    pub size: u32,
    /// Bytes in the blob.
    pub stored: u32,
    /// Where in the blob.
    pub offset: u64,
    /// Where in its uncompressed address space.
    pub slot: u64,
}

/// The places of a blob's chunks, uncompressed.
#[derive(Debug, Clone, Copy)]
pub struct BlobMeta<'a> {
    bytes: Bytes<'a>,
    chunks: u32,
    second_form: bool,
}

impl<'a> BlobMeta<'a> {
    /// `bytes` are what `place` speaks of, uncompressed.
    ///
    /// # Errors
    /// When there are not as many as it says.
    pub fn new(bytes: &'a [u8], place: &MetaPlace) -> Result<BlobMeta<'a>, ReadError> {
        place.check(0)?;
        if bytes.len() as u64 != place.uncompressed_size {
            return Err(ReadError::Damaged { what: "the length of a blob's metadata", at: place.offset });
        }
        let second_form = place.features & blob_features::CHUNK_INFO_V2 != 0;
        Ok(BlobMeta { bytes: Bytes(bytes), chunks: place.chunks, second_form })
    }

    /// How many chunks.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.chunks
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// One chunk.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn get(&self, index: u32) -> Result<MetaChunk, ReadError> {
        const LOW: u64 = 0xf_ffff;
        const OFFSET: u64 = 0xff_ffff_ffff;
        let what = "the place of a chunk";
        if self.second_form {
            let at = u64::from(index) * size_of::<ChunkInfoV2>() as u64;
            let raw: &ChunkInfoV2 = self.bytes.one(what, at)?;
            let (u, c) = (raw.uncompressed.get(), raw.compressed.get());
            return Ok(MetaChunk {
                size: (u >> 32 & 0xff_ffff) as u32 + 1,
                stored: (c >> 40) as u32,
                offset: c & OFFSET,
                slot: (u & 0xffff_ffff) * BLOCK,
            });
        }
        let at = u64::from(index) * size_of::<ChunkInfoV1>() as u64;
        let raw: &ChunkInfoV1 = self.bytes.one(what, at)?;
        let (u, c) = (raw.uncompressed.get(), raw.compressed.get());
        Ok(MetaChunk {
            size: ((u >> 8 & 0xf) << 20 | u >> 44 & LOW) as u32 + 1,
            stored: ((c >> 40 & 0xf) << 20 | c >> 44 & LOW) as u32 + 1,
            offset: c & OFFSET,
            slot: u & 0xfff_ffff_f000,
        })
    }
}

/// The place that a blob's own header names; `bytes` are the header's 4096.
///
/// # Errors
/// When it is no header.
pub fn header(bytes: &[u8]) -> Result<MetaPlace, ReadError> {
    let header: &BlobHeader = Bytes(bytes).one("the header of a blob", 0)?;
    if header.magic.get() != BLOB_MAGIC || header.magic2.get() != BLOB_MAGIC {
        return Err(ReadError::Damaged { what: "the header of a blob (its magic number)", at: 0 });
    }
    let place = MetaPlace {
        features: header.features.get(),
        chunks: header.ci_entries.get(),
        compressor: superblock::compressor(header.ci_compressor.get(), 0)?,
        offset: header.ci_offset.get(),
        compressed_size: header.ci_compressed_size.get(),
        uncompressed_size: header.ci_uncompressed_size.get(),
    };
    place.check(0)?;
    Ok(place)
}
