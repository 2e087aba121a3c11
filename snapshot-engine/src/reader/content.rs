//! The content of one file, piece by piece.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::model::chunk::ChunkRef;
use crate::model::tree::Content;

use super::data::{ChunkFault, Decoder};
use super::{Opened, ReaderError};

/// Where a byte of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the file's chunks.
    pub number: usize,
    /// Where in it.
    pub within: usize,
}

/// Where a byte of a file is; chunks have one size, but the last.
#[must_use]
pub fn place(image: &Opened, offset: u64) -> Place {
    let size = u64::from(image.image.superblock.format.chunk_size.bytes());
    // A chunk's number is that of an entry in memory, and its size at most 16 MiB.
    Place { number: (offset / size) as usize, within: (offset % size) as usize }
}

/// A chunk's raw bytes, verified.
///
/// # Errors
/// When it is not what the bootstrap says; `path` is for the message.
pub fn chunk<'a>(
    image: &Opened,
    decoder: &'a mut Decoder,
    name: ChunkRef,
    path: &dyn Fn() -> Vec<u8>,
) -> Result<&'a [u8], ReaderError> {
    let failed =
        |what: String| ReaderError::Data { path: PathBuf::from(std::ffi::OsStr::from_bytes(&path())), what };
    let at = usize::from(name.blob.0);
    let (Some(blob), Some(chunk), Some(file)) =
        (image.image.blobs.get(at), image.image.chunks.get(name), image.files.get(at))
    else {
        return Err(failed("a chunk that is not there".to_owned()));
    };
    let file = file.open(blob)?;
    decoder
        .read(file, blob, chunk)
        .map_err(|fault: ChunkFault| failed(format!("chunk {} of blob {}: {fault}", name.index, blob.id)))
}

/// Calls `each` with the whole content, in order.
///
/// # Errors
/// When a chunk is damaged, and what `each` returns.
pub fn walk(
    image: &Opened,
    content: &Content,
    decoder: &mut Decoder,
    path: &Path,
    each: &mut dyn FnMut(&[u8]) -> Result<(), ReaderError>,
) -> Result<(), ReaderError> {
    for name in &content.chunks {
        each(chunk(image, decoder, *name, &|| path.as_os_str().as_bytes().to_vec())?)?;
    }
    Ok(())
}
