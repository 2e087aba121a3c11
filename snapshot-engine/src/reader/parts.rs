//! The parts of a blob that carries its own metadata: found, read, verified.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::rafs::read::{BlobInfo, Chunks, Part, Stored, parts};
use crate::rafs::toc;

use super::open::MAX_BOOTSTRAP;
use super::stream::Hashed;
use super::{Problem, ReaderError};

/// A file from an offset on.
pub(super) struct At<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(out, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The last bytes of a file, and its length.
fn tail(file: &File) -> io::Result<(Vec<u8>, u64)> {
    let len = file.metadata()?.len();
    let mut tail = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(toc::TOC_WINDOW)];
    let start = len - tail.len() as u64;
    file.read_exact_at(&mut tail, start)?;
    Ok((tail, len))
}

/// The bootstrap inside a blob; `None` when the file is no such blob.
pub(super) fn bootstrap(file: &File, path: &Path) -> Result<Option<Vec<u8>>, ReaderError> {
    let (tail, len) = tail(file).map_err(ReaderError::io("read", path))?;
    let (parts, _) =
        parts(&tail, len).map_err(|source| ReaderError::Bootstrap { path: path.to_owned(), source })?;
    let Some(part) = parts.into_iter().find(|part| part.name == toc::IMAGE_BOOT) else {
        return Ok(None);
    };
    let damaged =
        |what: &str| ReaderError::Layout { path: path.to_owned(), what: format!("its bootstrap {what}") };
    if part.size > MAX_BOOTSTRAP {
        return Err(damaged("is larger than any has to be"));
    }
    let mut bytes = Vec::new();
    open(file, &part)
        .and_then(|part_bytes| part_bytes.take(part.size + 1).read_to_end(&mut bytes))
        .map_err(ReaderError::io("read the bootstrap in", path))?;
    if bytes.len() as u64 != part.size {
        return Err(damaged("has another length than it should have"));
    }
    match part.digest {
        Some(digest) if digest[..] != Sha256::digest(&bytes)[..] => Err(damaged("has another digest")),
        _ => Ok(Some(bytes)),
    }
}

/// A part's uncompressed bytes.
fn open<'a>(file: &'a File, part: &Part) -> io::Result<Box<dyn Read + 'a>> {
    let stored = At { file, at: part.offset }.take(part.stored_size);
    Ok(match part.stored {
        Stored::Raw => Box::new(stored),
        Stored::Zstd => Box::new(zstd::stream::read::Decoder::new(stored)?),
    })
}

/// Compares the table of contents with what the bootstrap says of it, the parts with the table, and the digests of the chunks that are in the
/// blob (nydusd verifies data by them) with those of the bootstrap.
pub(super) fn check(
    file: &File,
    blob: &BlobInfo,
    chunks: &Chunks,
    number: usize,
    problems: &mut Vec<Problem>,
) {
    let mut note = |what: String| problems.push(Problem::new(format!("blob {}", blob.id), what));
    let (tail, len) = match tail(file) {
        Ok(tail) => tail,
        Err(e) => return note(format!("its end cannot be read: {e}")),
    };
    let (parts, toc_size) = match parts(&tail, len) {
        Ok((parts, size)) if size > 0 => (parts, size as usize),
        Ok(_) => return note("it should have a table of contents, and has none".to_owned()),
        Err(e) => return note(format!("its table of contents: {e}")),
    };
    // The bootstrap that is inside of the blob was made before the table.
    if blob.toc_size > 0
        && (blob.toc_size as usize != toc_size
            || Sha256::digest(&tail[tail.len() - toc_size..])[..] != blob.toc_digest[..])
    {
        note("its table of contents is another one than the bootstrap's".to_owned());
    }
    for part in &parts {
        // The size of the data is that of its address space.
        let data = part.name == toc::IMAGE_BLOB;
        let limit = if data { part.stored_size } else { part.size };
        match digest(file, part, limit) {
            Ok((len, _)) if len != limit => note(format!("its part {} has another length", part.name)),
            Ok((_, digest)) if part.digest.is_none_or(|d| d == digest) => {}
            // nydus-image 2.2 hashed the data's tar header with the data.
            Ok(_) if data && part.digest == with_header(file, part) => {}
            Ok(_) => note(format!("its part {} has another digest", part.name)),
            Err(e) => note(format!("its part {} cannot be read: {e}", part.name)),
        }
    }
    if let Some(part) = parts.iter().find(|part| part.name == toc::BLOB_DIGEST && part.stored == Stored::Raw)
    {
        for chunk in chunks.of_blob(number) {
            let mut own = [0; 32];
            let at = u64::from(chunk.name.index) * 32;
            let read = at + 32 <= part.stored_size && file.read_exact_at(&mut own, part.offset + at).is_ok();
            if !read || own != chunk.info.digest.0 {
                note(format!("the digest it has of chunk {} is another one", chunk.name.index));
                break;
            }
        }
    }
}

/// The digest of a part's uncompressed bytes, and how many there are; no more than one too many are read.
fn digest(file: &File, part: &Part, limit: u64) -> io::Result<(u64, [u8; 32])> {
    Hashed::new(open(file, part)?.take(limit.saturating_add(1))).finish()
}

fn with_header(file: &File, part: &Part) -> Option<[u8; 32]> {
    let longer = Part { stored_size: part.stored_size + size_of::<toc::TarHeader>() as u64, ..part.clone() };
    digest(file, &longer, longer.stored_size).ok().map(|(_, digest)| digest)
}
