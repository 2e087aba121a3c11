//! A file as the bytes it stands for: decompressed, hashed, counted.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

/// Everything read through it is hashed and counted.
pub(super) struct Hashed<R> {
    inner: R,
    sha: Sha256,
    len: u64,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, sha: Sha256::new(), len: 0 }
    }

    /// Reads what is left, and gives the length and the digest of all.
    pub(super) fn finish(mut self) -> io::Result<(u64, [u8; 32])> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.len, self.sha.finalize().into()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.sha.update(&out[..n]);
        self.len += n as u64;
        Ok(n)
    }
}

/// How a layer is compressed: its first bytes say it, as runtimes see it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(super) fn of(file: &File) -> io::Result<Packing> {
        let mut magic = [0; 4];
        let known = file.read_at(&mut magic, 0)?;
        Ok(match &magic[..known] {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            _ => Packing::Plain,
        })
    }

    /// The bytes that `stored` stands for. Memory is bounded: deflate looks back 32 KiB, and zstd refuses windows of more than 128 MiB
    /// (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
    pub(super) fn open<'a>(self, stored: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let stored = BufReader::with_capacity(1 << 20, stored);
        Ok(match self {
            Packing::Plain => Box::new(stored),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stored)?),
        })
    }
}
