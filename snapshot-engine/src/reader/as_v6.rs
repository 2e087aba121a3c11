//! An image of version 5 as one of version 6: the same tree, all chunks in one blob that exists nowhere but on the exported device.

use crate::model::chunk::{
    BLOCK, Blob, BlobId, BlobIndex, BlobLayout, BlobTail, ChunkInfo, ChunkRef, Compressor, Format, FsVersion,
    MAX_CHUNKS_PER_BLOB,
};
use crate::model::tree::{Kind, Tree};
use crate::rafs;
use crate::rafs::layout::blob_features;
use crate::rafs::read::Image;

use super::ReaderError;

/// A bootstrap of version 6.
pub(super) struct AsV6 {
    pub(super) bootstrap: Vec<u8>,
    /// Bytes of its one blob's address space; none if there is no content.
    pub(super) sizes: Vec<u64>,
    /// The slot of each chunk, in the order of [`Image::chunks`].
    pub(super) slots: Vec<u64>,
}

/// Writes the bootstrap.
///
/// # Errors
/// When the tree holds what version 6 cannot: attributes without a known prefix, too many chunks.
pub(super) fn convert(image: &Image) -> Result<AsV6, ReaderError> {
    let chunks = image.chunks.as_slice();
    if chunks.len() > MAX_CHUNKS_PER_BLOB {
        return Err(ReaderError::Unfit {
            what: "exported: it has more chunks than one blob of RAFS v6 can have",
            remedy: "unpack it, or make it again with larger chunks",
        });
    }
    let mut end = 0;
    let mut slots = Vec::with_capacity(chunks.len());
    let infos = chunks.iter().map(|chunk| {
        let slot = end;
        slots.push(slot);
        end += u64::from(chunk.info.size).next_multiple_of(BLOCK);
        ChunkInfo { stored: chunk.info.size, offset: slot, slot, ..chunk.info }
    });
    let format = Format {
        version: FsVersion::V6,
        compressor: Compressor::None,
        layout: BlobLayout::Plain,
        ..image.superblock.format
    };
    let infos: Vec<ChunkInfo> = infos.collect();
    let blob = Blob {
        // Its name is nobody's: there is no such file.
        id: BlobId([0; 32]),
        format,
        chunk_count: infos.len() as u32,
        chunks: infos,
        data_end: end,
        file_size: end,
        uncompressed_size: end,
        tail: BlobTail {
            features: blob_features::ALIGNED | blob_features::CAP_TAR_TOC,
            info_compressor: 0,
            info_stored: 0,
            info_size: 0,
            toc_size: 0,
            toc_digest: [0; 32],
        },
    };
    let tree = renamed(image)?;
    let written = rafs::write(&tree, &[blob], format, &image.prefetch).map_err(ReaderError::AsV6)?;
    let sizes = written.blobs.iter().map(|_| end).collect();
    Ok(AsV6 { bootstrap: written.bytes, sizes, slots })
}

/// The tree with its chunks named by their place in the list of all.
fn renamed(image: &Image) -> Result<Tree, ReaderError> {
    let chunks = image.chunks.as_slice();
    let mut nodes = image.tree.clone().into_nodes();
    for node in &mut nodes {
        if let Kind::File(content) = &mut node.kind {
            for name in &mut content.chunks {
                let at = chunks.partition_point(|chunk| chunk.name < *name);
                *name = ChunkRef { blob: BlobIndex(0), index: at as u32 };
            }
        }
    }
    // The same names lead to the same nodes.
    Tree::from_nodes(nodes).map_err(|_| ReaderError::Unfit {
        what: "exported: its tree is damaged",
        remedy: "`snapshot-engine image check` shows what is wrong with it",
    })
}
