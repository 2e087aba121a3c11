//! Whether an image is what it says: structure, and every byte of data.
//!
//! ```text
//! opened: documents, digests, bootstrap   (noted while it was opened)
//! blobs:  there, as long as described, named by their sha256, with metadata that says what the bootstrap says
//! chunks: read, decompressed, digest compared           both on all cores; a worker holds two chunks at a time
//! ```
//!
//! Everything that is wrong is reported, not only the first of it. Plain layers have been read whole, and compared with their digests, when they
//! were opened (`reader/layers/`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::model::chunk::{BLOCK, ChunkRef, Compressor};
use crate::model::tree::{Kind, NodeId, Tree};
use crate::rafs::layout::blob_features;
use crate::rafs::read::{BlobInfo, BlobMeta, Chunk, Counts, MetaPlace, blob_header};

use super::data::Decoder;
use super::parts::{self, At};
use super::walk::walk;
use super::{Layer, Opened, Problem, Progress};

/// The most problems that are reported: of a blob that is something else altogether, every chunk is one.
pub const MAX_PROBLEMS: usize = 1000;
/// Chunks read in a row by one worker.
const BATCH: usize = 64;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the tree holds.
    pub counts: Counts,
    /// Blobs, or plain layers.
    pub blobs: u64,
    /// Chunks that the tree refers to, each read.
    pub chunks: u64,
    /// Their raw bytes.
    pub chunk_bytes: u64,
    /// Bytes of the blobs, each hashed.
    pub blob_bytes: u64,
    /// Bytes of the tars that plain layers stand for, each hashed and read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tar_bytes: Option<u64>,
    /// How many things are wrong.
    pub problems_found: u64,
    /// What is wrong, at most [`MAX_PROBLEMS`] of it, sorted.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems_found == 0
    }
}

/// Problems from several threads.
struct Found {
    list: Mutex<Vec<Problem>>,
    count: AtomicU64,
}

impl Found {
    fn note(&self, place: impl Into<String>, what: impl ToString) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut list) = self.list.lock()
            && list.len() < MAX_PROBLEMS
        {
            list.push(Problem::new(place, what));
        }
    }
}

/// Checks an image whole.
#[must_use]
pub fn check(image: &Opened, progress: Progress<'_>) -> Report {
    if let Some(layers) = &image.layers {
        return plain(image, layers);
    }
    let problems = image.problems.clone();
    let found = Found { count: AtomicU64::new(problems.len() as u64), list: Mutex::new(problems) };
    let chunks = image.image.chunks.as_slice();
    let sizes = image.files.iter().filter_map(|f| f.get()?.metadata().ok()).map(|m| m.len());
    let blob_bytes: u64 = sizes.sum();
    let stored: u64 = chunks.iter().map(|c| u64::from(c.info.stored)).sum();
    let done = AtomicU64::new(0);
    let tell = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, blob_bytes + stored);

    let bad = Mutex::new(HashSet::new());
    rayon::join(
        || {
            (0..image.files.len()).into_par_iter().for_each(|number| blob(image, number, &found, &tell));
        },
        || {
            // In the order of the blob file, so that the disk reads on.
            let mut order: Vec<&Chunk> = chunks.iter().collect();
            order.par_sort_unstable_by_key(|chunk| (chunk.name.blob, chunk.info.offset));
            order.par_chunks(BATCH).for_each_init(Decoder::default, |decoder, batch| {
                for chunk in batch {
                    if let Err(what) = one(image, decoder, chunk) {
                        found.note(blob_name(image, chunk.name), what);
                        if let Ok(mut bad) = bad.lock() {
                            bad.insert(chunk.name);
                        }
                    }
                    tell(u64::from(chunk.info.stored));
                }
            });
        },
    );
    let bad = bad.into_inner().unwrap_or_default();
    for (path, name) in files_with(&image.image.tree, &bad) {
        found.note(path, format!("its content is damaged: {}", blob_name(image, name)));
    }
    if let Some(layout) = &image.layout {
        let known: HashMap<&str, u64> =
            layout.blobs.iter().filter_map(|layer| Some((layer.hex()?, layer.size))).collect();
        for blob in &image.image.blobs {
            if !known.contains_key(blob.id.as_str()) {
                found.note(format!("blob {}", blob.id), "the manifest has no layer for it");
            }
        }
    }
    let mut problems = found.list.into_inner().unwrap_or_default();
    problems.sort();
    Report {
        counts: Counts::of(&image.image.tree),
        blobs: image.image.blobs.len() as u64,
        chunks: chunks.len() as u64,
        chunk_bytes: chunks.iter().map(|c| u64::from(c.info.size)).sum(),
        blob_bytes,
        tar_bytes: None,
        problems_found: found.count.into_inner(),
        problems,
    }
}

fn plain(image: &Opened, layers: &[Layer]) -> Report {
    let mut problems = image.problems.clone();
    problems.sort();
    problems.truncate(MAX_PROBLEMS);
    Report {
        counts: Counts::of(&image.image.tree),
        blobs: layers.len() as u64,
        chunks: 0,
        chunk_bytes: 0,
        blob_bytes: layers.iter().map(|layer| layer.bytes).sum(),
        tar_bytes: Some(layers.iter().map(|layer| layer.tar_bytes).sum()),
        problems_found: image.problems.len() as u64,
        problems,
    }
}

fn blob_name(image: &Opened, chunk: ChunkRef) -> String {
    let id = image.image.blobs.get(usize::from(chunk.blob.0)).map_or("?", |blob| blob.id.as_str());
    format!("chunk {} of blob {id}", chunk.index)
}

