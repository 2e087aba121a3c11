//! What an image is made of.

mod plain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::model::paths;
use crate::model::tree::{Kind, Node, NodeId};
use crate::rafs::layout::{blob_features, flags};
use crate::rafs::read::{Counts, MetaPlace};

use super::walk::{to_path, walk};
use super::{Opened, Problem, ReaderError};

pub use plain::Plain;

/// An image as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Summary {
    /// One with a bootstrap.
    Nydus(Box<Nydus>),
    /// One of plain layers.
    Plain(Box<Plain>),
}

/// A Nydus image as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nydus {
    /// `nydus`.
    pub kind: &'static str,
    /// Its tag in the OCI layout.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub manifest: Option<String>,
    /// RAFS version.
    pub fs_version: String,
    /// How chunks are compressed, unless their blob says otherwise.
    pub compressor: String,
    /// How chunks are named.
    pub digest: String,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// The superblock's flags.
    pub flags: u64,
    /// Their names.
    pub features: Vec<&'static str>,
    /// Bytes of the bootstrap.
    pub bootstrap_bytes: u64,
    /// What the tree holds.
    pub counts: Counts,
    /// Distinct chunks.
    pub chunks: u64,
    /// Their raw bytes, each counted once.
    pub chunk_bytes: u64,
    /// The same, as they are stored.
    pub stored_bytes: u64,
    /// Blobs.
    pub blobs: Vec<BlobSummary>,
    /// What is to be fetched first.
    #[serde(with = "paths::list")]
    pub prefetch: Vec<PathBuf>,
    /// What was seen to be wrong. Data was not read.
    pub problems: Vec<Problem>,
}

/// A blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobSummary {
    /// Its id.
    pub id: String,
    /// Whether its file is there.
    pub present: bool,
    /// How its chunks are compressed.
    pub compressor: String,
    /// Chunks in it.
    pub chunks: u32,
    /// Chunks of it that this image uses.
    pub chunks_used: u64,
    /// Bytes of the file, or of its data, as the bootstrap says.
    pub compressed_bytes: u64,
    /// Bytes of its address space.
    pub uncompressed_bytes: u64,
    /// Offset of the places of its chunks.
    pub metadata_offset: Option<u64>,
    /// The blob's features by name.
    pub features: Vec<&'static str>,
}

/// One name of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    /// From the root.
    #[serde(with = "paths")]
    pub path: PathBuf,
    /// `file`, `directory`, `symlink`, `char`, `block`, `fifo`, `socket`.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or a link's target.
    pub size: u64,
    /// Seconds of the modification time.
    pub mtime: i64,
    /// And its nanoseconds.
    pub mtime_nsec: u32,
    /// Names of the inode.
    pub links: u32,
    /// Another name of the inode, that comes before.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_path")]
    pub same_as: Option<PathBuf>,
    /// Where a symbolic link leads.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_path")]
    pub target: Option<PathBuf>,
    /// A device's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<u64>,
    /// Attributes: names, and lengths of their values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, u64)>,
    /// Chunks of a file.
    pub chunks: u64,
}

