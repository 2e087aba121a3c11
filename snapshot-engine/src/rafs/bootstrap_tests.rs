use zerocopy::FromBytes;

use super::*;
use crate::model::chunk::{BlobId, ChunkInfo};
use crate::model::tree::{Meta, Node, Rdev};

fn node(kind: Kind) -> Node {
    Node { meta: Meta { mode: 0o755, ..Meta::default() }, kind }
}

fn blob(id: u8, sizes: &[u32]) -> Blob {
    let mut slot = 0;
    let chunks: Vec<ChunkInfo> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| {
            let at = slot;
            slot += u64::from(*size).next_multiple_of(BLOCK);
            ChunkInfo {
                digest: ChunkDigest([id ^ i as u8; 32]),
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
        chunks,
        data_size: slot,
        file_size: slot + 4096,
        uncompressed_size: slot,
    }
}

fn file(blob: u16, index: u32, size: u64) -> Node {
    let chunks = vec![ChunkRef { blob: BlobIndex(blob), index }];
    node(Kind::File(Content { size, chunks }))
}

fn sample() -> (Tree, Vec<Blob>) {
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

#[test]
fn fields_are_where_readers_look() {
    let (tree, blobs) = sample();
    let out = write(&tree, &blobs, Format::default()).unwrap();
    assert_eq!(out.bytes.len() % 4096, 0);
    assert_eq!(out.blobs, [BlobIndex(2), BlobIndex(0)], "by first use, the unused one left out");
    assert_eq!((out.entries, out.chunks), (507, 2));
    let sb = Super::ref_from_bytes(&out.bytes[1024..1152]).unwrap();
    assert_eq!((sb.root_nid.get(), sb.inos.get(), sb.extra_devices.get()), (128, 507, 2));
    assert_eq!(sb.blocks.get(), 1 + 2);
    let ext = SuperExt::ref_from_bytes(&out.bytes[1152..1408]).unwrap();
    assert_eq!(ext.flags.get(), 0x100_00b4, "zstd, blake3");
    assert_eq!((ext.blob_table_offset.get(), ext.blob_table_size.get()), (4096, 512));
    let root_at = sb.meta_blkaddr.get() as usize * 4096 + 4096;
    let root = super::super::layout::Inode::ref_from_bytes(&out.bytes[root_at..][..64]).unwrap();
    assert_eq!((root.ino.get(), root.nlink.get(), root.mtime.get()), (128, 3, 0));
}

#[test]
fn without_data_there_are_no_tables() {
    let mut tree = Tree::new(Meta::default());
    tree.add(NodeId::ROOT, b"empty", node(Kind::File(Content::default()))).unwrap();
    let out = write(&tree, &[blob(1, &[5])], Format::default()).unwrap();
    let sb = Super::ref_from_bytes(&out.bytes[1024..1152]).unwrap();
    assert_eq!((sb.extra_devices.get(), sb.blocks.get(), sb.meta_blkaddr.get()), (0, 0, 0));
    assert!(out.blobs.is_empty());
    assert_eq!(out.bytes.len(), 8192);
}

#[test]
fn equal_trees_give_equal_bytes() {
    let (tree, blobs) = sample();
    let a = write(&tree, &blobs, Format::default()).unwrap();
    let b = write(&tree.clone(), &blobs, Format::default()).unwrap();
    assert!(a.bytes == b.bytes);
}

#[test]
fn what_cannot_be_stored_is_named() {
    let (mut tree, blobs) = sample();
    let bad = Node {
        meta: Meta { xattrs: vec![(b"odd.name".to_vec(), Vec::new())], ..Meta::default() },
        kind: Kind::Socket,
    };
    let dir = tree.lookup(b"dir").unwrap();
    tree.add(dir, b"sock", bad).unwrap();
    let error = write(&tree, &blobs, Format::default()).unwrap_err();
    assert_eq!(error, RafsError::Attribute { path: b"/dir/sock".to_vec(), attribute: b"odd.name".to_vec() });
    for wrong in [file(9, 0, 10), file(0, 9, 10), file(0, 0, 11), file(0, 0, 2 << 20)] {
        let mut tree = Tree::new(Meta::default());
        tree.add(NodeId::ROOT, b"f", wrong).unwrap();
        assert_eq!(
            write(&tree, &blobs, Format::default()).unwrap_err(),
            RafsError::Chunks { path: b"/f".to_vec() }
        );
    }
}