fn one(image: &Opened, decoder: &mut Decoder, chunk: &Chunk) -> Result<(), String> {
    let at = usize::from(chunk.name.blob.0);
    let (Some(blob), Some(file)) = (image.image.blobs.get(at), image.files.get(at)) else {
        return Err("its blob is not in the table".to_owned());
    };
    // A blob that is not there is one problem, not one for each of its chunks.
    let Some(file) = file.get() else { return Ok(()) };
    decoder.read(file, blob, chunk).map(|_| ()).map_err(|fault| fault.to_string())
}

fn blob(image: &Opened, number: usize, found: &Found, tell: &(dyn Fn(u64) + Sync)) {
    let (blob, place) = (&image.image.blobs[number], &image.files[number]);
    let name = format!("blob {}", blob.id);
    let Some(file) = place.get() else {
        found.note(name, format!("it is missing: there is no `{}`", place.path.display()));
        return;
    };
    match sha256(file, tell) {
        Ok((size, digest)) => {
            // The id of a blob that is packed with its bootstrap is not known to that bootstrap.
            if blob.id.len() == 64 && hex::decode(&blob.id).is_ok() && digest != blob.id {
                found.note(&name, format!("its sha256 is {digest}"));
            }
            if size < blob.data_end() {
                found.note(&name, format!("it has {size} bytes, and data up to {}", blob.data_end()));
            }
        }
        Err(e) => found.note(&name, format!("it cannot be read: {e}")),
    }
    if let Some(meta) = &blob.meta
        && let Err(what) = metadata(image, number, blob, meta, file)
    {
        found.note(&name, what);
    }
    if blob.features & blob_features::HAS_TOC != 0 {
        let mut problems = Vec::new();
        parts::check(file, blob, &image.image.chunks, number, &mut problems);
        for problem in problems {
            found.note(problem.place, problem.what);
        }
    }
}

fn sha256(file: &File, tell: &(dyn Fn(u64) + Sync)) -> io::Result<(u64, String)> {
    let mut file = At { file, at: 0 };
    let (mut sha, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hex::encode(sha.finalize()))),
            n => {
                sha.update(&buffer[..n]);
                size += n as u64;
                tell(n as u64);
            }
        }
    }
}

/// Compares what the blob says of its chunks with what the bootstrap says of them: nydusd believes the blob.
fn metadata(
    image: &Opened,
    number: usize,
    blob: &BlobInfo,
    place: &MetaPlace,
    file: &File,
) -> Result<(), String> {
    let mut header = vec![0; BLOCK as usize];
    let at = place.offset + place.compressed_size;
    file.read_exact_at(&mut header, at).map_err(|e| format!("its header cannot be read: {e}"))?;
    let own = blob_header(&header).map_err(|e| e.to_string())?;
    if (own.offset, own.chunks, own.compressed_size, own.uncompressed_size, own.compressor)
        != (place.offset, place.chunks, place.compressed_size, place.uncompressed_size, place.compressor)
    {
        return Err("its header says something else than the bootstrap".to_owned());
    }
    let bytes = places(place, file).map_err(|e| format!("the places of its chunks cannot be read: {e}"))?;
    let meta = BlobMeta::new(&bytes, place).map_err(|e| e.to_string())?;
    for chunk in image.image.chunks.of_blob(number) {
        let says = meta.get(chunk.name.index).map_err(|e| e.to_string())?;
        let info = &chunk.info;
        if (says.size, says.stored, says.offset, says.slot)
            != (info.size, info.stored, info.offset, info.slot)
        {
            return Err(format!(
                "it says that chunk {} is at {} and has {} bytes, {} of them stored; the bootstrap says {}, {}, {}",
                chunk.name.index, says.offset, says.size, says.stored, info.offset, info.size, info.stored
            ));
        }
        if says.slot + u64::from(says.size) > blob.uncompressed_size {
            return Err(format!("chunk {} lies outside of it", chunk.name.index));
        }
    }
    Ok(())
}

/// The places, decompressed: never more than the 24 bits of a chunk's number allow, and no more than they are said to be.
fn places(place: &MetaPlace, file: &File) -> io::Result<Vec<u8>> {
    let size = place.uncompressed_size;
    let mut stored = Vec::new();
    At { file, at: place.offset }.take(place.compressed_size).read_to_end(&mut stored)?;
    let mut bytes = Vec::new();
    match place.compressor {
        // Not made smaller by compression: stored raw.
        _ if place.compressed_size == size => return Ok(stored),
        Compressor::None => return Err(io::ErrorKind::InvalidData.into()),
        Compressor::Zstd(_) => {
            zstd::stream::read::Decoder::new(&stored[..])?.take(size + 1).read_to_end(&mut bytes)?;
        }
        Compressor::Gzip => {
            flate2::read::GzDecoder::new(&stored[..]).take(size + 1).read_to_end(&mut bytes)?;
        }
        Compressor::Lz4Block => {
            // A block of LZ4 grows 255 times at most.
            if size > 255 * (stored.len() as u64 + 1) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            bytes = lz4_flex::block::decompress(&stored, size as usize).map_err(io::Error::other)?;
        }
    }
    Ok(bytes)
}

/// The files that have one of these chunks, with the first of them.
fn files_with(tree: &Tree, bad: &HashSet<ChunkRef>) -> Vec<(String, ChunkRef)> {
    let mut files = Vec::new();
    if bad.is_empty() {
        return files;
    }
    walk(tree, NodeId::ROOT, Vec::new(), &mut |path, id| {
        if let Some(Kind::File(content)) = tree.get(id).map(|node| &node.kind)
            && let Some(name) = content.chunks.iter().find(|name| bad.contains(name))
        {
            files.push((String::from_utf8_lossy(path).into_owned(), *name));
        }
    });
    files
}
