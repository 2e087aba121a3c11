//! An image of plain tar layers, whoever made it, as the same value that a Nydus image is read into.
//!
//! ```text
//! layer --sha256--> decompressed --sha256--> tar --entries--> merge, layer by layer --> Tree
//!        its digest               its diff-id  '---content--> keep: a file without a name, in chunks with digests
//! ```
//!
//! Layers are read on all cores, each once. Memory is bounded by the bytes of their files, whatever those say (`reading::Used`), and by 2^24 entries
//! with 2 GiB of names and attributes; of content 1 MiB is held. What is wrong with a layer is noted, and the others are read.

mod keep;
mod merge;
mod reading;
mod tar;

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::model::chunk::{Compressor, Format, FsVersion};
use crate::rafs::read::{BlobInfo, Chunk, Chunks, Image, Superblock};

use super::layout::{Descriptor, store};
use super::open::BlobFile;
use super::{Problem, ReaderError};
use keep::Keep;
use merge::Merge;
use reading::{Reading, Used};

/// The most layers. Runtimes stop at 127.
const MAX_LAYERS: usize = 1000;

/// A layer as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// What its descriptor says it is.
    pub media_type: String,
    /// The digest of its file.
    pub digest: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// The digest of its tar, as the config has it.
    pub diff_id: Option<String>,
    /// Bytes of its tar.
    pub tar_bytes: u64,
    /// Entries, those included that say that something is gone.
    pub entries: u64,
    /// How many of them say so.
    pub whiteouts: u64,
    /// Bytes of its files.
    pub content_bytes: u64,
}

/// An image of such layers.
pub(super) struct Plain {
    pub(super) image: Image,
    pub(super) files: Vec<BlobFile>,
    pub(super) layers: Vec<Layer>,
}

/// How contents are kept: as by default in a Nydus image, so that digests can be compared. There is no bootstrap; where one is needed it is
/// made, as it is for version 5 (`reader/as_v6.rs`).
fn format() -> Format {
    Format { version: FsVersion::V5, compressor: Compressor::None, ..Format::default() }
}

/// Reads all layers; `diff_ids` are those of the config. Contents are kept in a directory, or looked at and forgotten.
///
/// # Errors
/// When a layer's file cannot be read, or contents cannot be kept. Whatever is wrong with the layers is a problem.
pub(super) fn read(
    dir: &Path,
    layers: &[Descriptor],
    diff_ids: &[String],
    keep: Option<&Path>,
    problems: &mut Vec<Problem>,
) -> Result<Plain, ReaderError> {
    if layers.len() > MAX_LAYERS {
        let what = format!("{} layers, more than any image has", layers.len());
        return Err(ReaderError::Layout { path: dir.to_owned(), what });
    }
    if layers.len() != diff_ids.len() {
        let what = format!("{} diff_ids for {} layers", diff_ids.len(), layers.len());
        problems.push(Problem::new("config", what));
    }
    let length = |layer: &Descriptor| Some(std::fs::metadata(store(dir).join(layer.hex()?)).ok()?.len());
    let used = Used::new(layers.iter().filter_map(length).sum());
    let reading = layers.par_iter().enumerate().map(|(number, descriptor)| {
        let mut reading = Reading::new(number, descriptor, diff_ids.get(number), keep)?;
        reading.file(dir, descriptor, &used)?;
        Ok(reading)
    });
    let all: Vec<Reading> = reading.collect::<Result<_, ReaderError>>()?;

    // As many again for directories that no layer has an entry for.
    let mut merge = Merge::new(2 * used.most_entries());
    let mut parts = Parts::default();
    for mut reading in all {
        merge.next_layer();
        for (entry, content) in std::mem::take(&mut reading.entries) {
            let path = entry.path.clone();
            if let Err(what) = merge.apply(entry, content) {
                reading.note(Some(&path), what);
            }
        }
        problems.append(&mut reading.problems);
        parts.add(reading.layer, reading.keep, dir)?;
    }
    let format = format();
    let tree = merge.into_tree();
    let inodes = tree.nodes().len() as u64;
    let superblock = Superblock { version: format.version, flags: 0, format, inodes };
    let chunks = Chunks::new(parts.chunks).map_err(|_| ReaderError::Layout {
        path: dir.to_owned(),
        what: "two pieces of its content have one name".to_owned(),
    })?;
    let image = Image { superblock, tree, blobs: parts.blobs, chunks, prefetch: Vec::new() };
    Ok(Plain { image, files: parts.files, layers: parts.layers })
}

#[derive(Default)]
struct Parts {
    layers: Vec<Layer>,
    blobs: Vec<BlobInfo>,
    files: Vec<BlobFile>,
    chunks: Vec<Chunk>,
}

impl Parts {
    /// What was kept of a layer is a blob.
    fn add(&mut self, layer: Layer, keep: Option<Keep>, dir: &Path) -> Result<(), ReaderError> {
        let id = layer.digest.trim_start_matches("sha256:").to_owned();
        let path = store(dir).join(&id);
        let (file, bytes, mut chunks) = match keep.map(Keep::finish).transpose() {
            Ok(Some((file, bytes, chunks))) => (Some(file), bytes, chunks),
            Ok(None) => (None, 0, Vec::new()),
            Err(e) => return Err(ReaderError::io("keep what is in", &path)(e)),
        };
        let format = format();
        self.blobs.push(BlobInfo {
            id,
            // As `Keep` counts them.
            chunk_count: chunks.len() as u32,
            compressor: format.compressor,
            digester: format.digester,
            features: 0,
            compressed_size: bytes,
            uncompressed_size: bytes,
            meta: None,
            toc_size: 0,
            toc_digest: [0; 32],
        });
        self.files.push(BlobFile::kept(path, file));
        self.chunks.append(&mut chunks);
        self.layers.push(layer);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
