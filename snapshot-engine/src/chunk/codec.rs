//! Digest and compression of one chunk. No I/O.

use std::io;

use sha2::{Digest as _, Sha256};

use crate::model::chunk::{ChunkDigest, Compressor, Digester};

/// The level `nydus-image` compresses at (utils/src/compress/mod.rs, `zstd_compress`).
const ZSTD_LEVEL: i32 = 3;

/// Digest of a chunk's raw bytes.
#[must_use]
pub fn digest(digester: Digester, data: &[u8]) -> ChunkDigest {
    ChunkDigest(match digester {
        Digester::Blake3 => *blake3::hash(data).as_bytes(),
        Digester::Sha256 => Sha256::digest(data).into(),
    })
}

/// A compressor with its tables, to be used for many chunks.
pub struct Encoder {
    compressor: Compressor,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// One for the given algorithm.
    ///
    /// # Errors
    /// When the compressor's tables cannot be had.
    pub fn new(compressor: Compressor) -> io::Result<Encoder> {
        let zstd = match compressor {
            Compressor::Zstd => Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            Compressor::None | Compressor::Lz4Block => None,
        };
        Ok(Encoder { compressor, zstd })
    }

    /// Compresses a chunk into the end of `out`. `false`, and `out` as it was, when that does not make it smaller: such a
    /// chunk is stored raw.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn encode(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let start = out.len();
        let bound = match self.compressor {
            Compressor::None => return Ok(false),
            Compressor::Lz4Block => lz4_flex::block::get_maximum_output_size(data.len()),
            Compressor::Zstd => zstd::zstd_safe::compress_bound(data.len()),
        };
        out.resize(start + bound, 0);
        let stored = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(data, &mut out[start..])?,
            None => lz4_flex::block::compress_into(data, &mut out[start..]).map_err(io::Error::other)?,
        };
        let smaller = stored < data.len();
        out.truncate(if smaller { start + stored } else { start });
        Ok(smaller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_or_refuses() -> io::Result<()> {
        let text: Vec<u8> = (0..100_000u32).map(|i| (i / 7 % 11) as u8).collect();
        let noise: Vec<u8> =
            (0..4096u32).flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        for compressor in [Compressor::Lz4Block, Compressor::Zstd] {
            let mut encoder = Encoder::new(compressor)?;
            let mut out = vec![9];
            assert!(encoder.encode(&text, &mut out)?);
            let back = match compressor {
                Compressor::Zstd => zstd::bulk::decompress(&out[1..], text.len())?,
                _ => lz4_flex::block::decompress(&out[1..], text.len()).map_err(io::Error::other)?,
            };
            assert_eq!(back, text);
            let mut out = vec![9];
            assert!(!encoder.encode(&noise, &mut out)?);
            assert!(!encoder.encode(b"", &mut out)?);
            assert_eq!(out, [9]);
        }
        assert!(!Encoder::new(Compressor::None)?.encode(&text, &mut Vec::new())?);
        Ok(())
    }
}
