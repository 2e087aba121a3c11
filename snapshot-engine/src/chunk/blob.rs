//! The blob as it grows: which chunks it has, where they lie, and the sha256 that becomes its name.
//!
//! ```text
//! none:     | chunk, padded to 4 KiB | chunk, padded | ...   offset == slot: the kernel's EROFS can read it in place
//! packed:   | chunk | chunk | ...                            back to back; slots count the uncompressed bytes
//! then what `rafs::blob` says
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::model::chunk::{
    BLOCK, Blob, BlobId, BlobIndex, ChunkDigest, ChunkInfo, ChunkRef, Compressor, Format, MAX_CHUNKS_PER_BLOB,
};
use crate::rafs::blob::Ending;

use super::ChunkError;

/// What tells chunks apart: digest and raw size.
pub type ChunkKey = (ChunkDigest, u32);

static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// The ordered part of blob making. Only who has the turn may call it.
#[derive(Debug)]
pub(super) struct Placer {
    format: Format,
    own: BlobIndex,
    offset: u64,
    slot: u64,
    chunks: Vec<ChunkInfo>,
    /// Raw bytes found again, which were not stored a second time.
    pub(super) saved: u64,
}

impl Placer {
    pub(super) fn new(format: Format, own: BlobIndex) -> Placer {
        Placer { format, own, offset: 0, slot: 0, chunks: Vec::new(), saved: 0 }
    }

    /// Where the next chunk will be written.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Places a new chunk of `size` raw bytes, of which `stored` are stored. Gives its name and the padding that belongs behind it.
    pub(super) fn place(
        &mut self,
        digest: ChunkDigest,
        size: u32,
        stored: u32,
    ) -> Result<(ChunkRef, &'static [u8]), ChunkError> {
        if self.chunks.len() >= MAX_CHUNKS_PER_BLOB {
            return Err(ChunkError::TooManyChunks);
        }
        let index = self.chunks.len() as u32;
        self.chunks.push(ChunkInfo { digest, index, size, stored, offset: self.offset, slot: self.slot });
        self.offset += u64::from(stored);
        self.slot += u64::from(size).next_multiple_of(BLOCK);
        let padding = match self.format.compressor {
            Compressor::None => &ZEROS[..(self.slot - self.offset) as usize],
            Compressor::Lz4Block | Compressor::Gzip | Compressor::Zstd(_) => &[],
        };
        self.offset += padding.len() as u64;
        Ok((ChunkRef { blob: self.own, index }, padding))
    }

    /// The blob with all its chunks, to be finished; `sha` is of all that was placed. `None` when that is nothing.
    pub(super) fn close(self, file: BlobFile, sha: Sha256) -> Option<OpenBlob> {
        if self.chunks.is_empty() {
            return None;
        }
        let ending = Ending::new(self.format, self.chunks, self.offset, self.slot, &sha);
        Some(OpenBlob { file, data_size: self.offset, sha, ending })
    }
}

/// A blob with all its chunks in a file that has no name yet; removed unless it is finished.
#[derive(Debug)]
pub struct OpenBlob {
    file: BlobFile,
    data_size: u64,
    sha: Sha256,
    ending: Ending,
}

impl OpenBlob {
    /// The blob as a bootstrap inside it has to describe it: without an id.
    #[must_use]
    pub fn unfinished(&self) -> Blob {
        self.ending.unfinished()
    }

    /// Puts the bootstrap inside.
    ///
    /// # Errors
    /// When it cannot be compressed.
    pub fn add_bootstrap(&mut self, bootstrap: &[u8]) -> Result<(), ChunkError> {
        self.ending.add_bootstrap(bootstrap).map_err(ChunkError::Compress)
    }

    /// Writes what belongs behind the chunks and gives the file its name, durably if `sync` is set.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing is left of it.
    pub fn finish(self, sync: bool) -> Result<(Blob, PathBuf), ChunkError> {
        let OpenBlob { file, data_size, mut sha, ending } = self;
        let (tail, mut blob) = ending.finish();
        sha.update(&tail);
        blob.id = BlobId(sha.finalize().into());
        file.write(&mut [IoSlice::new(&tail)], data_size)?;
        let path = file.keep(&blob, sync)?;
        Ok((blob, path))
    }
}

/// A blob file under a temporary name; removed unless it is kept.
#[derive(Debug)]
pub(super) struct BlobFile {
    dir: PathBuf,
    file: tempfile::NamedTempFile,
}

impl BlobFile {
    pub(super) fn create(dir: &Path) -> Result<BlobFile, ChunkError> {
        let failed = |source| ChunkError::Write { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let file = tempfile::Builder::new().prefix(".blob-").tempfile_in(dir).map_err(failed)?;
        Ok(BlobFile { dir: dir.to_owned(), file })
    }

    fn failed(&self, source: io::Error) -> ChunkError {
        ChunkError::Write { dir: self.dir.clone(), source }
    }

    /// Writes all slices from `offset` on. Callers may write different ranges at the same time.
    pub(super) fn write(&self, slices: &mut [IoSlice<'_>], offset: u64) -> Result<(), ChunkError> {
        write_all(self.file.as_file(), slices, offset).map_err(|e| self.failed(e))
    }

    /// Gives the file its name, durably if `sync` is set.
    pub(super) fn keep(self, blob: &Blob, sync: bool) -> Result<PathBuf, ChunkError> {
        if sync {
            self.file.as_file().sync_all().map_err(|e| self.failed(e))?;
        }
        let path = self.dir.join(blob.id.to_string());
        let dir = self.dir;
        let failed = |source| ChunkError::Write { dir: dir.clone(), source };
        self.file.persist(&path).map_err(|e| failed(e.error))?;
        if sync {
            File::open(&dir).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(path)
    }
}

fn write_all(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    /// `IOV_MAX` (linux/uio.h).
    const MOST: usize = 1024;
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let some = &slices[..slices.len().min(MOST)];
        match rustix::io::pwritev(file.as_fd(), some, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Where every known chunk is.
pub type Known = HashMap<ChunkKey, ChunkRef>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncompressed_chunks_lie_where_the_kernel_looks() -> Result<(), ChunkError> {
        let format = Format { compressor: Compressor::None, ..Format::default() };
        let mut placer = Placer::new(format, BlobIndex(3));
        let (name, padding) = placer.place(ChunkDigest([1; 32]), 5, 5)?;
        assert_eq!((name, padding.len()), (ChunkRef { blob: BlobIndex(3), index: 0 }, 4091));
        placer.place(ChunkDigest([2; 32]), 4096, 4096)?;
        let dir = tempfile::tempdir().unwrap();
        let open = placer.close(BlobFile::create(dir.path())?, Sha256::new()).unwrap();
        let (blob, path) = open.finish(false)?;
        assert!(blob.chunks.iter().all(|c| c.offset == c.slot));
        assert_eq!((blob.uncompressed_size, blob.data_end), (8192, 8192));
        assert_eq!(path.metadata().unwrap().len(), blob.file_size);
        Ok(())
    }

    #[test]
    fn an_unkept_blob_is_removed_and_slices_are_written_whole() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let file = BlobFile::create(dir.path())?;
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 5) as usize]).collect();
        file.write(&mut parts.iter().map(|p| IoSlice::new(p)).collect::<Vec<_>>(), 10)?;
        let got = std::fs::read(file.file.path())?;
        assert_eq!(got[10..], parts.concat());
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }
}
