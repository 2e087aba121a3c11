//! An image as one file that the kernel mounts: bootstrap and blobs on one device (`rafs/flat.rs`), uncompressed, optionally followed by a
//! dm-verity hash tree. An image of version 5 becomes one of version 6 (`reader/as_v6.rs`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::model::chunk::FsVersion;
use crate::rafs::flat;
use crate::rafs::read::Chunk;

use super::as_v6::{self, AsV6};
use super::data::Decoder;
use super::verity::{self, Verity};
use super::{Opened, Progress, ReaderError, sparse};

/// Chunks read in a row by one worker.
const BATCH: usize = 32;

/// What is to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Replace the file if it is there.
    pub force: bool,
    /// Append a dm-verity hash tree.
    pub verity: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Length of the file.
    pub bytes: u64,
    /// Length of what is mounted: without the hash tree.
    pub data_bytes: u64,
    /// Bytes written; the rest are holes.
    pub written: u64,
    /// The hash tree, if one was wanted.
    pub verity: Option<Verity>,
}

/// Writes the image to a file. It has its name only when it is whole.
///
/// # Errors
/// [`ReaderError::Exists`]; when an image of version 5 holds what version 6 cannot; when data is damaged or the file cannot be written.
pub fn export(
    image: &Opened,
    to: &Path,
    options: Options,
    progress: Progress<'_>,
) -> Result<Report, ReaderError> {
    if !options.force && to.symlink_metadata().is_ok() {
        return Err(ReaderError::Exists(to.to_owned()));
    }
    let (bootstrap, places, end) = arrange(image)?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || ReaderError::io("write", to);
    let file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(failed())?;
    let disk = file.as_file();
    disk.set_len(end).map_err(failed())?;
    disk.write_all_at(&bootstrap, 0).map_err(failed())?;
    let written = AtomicU64::new(bootstrap.len() as u64);
    data(image, disk, &places, &written, to, progress)?;
    let verity = match options.verity {
        true => Some(verity::append(disk, end).map_err(failed())?),
        false => None,
    };
    disk.sync_all().map_err(failed())?;
    let bytes = disk.metadata().map_err(failed())?.len();
    let kept = if options.force { file.persist(to) } else { file.persist_noclobber(to) };
    kept.map_err(|e| failed()(e.error))?;
    Ok(Report { bytes, data_bytes: end, written: written.into_inner(), verity })
}

/// The bootstrap with the addresses of its blobs, where each chunk goes, and where all of it ends.
fn arrange(image: &Opened) -> Result<(Vec<u8>, Vec<u64>, u64), ReaderError> {
    let chunks = image.image.chunks.as_slice();
    let (mut bootstrap, sizes, slots) = match image.image.superblock.version {
        FsVersion::V5 => {
            let AsV6 { bootstrap, sizes, slots } = as_v6::convert(&image.image)?;
            (bootstrap, sizes, slots)
        }
        FsVersion::V6 => {
            let sizes = image.image.blobs.iter().map(|blob| blob.uncompressed_size).collect();
            (image.bootstrap.clone(), sizes, chunks.iter().map(|chunk| chunk.info.slot).collect())
        }
    };
    let (starts, end) = flat::place(&mut bootstrap, &sizes).map_err(|_| ReaderError::Unfit {
        what: "exported: it has more than 16 TiB",
        remedy: "mount it from its blobs",
    })?;
    let start = |chunk: &Chunk| match image.image.superblock.version {
        // All chunks are in one blob.
        FsVersion::V5 => starts.first().copied().unwrap_or(end),
        FsVersion::V6 => starts.get(usize::from(chunk.name.blob.0)).copied().unwrap_or(end),
    };
    let places = chunks.iter().zip(slots).map(|(chunk, slot)| start(chunk) + slot).collect();
    Ok((bootstrap, places, end))
}

/// Every chunk in its place.
fn data(
    image: &Opened,
    disk: &File,
    places: &[u64],
    written: &AtomicU64,
    to: &Path,
    progress: Progress<'_>,
) -> Result<(), ReaderError> {
    let mut order: Vec<(&Chunk, u64)> =
        image.image.chunks.as_slice().iter().zip(places.iter().copied()).collect();
    order.sort_unstable_by_key(|(chunk, _)| (chunk.name.blob, chunk.info.offset));
    let total: u64 = order.iter().map(|(c, _)| u64::from(c.info.size)).sum();
    let done = AtomicU64::new(0);
    order.par_chunks(BATCH).try_for_each_init(Decoder::default, |decoder, batch| {
        for (chunk, place) in batch {
            let at = usize::from(chunk.name.blob.0);
            let (Some(blob), Some(file)) = (image.image.blobs.get(at), image.files.get(at)) else { continue };
            let raw = decoder.read(file.open(blob)?, blob, chunk).map_err(|fault| ReaderError::Data {
                path: file.path.clone(),
                what: format!("chunk {}: {fault}", chunk.name.index),
            })?;
            let n = sparse::write(disk, *place, raw).map_err(ReaderError::io("write", to))?;
            written.fetch_add(n, Ordering::Relaxed);
            let len = raw.len() as u64;
            progress(done.fetch_add(len, Ordering::Relaxed) + len, total);
        }
        Ok(())
    })
}
