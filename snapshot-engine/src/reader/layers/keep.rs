//! The contents of a layer's files, one behind the other in a file without a name: a tar that is compressed cannot be read from the middle.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::chunk::codec::digest;
use crate::model::chunk::{BLOCK, BlobIndex, ChunkInfo, ChunkRef, ChunkSize, Digester};
use crate::rafs::read::Chunk;
use crate::reader::sparse;

/// From this length on, blocks of zeros are worth a hole: such a file begins at a block.
const ALIGNED: u64 = 16 * BLOCK;

/// Why a content could not be kept.
pub(super) enum Failed {
    /// The layer ends before.
    Read(io::Error),
    /// The file could not be written.
    Write(io::Error),
}

/// Where contents are kept.
pub(super) struct Keep {
    file: File,
    blob: BlobIndex,
    chunk_size: ChunkSize,
    end: u64,
    chunks: Vec<Chunk>,
    buffer: Vec<u8>,
}

impl Keep {
    /// Keeps contents in a directory, as the blob with this number.
    pub(super) fn new(dir: &Path, blob: BlobIndex, chunk_size: ChunkSize) -> io::Result<Keep> {
        let file = tempfile::tempfile_in(dir)?;
        Ok(Keep { file, blob, chunk_size, end: 0, chunks: Vec::new(), buffer: Vec::new() })
    }

    /// Keeps a content of this many bytes.
    pub(super) fn add(&mut self, content: &mut impl Read, size: u64) -> Result<Vec<ChunkRef>, Failed> {
        if size >= ALIGNED {
            self.end = self.end.next_multiple_of(BLOCK);
        }
        let mut names = Vec::new();
        let mut left = size;
        while left > 0 {
            let size = left.min(u64::from(self.chunk_size.bytes())) as u32;
            self.buffer.resize(size as usize, 0);
            content.read_exact(&mut self.buffer).map_err(Failed::Read)?;
            sparse::write(&self.file, self.end, &self.buffer).map_err(Failed::Write)?;
            // More chunks than that do not fit on any disk.
            let index = self.chunks.len() as u32;
            let name = ChunkRef { blob: self.blob, index };
            let digest = digest(Digester::Blake3, &self.buffer);
            let info = ChunkInfo { digest, index, size, stored: size, offset: self.end, slot: self.end };
            self.chunks.push(Chunk { name, info, compressed: false, crc32: None });
            names.push(name);
            self.end += u64::from(size);
            left -= u64::from(size);
        }
        Ok(names)
    }

    /// The file, its length, and what is in it.
    pub(super) fn finish(self) -> io::Result<(File, u64, Vec<Chunk>)> {
        self.file.set_len(self.end)?;
        Ok((self.file, self.end, self.chunks))
    }
}
