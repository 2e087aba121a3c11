//! A tree with all kinds of entries and its blobs, for the tests of both versions.

use std::collections::BTreeMap;

use crate::model::chunk::{
    BLOCK, Blob, BlobId, BlobIndex, BlobTail, ChunkDigest, ChunkInfo, ChunkRef, Format,
};
use crate::model::tree::{Content, Kind, Meta, Mtime, Node, NodeId, Rdev, Tree};

use super::layout::blob_features;

pub(super) fn node(kind: Kind) -> Node {
    Node { meta: Meta { mode: 0o755, ..Meta::default() }, kind }
}

pub(super) fn blob(id: u8, sizes: &[u32]) -> Blob {
    let mut slot = 0;
    let chunks: Vec<ChunkInfo> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| {
            let at = slot;
            slot += u64::from(*size).next_multiple_of(BLOCK);
            ChunkInfo {
                digest: ChunkDigest([id ^ i as u8; 32]),
                index: i as u32,
                size: *size,
                stored: *size,
                offset: at,
                slot: at,
            }
        })
        .collect();
    Blob {
        id: BlobId([id; 32]),
        format: Format::default(),
        chunk_count: sizes.len() as u32,
        chunks,
        data_end: slot,
        file_size: slot + 4096,
        uncompressed_size: slot,
        tail: BlobTail {
            features: blob_features::ALIGNED | blob_features::CAP_TAR_TOC,
            info_compressor: 0,
            info_stored: 16 * sizes.len() as u64,
            info_size: 16 * sizes.len() as u64,
            toc_size: 0,
            toc_digest: [0; 32],
        },
    }
}

pub(super) fn file(blob: u16, index: u32, size: u64) -> Node {
    let chunks = vec![ChunkRef { blob: BlobIndex(blob), index }];
    node(Kind::File(Content { size, chunks }))
}

pub(super) fn sample() -> (Tree, Vec<Blob>) {
    let mut tree = Tree::new(Meta { mtime: Mtime { sec: 5, nsec: 6 }, ..Meta::default() });
    let dir = tree.add(NodeId::ROOT, b"dir", node(Kind::Dir(BTreeMap::new()))).unwrap();
    for i in 0..500 {
        let name = format!("{i:0>200}");
        tree.add(dir, name.as_bytes(), node(Kind::Fifo)).unwrap();
    }
    let a = tree.add(NodeId::ROOT, b"!first", file(2, 0, 100)).unwrap();
    tree.link(dir, b"again", a).unwrap();
    tree.add(NodeId::ROOT, b"b", file(0, 1, 4096)).unwrap();
    tree.add(NodeId::ROOT, b"link", node(Kind::Symlink(vec![b'x'; 4090].into()))).unwrap();
    tree.add(NodeId::ROOT, b"null", node(Kind::Char(Rdev(0x103)))).unwrap();
    (tree, vec![blob(1, &[10, 4096]), blob(2, &[9]), blob(3, &[100])])
}
