//! The blobs and chunks that a tree's files refer to: what the tables of a bootstrap hold.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::model::chunk::{
    BLOCK, Blob, BlobIndex, ChunkDigest, ChunkInfo, ChunkRef, Compressor, Digester, Format,
};
use crate::model::tree::{Kind, NodeId, Tree};

use super::layout::{ChunkEntry, ChunkIndex, blob_features, chunk_flags, flags};
use super::{MAX_BLOBS, RafsError};

/// Blobs and chunks that files refer to.
pub(super) struct Used<'a> {
    blobs: &'a [Blob],
    /// Blobs by first use.
    pub(super) order: Vec<BlobIndex>,
    /// Position in `order` of each of `blobs`.
    numbers: Vec<Option<u8>>,
    /// In the order of the table: by digest, blob, index.
    pub(super) chunks: Vec<UsedChunk>,
}

/// A chunk of the table.
pub(super) struct UsedChunk {
    digest: ChunkDigest,
    /// Of its blob.
    number: u8,
    chunk: ChunkRef,
    /// Where it is in the first file that has it.
    offset: u64,
}

impl<'a> Used<'a> {
    /// Looks at the files of `nodes`, in this order, and checks that their chunks are there and make up their size. `path` names
    /// one by the number that comes with it.
    pub(super) fn collect(
        tree: &Tree,
        nodes: impl IntoIterator<Item = (usize, NodeId)>,
        blobs: &'a [Blob],
        format: Format,
        path: impl Fn(usize) -> Vec<u8>,
    ) -> Result<Used<'a>, RafsError> {
        let mut used =
            Used { blobs, order: Vec::new(), numbers: vec![None; blobs.len()], chunks: Vec::new() };
        // Of each blob that is used, which of its chunks are here already.
        let mut seen: Vec<Vec<bool>> = vec![Vec::new(); blobs.len()];
        for (at, id) in nodes {
            let Some(Kind::File(content)) = tree.get(id).map(|n| &n.kind) else { continue };
            let bad = || RafsError::Chunks { path: path(at) };
            if format.chunk_size.count(content.size) != content.chunks.len() as u64 {
                return Err(bad());
            }
            let mut offset = 0;
            for chunk in &content.chunks {
                let (blob, info) = used.find(chunk).ok_or_else(bad)?;
                let want = (content.size.saturating_sub(offset)).min(u64::from(format.chunk_size.bytes()));
                if u64::from(info.size) != want {
                    return Err(bad());
                }
                if !blob.format.goes_with(&format) {
                    return Err(RafsError::MixedFormats);
                }
                let seen = seen.get_mut(usize::from(chunk.blob.0)).ok_or_else(bad)?;
                let number = match used.number(chunk.blob) {
                    Some(number) => number,
                    None => {
                        seen.resize(blob.chunks.len(), false);
                        used.add(chunk.blob)?
                    }
                };
                // It was found in this blob, so it has a place here.
                let first =
                    seen.get_mut(chunk.index as usize).is_some_and(|seen| !std::mem::replace(seen, true));
                if first {
                    used.chunks.push(UsedChunk { digest: info.digest, number, chunk: *chunk, offset });
                }
                offset += want;
            }
        }
        // The first bytes decide nearly always, and two numbers are compared faster than two digests.
        let first = |digest: &ChunkDigest| digest.0.first_chunk().copied().map(u64::from_be_bytes);
        used.chunks
            .sort_unstable_by_key(|used| (first(&used.digest), used.digest, used.number, used.chunk.index));
        Ok(used)
    }

    fn add(&mut self, blob: BlobIndex) -> Result<u8, RafsError> {
        let number = self.order.len();
        if number >= MAX_BLOBS {
            return Err(RafsError::TooManyBlobs(number + 1));
        }
        self.order.push(blob);
        if let Some(slot) = self.numbers.get_mut(usize::from(blob.0)) {
            *slot = Some(number as u8);
        }
        Ok(number as u8)
    }

    /// Position in the table of a blob that is used.
    fn number(&self, blob: BlobIndex) -> Option<u8> {
        self.numbers.get(usize::from(blob.0)).copied().flatten()
    }

    fn find(&self, chunk: &ChunkRef) -> Option<(&'a Blob, &'a ChunkInfo)> {
        let blob = self.blobs.get(usize::from(chunk.blob.0))?;
        Some((blob, blob.chunks.get(chunk.index as usize)?))
    }

    /// The blobs in the order of the table.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &'a Blob> {
        self.order.iter().filter_map(|index| self.blobs.get(usize::from(index.0)))
    }

    /// The flags of a superblock with these blobs.
    pub(super) fn super_flags(&self, format: Format) -> u64 {
        let compression = match format.compressor {
            Compressor::None => flags::COMPRESSION_NONE,
            Compressor::Lz4Block => flags::COMPRESSION_LZ4,
            Compressor::Gzip => flags::COMPRESSION_GZIP,
            Compressor::Zstd(_) => flags::COMPRESSION_ZSTD,
        };
        let hash = match format.digester {
            Digester::Blake3 => flags::HASH_BLAKE3,
            Digester::Sha256 => flags::HASH_SHA256,
        };
        let have_digests = !self.order.is_empty()
            && self.blobs().all(|blob| blob.tail.features & blob_features::INLINED_CHUNK_DIGEST != 0);
        let digests = if have_digests { flags::INLINED_CHUNK_DIGEST } else { 0 };
        compression | hash | digests | flags::EXPLICIT_UID_GID | flags::HAS_XATTR | flags::ENCRYPTION_NONE
    }

    /// What a file of v6 says of a chunk.
    pub(super) fn index(&self, chunk: &ChunkRef) -> ChunkIndex {
        let (index, slot) = self.find(chunk).map_or((0, 0), |(_, info)| (info.index, info.slot));
        ChunkIndex {
            index_low: U16::new((index & 0xffff) as u16),
            device: self.number(chunk.blob).unwrap_or(0) + 1,
            index_high: (index >> 16) as u8,
            block: U32::new((slot / BLOCK) as u32),
        }
    }

    /// What is said of a chunk at an offset of a file: in v5 behind each inode, in v6 in a table of its own.
    pub(super) fn entry(&self, chunk: &ChunkRef, file_offset: u64) -> Option<ChunkEntry> {
        let (_, info) = self.find(chunk)?;
        let number = self.number(chunk.blob)?;
        Some(ChunkEntry {
            digest: info.digest.0,
            blob_index: U32::new(u32::from(number)),
            flags: U32::new(if info.is_compressed() { chunk_flags::COMPRESSED } else { 0 }),
            compressed_size: U32::new(info.stored),
            uncompressed_size: U32::new(info.size),
            compressed_offset: U64::new(info.offset),
            uncompressed_offset: U64::new(info.slot),
            file_offset: U64::new(file_offset),
            index: U32::new(info.index),
            crc32: U32::ZERO,
        })
    }

    /// The digest of a chunk.
    pub(super) fn digest(&self, chunk: &ChunkRef) -> ChunkDigest {
        self.find(chunk).map_or(ChunkDigest([0; 32]), |(_, info)| info.digest)
    }

    pub(super) fn write_chunk_table(&self, out: &mut [u8]) {
        let entries = self.chunks.iter().filter_map(|used| self.entry(&used.chunk, used.offset));
        for (to, entry) in out.chunks_exact_mut(size_of::<ChunkEntry>()).zip(entries) {
            to.copy_from_slice(entry.as_bytes());
        }
    }
}
