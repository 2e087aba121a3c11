//! One directory to a layer: its tree, whose files name chunks, and the blob that has those which are new.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chunk::blob::{Known, OpenBlob};
use crate::chunk::convert::{self, Job};
use crate::model::chunk::{Blob, BlobIndex, ChunkRef, Format};
use crate::model::globs::PathGlobs;
use crate::model::identity::{Identity, Settled};
use crate::model::overlay::Namespaces;
use crate::model::tree::{Kind, NodeId, Tree};

use super::earlier::Earlier;
pub use super::walk::Walked;
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
    /// Bytes of all files.
    pub content: u64,
    /// Bytes of those that were taken over from an earlier image, unread.
    pub taken_over: u64,
    /// The node of every file with content, by its inode number.
    pub files: Vec<(u64, NodeId)>,
}

/// What is in some files.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Which these are, and how many chunks each has.
    pub(super) files: Vec<(Identity, u32)>,
    /// The chunks of one after the other.
    pub(super) chunks: Vec<ChunkRef>,
}

impl Conversion {
    /// What is in the files that can be recognised.
    pub(super) fn contents(&self, settled: &Settled) -> Contents {
        let mut contents = Contents::default();
        for (ino, node) in &self.files {
            let Some(identity) = settled.identity(*ino) else { continue };
            if let Some(Kind::File(content)) = self.tree.get(*node).map(|node| &node.kind) {
                contents.files.push((*identity, content.chunks.len() as u32));
                contents.chunks.extend_from_slice(&content.chunks);
            }
        }
        contents
    }
}

/// Walks a directory, but for what is to be left out of it. Files are not opened.
///
/// # Errors
/// When the tree cannot be read.
pub fn walk(dir: &Path, without: Option<&PathGlobs>, options: Options) -> Result<Walked, ImageError> {
    walk::walk(dir, options.format.chunk_size, options.namespaces, options.workers, without)
}

/// Converts a directory. Chunks in `known` are referred to, new ones go into a blob in `blob_dir` that the tree calls `own`. Of files that an earlier
/// image has, those with all their chunks in `known` are not read.
///
/// # Errors
/// When a file cannot be read or is not what the walk saw, or the blob cannot be written; then no blob is left behind.
pub fn convert(
    walked: Walked,
    earlier: Option<&Earlier>,
    blob_dir: &Path,
    known: Known,
    own: BlobIndex,
    options: Options,
    progress: &dyn Progress,
) -> Result<Conversion, ImageError> {
    let mut tree = walked.tree;
    let mut fill = |id: NodeId, chunks| {
        if let Some(Kind::File(content)) = tree.get_mut(id).map(|node| &mut node.kind) {
            content.chunks = chunks;
        }
    };
    let files: Vec<_> = walked.sources.iter().map(|source| source.ino).zip(walked.nodes).collect();
    let (mut to_read, mut nodes, mut taken_over) = (Vec::new(), Vec::new(), 0);
    for (source, (_, node)) in walked.sources.into_iter().zip(&files) {
        if let Some(chunks) = earlier.and_then(|earlier| earlier.content(&source, &known)) {
            taken_over += source.size;
            fill(*node, chunks);
        } else {
            to_read.push(source);
            nodes.push(*node);
        }
    }
    let total: u64 = to_read.iter().map(|s| s.size).sum();
    let done = std::sync::atomic::AtomicU64::new(0);
    progress.advance(0, total);
    let job = Job {
        root: &walked.root,
        dirs: &walked.dirs,
        files: &to_read,
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
    for (id, chunks) in nodes.into_iter().zip(converted.contents) {
        fill(id, chunks);
    }
    Ok(Conversion {
        tree,
        blob: converted.blob,
        saved: converted.saved + taken_over,
        content: total + taken_over,
        taken_over,
        files,
    })
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
