//! What follows the chunk data in a blob (builder/src/core/blob.rs, `Blob::dump_meta_data`; builder/src/lib.rs, `dump_bootstrap`).
//!
//! ```text
//! v6 plain      | data | chunk information | header |
//! v6 toc        | data | T | chunk information | header | T | digests | T | contents | T |
//! v6 inline     | data | T | chunk information | header | T | bootstrap | T |
//! v6 inline_toc | data | T | chunk information | header | T | digests | T | bootstrap, zstd | T | contents | T |
//! v5 plain      | data |
//! v5 inline     | data | T | bootstrap | T |
//! ```
//!
//! T is a tar header ([`super::toc`]). Chunk information is [`ChunkInfoV1`] in the order of the slots, 16 bytes for up to 1 MiB,
//! stored raw whatever the chunks' compression.

use std::io;

use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::model::chunk::{Blob, BlobId, BlobTail, ChunkInfo, Format, FsVersion};

use super::layout::{BLOB_MAGIC, BlobHeader, ChunkInfoV1, blob_features};
use super::toc::{self, TocEntry};

/// The level of the bootstrap's compression in a blob with a table of contents, as that of `nydus-image`.
const BOOTSTRAP_LEVEL: i32 = 3;

/// The part of a blob behind its chunk data, as it grows.
#[derive(Debug)]
pub struct Ending {
    format: Format,
    chunks: Vec<ChunkInfo>,
    data_size: u64,
    uncompressed_size: u64,
    features: u32,
    bytes: Vec<u8>,
    contents: Vec<TocEntry>,
}

impl Ending {
    /// Everything up to the place of the bootstrap. `data` has been fed the chunk data, `data_size` bytes of it.
    #[must_use]
    pub fn new(
        format: Format,
        chunks: Vec<ChunkInfo>,
        data_size: u64,
        uncompressed_size: u64,
        data: &Sha256,
    ) -> Ending {
        let features = features(format);
        let mut ending = Ending {
            format,
            chunks,
            data_size,
            uncompressed_size,
            features,
            bytes: Vec::new(),
            contents: Vec::new(),
        };
        if ending.has(blob_features::HAS_TAR_HEADER) {
            let header = toc::tar_header(toc::IMAGE_BLOB, data_size);
            // With its tar header: `Blob::finalize_blob_data` takes the digest after it has written that. Nobody checks it.
            let digest = data.clone().chain_update(header).finalize().into();
            ending.bytes.extend_from_slice(&header);
            ending.contents.push(toc::packed_entry(
                toc::IMAGE_BLOB,
                toc::flags::NONE,
                digest,
                0,
                data_size,
                uncompressed_size,
            ));
        }
        if format.version == FsVersion::V6 {
            ending.add_information();
        }
        ending
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    fn position(&self) -> u64 {
        self.data_size + self.bytes.len() as u64
    }

    /// Where the part with the data ends: what the chunk information's place is, or would be.
    fn data_end(&self) -> u64 {
        let header = if self.has(blob_features::HAS_TAR_HEADER) { size_of::<toc::TarHeader>() } else { 0 };
        self.data_size + header as u64
    }

    /// Puts a part with its tar header.
    fn put(&mut self, name: &str, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        if self.has(blob_features::HAS_TAR_HEADER) {
            self.bytes.extend_from_slice(&toc::tar_header(name, part.len() as u64));
        }
    }

    fn add_information(&mut self) {
        let at = self.position();
        let information: Vec<u8> = self.chunks.iter().flat_map(|c| encode(c).as_bytes().to_vec()).collect();
        let header = BlobHeader {
            magic: U32::new(BLOB_MAGIC),
            features: U32::new(self.features),
            ci_compressor: U32::ZERO,
            ci_entries: U32::new(self.chunks.len() as u32),
            ci_offset: U64::new(at),
            ci_compressed_size: U64::new(information.len() as u64),
            ci_uncompressed_size: U64::new(information.len() as u64),
            zran_offset: U64::ZERO,
            zran_size: U64::ZERO,
            zran_count: U32::ZERO,
            reserved: [0; 4032],
            magic2: U32::new(BLOB_MAGIC),
        };
        self.contents.push(toc::entry(toc::BLOB_META, at, &information));
        let header_at = at + information.len() as u64;
        self.contents.push(toc::entry(toc::BLOB_META_HEADER, header_at, header.as_bytes()));
        self.put(toc::BLOB_META, &[&information, header.as_bytes()].concat());
        if self.has(blob_features::HAS_TOC) {
            let at = self.position();
            let digests: Vec<u8> = self.chunks.iter().flat_map(|c| c.digest.0).collect();
            self.contents.push(toc::entry(toc::BLOB_DIGEST, at, &digests));
            self.put(toc::BLOB_DIGEST, &digests);
        }
    }

    /// The blob as a bootstrap inside it has to describe it.
    #[must_use]
    pub fn unfinished(&self) -> Blob {
        self.describe(self.chunks.clone(), self.features, 0, [0; 32])
    }

    /// Adds the bootstrap that belongs inside.
    ///
    /// # Errors
    /// When it cannot be compressed.
    pub fn add_bootstrap(&mut self, bootstrap: &[u8]) -> io::Result<()> {
        let at = self.position();
        if !self.has(blob_features::HAS_TOC) {
            self.put(toc::IMAGE_BOOT, bootstrap);
            return Ok(());
        }
        let packed = zstd::bulk::compress(bootstrap, BOOTSTRAP_LEVEL)?;
        let (flags, stored) = if packed.len() < bootstrap.len() {
            (toc::flags::ZSTD, packed.as_slice())
        } else {
            (toc::flags::NONE, bootstrap)
        };
        let digest = Sha256::digest(bootstrap).into();
        let (size, stored_size) = (bootstrap.len() as u64, stored.len() as u64);
        self.contents.push(toc::packed_entry(toc::IMAGE_BOOT, flags, digest, at, stored_size, size));
        self.put(toc::IMAGE_BOOT, stored);
        Ok(())
    }

    /// All bytes behind the data, and the blob; its id is left to whoever hashes the file.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Blob) {
        let (mut toc_size, mut toc_digest) = (0, [0; 32]);
        if self.has(blob_features::HAS_TOC) {
            let start = self.bytes.len();
            let contents = std::mem::take(&mut self.contents);
            self.put(toc::TOC, contents.as_bytes());
            let whole = &self.bytes[start..];
            (toc_size, toc_digest) = (whole.len() as u32, Sha256::digest(whole).into());
        }
        // A bootstrap outside names the blob by its id: to readers it has none inside (builder/src/core/context.rs, `BlobContext::from`).
        let features = self.features & !blob_features::INLINED_FS_META;
        let chunks = std::mem::take(&mut self.chunks);
        let blob = self.describe(chunks, features, toc_size, toc_digest);
        (self.bytes, blob)
    }

