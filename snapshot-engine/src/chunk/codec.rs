//! Digest and compression of one chunk. No I/O.

use std::io::{self, Write as _};
use std::ops::Range;

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

    /// Compresses a chunk and keeps it behind what `out` has. `None`, and `out` as it was, when that does not make it smaller: such a
    /// chunk is stored raw.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn encode(&mut self, data: &[u8], out: &mut Scratch) -> io::Result<Option<Range<usize>>> {
        let stored = match self {
            Encoder::None => return Ok(None),
            Encoder::Lz4Block => {
                let room = out.room(lz4_flex::block::get_maximum_output_size(data.len()));
                lz4_flex::block::compress_into(data, room).map_err(io::Error::other)?
            }
            Encoder::Gzip => {
                let mut gzip = GzBuilder::new().write(Vec::new(), Compression::default());
                gzip.write_all(data)?;
                let bytes = gzip.finish()?;
                out.room(bytes.len()).copy_from_slice(&bytes);
                bytes.len()
            }
            Encoder::Zstd(zstd) => {
                zstd.compress_to_buffer(data, out.room(zstd::zstd_safe::compress_bound(data.len())))?
            }
        };
        Ok((stored < data.len()).then(|| out.keep(stored)))
    }
}

/// Room for compressed chunks, one behind the other. It is cleared once, not for each chunk: clearing as much as a chunk may need would push the chunk itself out of the
/// core's cache before the compressor has read it.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    used: usize,
}

impl Scratch {
    /// Forgets what is kept, not the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// `len` bytes behind what is kept. What is in them is left from before.
    fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.used..end]
    }

    /// Keeps the first `len` bytes of the last room; where they are.
    fn keep(&mut self, len: usize) -> Range<usize> {
        let start = self.used;
        self.used += len;
        start..self.used
    }

    /// What was kept there.
    #[must_use]
    pub fn bytes(&self, kept: &Range<usize>) -> &[u8] {
        &self.bytes[kept.clone()]
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
            let mut out = Scratch::default();
            let first = encoder.encode(&text, &mut out)?.unwrap();
            assert_eq!(encoder.encode(&noise, &mut out)?, None);
            assert_eq!(encoder.encode(b"", &mut out)?, None);
            let second = encoder.encode(&text, &mut out)?.unwrap();
            assert_eq!((first.start, first.end), (0, second.start));
            assert_eq!(out.bytes(&first), out.bytes(&second));
            let packed = out.bytes(&second);
            let back = match compressor {
                Compressor::Zstd(_) => zstd::bulk::decompress(packed, text.len())?,
                Compressor::Gzip => {
                    let mut back = Vec::new();
                    flate2::read::GzDecoder::new(packed).read_to_end(&mut back)?;
                    back
                }
                _ => lz4_flex::block::decompress(packed, text.len()).map_err(io::Error::other)?,
            };
            assert_eq!(back, text);
        }
        assert_eq!(Encoder::new(Compressor::None)?.encode(&text, &mut Scratch::default())?, None);
        Ok(())
    }
}
