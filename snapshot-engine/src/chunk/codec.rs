//! Digest and compression of one chunk. No I/O.

use std::io::{self, Write as _};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};

use crate::model::chunk::{ChunkDigest, Compressor, Digester};

/// Digest of a chunk's raw bytes.
#[must_use]
pub fn digest(digester: Digester, data: &[u8]) -> ChunkDigest {
    ChunkDigest(match digester {
        Digester::Blake3 => *blake3::hash(data).as_bytes(),
        Digester::Sha256 => Sha256::digest(data).into(),
    })
}

/// A compressor with its tables, to be used for many chunks.
pub enum Encoder {
    /// Stores everything raw.
    None,
    /// LZ4 blocks.
    Lz4Block,
    /// Gzip streams without a name or time.
    Gzip,
    /// Zstandard frames.
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    /// One for the given algorithm.
    ///
    /// # Errors
    /// When the compressor's tables cannot be had.
    pub fn new(compressor: Compressor) -> io::Result<Encoder> {
        Ok(match compressor {
            Compressor::None => Encoder::None,
            Compressor::Lz4Block => Encoder::Lz4Block,
            Compressor::Gzip => Encoder::Gzip,
            Compressor::Zstd(level) => Encoder::Zstd(zstd::bulk::Compressor::new(level.get())?),
        })
    }

    /// Compresses a chunk into the end of `out`. `false`, and `out` as it was, when that does not make it smaller: such a
    /// chunk is stored raw.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn encode(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let start = out.len();
        match self {
            Encoder::None => return Ok(false),
            Encoder::Lz4Block => {
                out.resize(start + lz4_flex::block::get_maximum_output_size(data.len()), 0);
                let stored =
                    lz4_flex::block::compress_into(data, &mut out[start..]).map_err(io::Error::other)?;
                out.truncate(start + stored);
            }
            Encoder::Gzip => {
                let mut gzip = GzBuilder::new().write(&mut *out, Compression::default());
                gzip.write_all(data)?;
                gzip.finish()?;
            }
            Encoder::Zstd(zstd) => {
                out.resize(start + zstd::zstd_safe::compress_bound(data.len()), 0);
                let stored = zstd.compress_to_buffer(data, &mut out[start..])?;
                out.truncate(start + stored);
            }
        }
        let smaller = out.len() - start < data.len();
        if !smaller {
            out.truncate(start);
        }
        Ok(smaller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::format::ZstdLevel;
    use std::io::Read as _;

    #[test]
    fn round_trips_or_refuses() -> io::Result<()> {
        let text: Vec<u8> = (0..100_000u32).map(|i| (i / 7 % 11) as u8).collect();
        let noise: Vec<u8> =
            (0..4096u32).flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        let best = ZstdLevel::new(19).map(Compressor::Zstd).unwrap();
        for compressor in [Compressor::Lz4Block, Compressor::Gzip, Compressor::zstd(), best] {
            let mut encoder = Encoder::new(compressor)?;
            let mut out = vec![9];
            assert!(encoder.encode(&text, &mut out)?);
            let back = match compressor {
                Compressor::Zstd(_) => zstd::bulk::decompress(&out[1..], text.len())?,
                Compressor::Gzip => {
                    let mut back = Vec::new();
                    flate2::read::GzDecoder::new(&out[1..]).read_to_end(&mut back)?;
                    back
                }
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
