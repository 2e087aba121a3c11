//! One chunk: read, decompressed, compared with its digest.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::chunk::codec::digest;
use crate::model::chunk::{Compressor, Digester};
use crate::rafs::read::{BlobInfo, Chunk};

/// What is wrong with a chunk.
#[derive(Debug, thiserror::Error)]
pub enum ChunkFault {
    /// The blob could not be read.
    #[error("the blob cannot be read: {0}")]
    Read(io::Error),
    /// The blob ends before the chunk does.
    #[error("the blob is cut off")]
    Short,
    /// It does not decompress to what it should.
    #[error("it does not decompress")]
    Decompress,
    /// It is something else.
    #[error("its digest is another one")]
    Digest,
    /// Only the checksum is wrong: nydusd would not give the chunk out.
    #[error("its CRC is another one")]
    Crc,
}

/// Reads chunks. Holds two chunks' memory at most: one to be used by one thread, for many chunks.
#[derive(Default)]
pub struct Decoder {
    stored: Vec<u8>,
    raw: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// A chunk's raw bytes, verified.
    ///
    /// # Errors
    /// When they are not what the bootstrap says.
    pub fn read(&mut self, file: &File, blob: &BlobInfo, chunk: &Chunk) -> Result<&[u8], ChunkFault> {
        // Both are at most 16 MiB: `rafs::read` has checked them.
        let (stored, size) = (chunk.info.stored as usize, chunk.info.size as usize);
        self.stored.resize(stored, 0);
        file.read_exact_at(&mut self.stored, chunk.info.offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ChunkFault::Short,
            _ => ChunkFault::Read(e),
        })?;
        if chunk.compressed {
            self.raw.resize(size, 0);
            let done = decompress(&mut self.zstd, blob.compressor, &self.stored, &mut self.raw);
            if done != Some(size) {
                return Err(ChunkFault::Decompress);
            }
        }
        let raw = if chunk.compressed { &self.raw } else { &self.stored };
        verify(blob.digester, chunk, raw)?;
        Ok(raw)
    }
}

/// How many bytes came of it; `None` when it is damaged or too much.
fn decompress(
    zstd: &mut Option<zstd::bulk::Decompressor<'static>>,
    compressor: Compressor,
    stored: &[u8],
    raw: &mut [u8],
) -> Option<usize> {
    match compressor {
        // A compressed chunk of a blob that is not compressed.
        Compressor::None => None,
        Compressor::Lz4Block => lz4_flex::block::decompress_into(stored, raw).ok(),
        Compressor::Zstd(_) => {
            if zstd.is_none() {
                *zstd = zstd::bulk::Decompressor::new().ok();
            }
            zstd.as_mut()?.decompress_to_buffer(stored, raw).ok()
        }
        Compressor::Gzip => {
            let mut gzip = flate2::read::GzDecoder::new(stored);
            gzip.read_exact(raw).ok()?;
            // The checksum at the end is compared when the end is read.
            (gzip.read(&mut [0]).ok()? == 0).then_some(raw.len())
        }
    }
}

fn verify(digester: Digester, chunk: &Chunk, raw: &[u8]) -> Result<(), ChunkFault> {
    if digest(digester, raw) != chunk.info.digest {
        return Err(ChunkFault::Digest);
    }
    match chunk.crc32 {
        Some(crc) if crc != crc32c::crc32c(raw) => Err(ChunkFault::Crc),
        _ => Ok(()),
    }
}