    fn describe(&self, chunks: Vec<ChunkInfo>, features: u32, toc_size: u32, toc_digest: [u8; 32]) -> Blob {
        let info_size = match self.format.version {
            FsVersion::V5 => 0,
            FsVersion::V6 => (chunks.len() * size_of::<ChunkInfoV1>()) as u64,
        };
        Blob {
            id: BlobId::NOT_YET,
            format: self.format,
            chunk_count: chunks.len() as u32,
            chunks,
            data_end: self.data_end(),
            file_size: self.position(),
            uncompressed_size: self.uncompressed_size,
            tail: BlobTail {
                features,
                info_compressor: 0,
                info_stored: info_size,
                info_size,
                toc_size,
                toc_digest,
            },
        }
    }
}

/// What a blob of this format has.
fn features(format: Format) -> u32 {
    let mut features = blob_features::CAP_TAR_TOC;
    if format.version == FsVersion::V6 {
        features |= blob_features::ALIGNED;
    }
    if format.layout.has_bootstrap() {
        features |= blob_features::INLINED_FS_META | blob_features::HAS_TAR_HEADER;
    }
    if format.layout.has_toc() {
        features |=
            blob_features::INLINED_CHUNK_DIGEST | blob_features::HAS_TOC | blob_features::HAS_TAR_HEADER;
    }
    features
}

/// Sizes are at most 16 MiB (24 bits after the -1), offsets below 2^40, slots below 2^44: see `BlobChunkInfoV1Ondisk`.
fn encode(chunk: &ChunkInfo) -> ChunkInfoV1 {
    const LOW: u64 = 0xf_ffff;
    let size = u64::from(chunk.size.saturating_sub(1));
    let stored = u64::from(chunk.stored.saturating_sub(1));
    ChunkInfoV1 {
        uncompressed: U64::new((size & LOW) << 44 | chunk.slot & 0xfff_ffff_f000 | (size >> 20) << 8),
        compressed: U64::new(
            (stored & LOW) << 44 | (stored >> 20 & 0xf) << 40 | chunk.offset & 0xff_ffff_ffff,
        ),
    }
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
