//! An image as it was read, whichever version it has.

use serde::Serialize;

use crate::model::chunk::{ChunkInfo, ChunkRef, Compressor, Digester, Format};
use crate::model::tree::{Kind, NodeId, Tree};

use super::blob_meta::MetaPlace;
use crate::model::chunk::FsVersion;

/// What the superblock says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Version of the format.
    pub version: FsVersion,
    /// The flags as they are ([`layout::flags`](super::super::layout::flags)).
    pub flags: u64,
    /// How chunks are made. Blobs may say otherwise for themselves.
    pub format: Format,
    /// Inodes or names, as the version counts them.
    pub inodes: u64,
}

/// A blob as the bootstrap tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its id and file name: letters and digits only, 64 of them at most. As a rule the sha256 of the blob.
    pub id: String,
    /// Chunks in it.
    pub chunk_count: u32,
    /// How they are compressed.
    pub compressor: Compressor,
    /// How they are named.
    pub digester: Digester,
    /// [`layout::blob_features`](super::super::layout::blob_features).
    pub features: u32,
    /// Bytes of the blob file, or of its data.
    pub compressed_size: u64,
    /// Bytes of its uncompressed address space.
    pub uncompressed_size: u64,
    /// Where the blob keeps the places of its chunks, if it does.
    pub meta: Option<MetaPlace>,
    /// Bytes of the table of contents at its end, 0 without one.
    pub toc_size: u32,
    /// SHA-256 of that table.
    pub toc_digest: [u8; 32],
}

impl BlobInfo {
    /// The first byte behind all chunk data, as far as the bootstrap says.
    #[must_use]
    pub fn data_end(&self) -> u64 {
        match &self.meta {
            Some(meta) if meta.offset > 0 => meta.offset,
            _ => self.compressed_size,
        }
    }
}

/// A chunk as the bootstrap tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Which one.
    pub name: ChunkRef,
    /// Digest, sizes, places.
    pub info: ChunkInfo,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// CRC-32C of the raw bytes, where it is given.
    pub crc32: Option<u32>,
}

/// The chunks the tree refers to, by blob and index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Sorts them.
    ///
    /// # Errors
    /// Chunks with the same name must be the same: the name of one that is not is given back.
    pub fn new(mut chunks: Vec<Chunk>) -> Result<Chunks, ChunkRef> {
        chunks.sort_unstable_by_key(|chunk| chunk.name);
        for pair in chunks.windows(2) {
            if pair[0].name == pair[1].name && pair[0] != pair[1] {
                return Err(pair[0].name);
            }
        }
        chunks.dedup();
        Ok(Chunks(chunks))
    }

    /// One chunk.
    #[must_use]
    pub fn get(&self, name: ChunkRef) -> Option<&Chunk> {
        self.0.binary_search_by_key(&name, |chunk| chunk.name).ok().map(|at| &self.0[at])
    }

    /// Those of one blob, by position in the table.
    #[must_use]
    pub fn of_blob(&self, blob: usize) -> &[Chunk] {
        let first = self.0.partition_point(|chunk| usize::from(chunk.name.blob.0) < blob);
        let end = self.0.partition_point(|chunk| usize::from(chunk.name.blob.0) <= blob);
        &self.0[first..end]
    }

    /// All, by blob and index.
    #[must_use]
    pub fn as_slice(&self) -> &[Chunk] {
        &self.0
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What holds for the whole.
    pub superblock: Superblock,
    /// The tree; chunk references name [`Image::chunks`].
    pub tree: Tree,
    /// Its blobs.
    pub blobs: Vec<BlobInfo>,
    /// Its chunks.
    pub chunks: Chunks,
    /// What is to be fetched first.
    pub prefetch: Vec<NodeId>,
}

/// What a tree holds, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Names, the root's included.
    pub entries: u64,
    /// Directories.
    pub directories: u64,
    /// Regular files, each counted once.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, FIFOs and sockets.
    pub special: u64,
    /// Further names of inodes that have one already.
    pub hard_links: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Counts {
    /// Counts a tree.
    #[must_use]
    pub fn of(tree: &Tree) -> Counts {
        let mut counts = Counts::default();
        for (node, names) in tree.nodes().iter().zip(tree.link_counts()) {
            counts.entries += u64::from(names);
            counts.hard_links += u64::from(names.saturating_sub(1));
            match &node.kind {
                Kind::Dir(_) => counts.directories += 1,
                Kind::File(content) => {
                    counts.files += 1;
                    counts.bytes = counts.bytes.saturating_add(content.size);
                }
                Kind::Symlink(_) => counts.symlinks += 1,
                Kind::Char(_) | Kind::Block(_) | Kind::Fifo | Kind::Socket => counts.special += 1,
            }
        }
        counts
    }
}