fn maybe_path<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => paths::serialize(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// Sums an image up.
#[must_use]
pub fn summary(opened: &Opened) -> Summary {
    match &opened.layers {
        Some(layers) => Summary::Plain(Box::new(plain::summary(opened, layers))),
        None => Summary::Nydus(Box::new(nydus(opened))),
    }
}

fn nydus(opened: &Opened) -> Nydus {
    let image = &opened.image;
    let format = image.superblock.format;
    let chunks = image.chunks.as_slice();
    let blobs = image.blobs.iter().zip(&opened.files).enumerate().map(|(number, (blob, file))| BlobSummary {
        id: blob.id.clone(),
        present: file.get().is_some(),
        compressor: blob.compressor.to_string(),
        chunks: blob.chunk_count,
        chunks_used: image.chunks.of_blob(number).len() as u64,
        compressed_bytes: blob.compressed_size,
        uncompressed_bytes: blob.uncompressed_size,
        metadata_offset: blob.meta.map(|meta: MetaPlace| meta.offset),
        features: names(u64::from(blob.features), &BLOB_FEATURES),
    });
    let wanted: std::collections::HashSet<NodeId> = image.prefetch.iter().copied().collect();
    let mut prefetch = Vec::new();
    if !wanted.is_empty() {
        walk(&image.tree, NodeId::ROOT, Vec::new(), &mut |path, id| {
            if wanted.contains(&id) {
                prefetch.push(to_path(path));
            }
        });
    }
    Nydus {
        kind: "nydus",
        tag: opened.layout.as_ref().and_then(|layout| layout.tag.clone()),
        manifest: opened.layout.as_ref().map(|layout| layout.manifest.clone()),
        fs_version: image.superblock.version.number().to_string(),
        compressor: format.compressor.to_string(),
        digest: format.digester.to_string(),
        chunk_size: format.chunk_size.bytes(),
        flags: image.superblock.flags,
        features: names(image.superblock.flags, &FLAGS),
        bootstrap_bytes: opened.bootstrap.len() as u64,
        counts: Counts::of(&image.tree),
        chunks: chunks.len() as u64,
        chunk_bytes: chunks.iter().map(|c| u64::from(c.info.size)).sum(),
        stored_bytes: chunks.iter().map(|c| u64::from(c.info.stored)).sum(),
        blobs: blobs.collect(),
        prefetch,
        problems: opened.problems.clone(),
    }
}

const FLAGS: [(u64, &str); 3] = [
    (flags::EXPLICIT_UID_GID, "explicit_uid_gid"),
    (flags::HAS_XATTR, "has_xattr"),
    (flags::INLINED_CHUNK_DIGEST, "inlined_chunk_digest"),
];

const BLOB_FEATURES: [(u64, &str); 8] = [
    (blob_features::ALIGNED as u64, "aligned"),
    (blob_features::INLINED_FS_META as u64, "inlined_fs_meta"),
    (blob_features::CHUNK_INFO_V2 as u64, "chunk_info_v2"),
    (blob_features::SEPARATE as u64, "separate"),
    (blob_features::INLINED_CHUNK_DIGEST as u64, "inlined_chunk_digest"),
    (blob_features::HAS_TAR_HEADER as u64, "has_tar_header"),
    (blob_features::HAS_TOC as u64, "has_toc"),
    (blob_features::CAP_TAR_TOC as u64, "cap_tar_toc"),
];

fn names(set: u64, known: &[(u64, &'static str)]) -> Vec<&'static str> {
    known.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| *name).collect()
}

/// Every name at and below a path, each directory before what is in it, sorted.
///
/// # Errors
/// [`ReaderError::NoPath`] when the image does not have it.
pub fn files(opened: &Opened, below: &Path) -> Result<Vec<FileSummary>, ReaderError> {
    use std::os::unix::ffi::OsStrExt;
    let tree = &opened.image.tree;
    let given = below.as_os_str().as_bytes();
    let start = tree.lookup(given).ok_or_else(|| ReaderError::NoPath(below.to_owned()))?;
    let start_path: Vec<u8> = given
        .split(|b| *b == b'/')
        .filter(|name| !name.is_empty())
        .flat_map(|name| [&b"/"[..], name].concat())
        .collect();
    let counts = tree.link_counts();
    let mut first: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
    let mut all = Vec::new();
    walk(tree, start, start_path, &mut |path, id| {
        let (Some(node), Some(links)) = (tree.get(id), counts.get(id.index())) else { return };
        let same_as = (*links > 1).then(|| first.get(&id).map(|path| to_path(path))).flatten();
        if *links > 1 && same_as.is_none() {
            first.insert(id, path.to_vec());
        }
        all.push(file(node, path, *links, same_as));
    });
    Ok(all)
}

fn file(node: &Node, path: &[u8], links: u32, same_as: Option<PathBuf>) -> FileSummary {
    let meta = &node.meta;
    let mut summary = FileSummary {
        path: to_path(path),
        kind: "directory",
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        size: 0,
        mtime: meta.mtime.sec,
        mtime_nsec: meta.mtime.nsec,
        links,
        same_as,
        target: None,
        device: None,
        attributes: meta
            .xattrs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.len() as u64))
            .collect(),
        chunks: 0,
    };
    match &node.kind {
        Kind::Dir(_) => {}
        Kind::File(content) => {
            summary.kind = "file";
            summary.size = content.size;
            summary.chunks = content.chunks.len() as u64;
        }
        Kind::Symlink(target) => {
            summary.kind = "symlink";
            summary.size = target.len() as u64;
            summary.target = Some(to_path(target));
        }
        Kind::Char(rdev) => (summary.kind, summary.device) = ("char", Some(rdev.0)),
        Kind::Block(rdev) => (summary.kind, summary.device) = ("block", Some(rdev.0)),
        Kind::Fifo => summary.kind = "fifo",
        Kind::Socket => summary.kind = "socket",
    }
    summary
}
