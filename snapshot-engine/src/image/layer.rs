//! One directory to a layer: its tree, whose files name chunks, and the blob that has those which are new.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chunk::blob::{Known, OpenBlob};
use crate::chunk::convert::{self, Job};
use crate::model::chunk::{Blob, BlobIndex, ChunkRef, Format};
use crate::model::overlay::Namespaces;
use crate::model::tree::{Kind, Tree};

use super::{ImageError, Progress, walk};

/// A converted directory. Overlayfs' marks are still on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What is in it.
    pub tree: Tree,
    /// The blob made of it.
    pub blob: Option<Blob>,
}

/// How to convert.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How chunks are made.
    pub format: Format,
    /// Which attributes are overlayfs'.
    pub namespaces: Namespaces,
    /// Worker threads; 0 for one per CPU.
    pub workers: usize,
    /// Whether a cached layer must survive a crash.
    pub sync: bool,
}

/// A converted directory whose blob is not finished yet, and what it cost.
#[derive(Debug)]
pub struct Conversion {
    /// What is in it.
    pub tree: Tree,
    /// Its blob; `None` if every chunk was known already.
    pub blob: Option<OpenBlob>,
    /// Raw bytes that were found again and not stored.
    pub saved: u64,
    /// Bytes of all files read.
    pub content: u64,
}

/// Converts the tree at `dir`. Chunks in `known` are referred to, new ones go into a blob in `blob_dir` that the tree calls
/// `own`.
///
/// # Errors
/// When the tree cannot be read, changes meanwhile, or the blob cannot be written; then no blob is left behind.
pub fn convert(
    dir: &Path,
    blob_dir: &Path,
    known: Known,
    own: BlobIndex,
    options: Options,
    progress: &dyn Progress,
) -> Result<Conversion, ImageError> {
    let walked = walk::walk(dir, options.format.chunk_size, options.namespaces, options.workers)?;
    let total: u64 = walked.sources.iter().map(|s| s.size).sum();
    let done = std::sync::atomic::AtomicU64::new(0);
    progress.advance(0, total);
    let job = Job {
        root: &walked.root,
        dirs: &walked.dirs,
        files: &walked.sources,
        format: options.format,
        known,
        own,
        blob_dir,
        workers: options.workers,
    };
    let converted = convert::convert(job, &|bytes| {
        let before = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        progress.advance(before + bytes, total);
    })?;
    let mut tree = walked.tree;
    for (id, chunks) in walked.nodes.iter().zip(converted.contents) {
        if let Some(Kind::File(content)) = tree.get_mut(*id).map(|node| &mut node.kind) {
            content.chunks = chunks;
        }
    }
    Ok(Conversion { tree, blob: converted.blob, saved: converted.saved, content: total })
}

/// Changes every chunk reference of a tree.
pub fn rename_chunks(tree: Tree, mut rename: impl FnMut(ChunkRef) -> ChunkRef) -> Result<Tree, ImageError> {
    let mut nodes = tree.into_nodes();
    for node in &mut nodes {
        if let Kind::File(content) = &mut node.kind {
            content.chunks.iter_mut().for_each(|chunk| *chunk = rename(*chunk));
        }
    }
    Ok(Tree::from_nodes(nodes)?)
}
