use zerocopy::FromBytes;

use super::*;
use crate::model::chunk::{BlobIndex, BlobLayout};
use crate::model::tree::{Content, Meta, Node};
use crate::rafs::sample::{blob, file, node, sample};

#[test]
fn fields_are_where_readers_look() {
    let (tree, blobs) = sample();
    let out = write(&tree, &blobs, Format::default(), &[]).unwrap();
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
    let root = crate::rafs::layout::Inode::ref_from_bytes(&out.bytes[root_at..][..64]).unwrap();
    assert_eq!((root.ino.get(), root.nlink.get(), root.mtime.get()), (128, 3, 0));
}

#[test]
fn without_data_there_are_no_tables() {
    let mut tree = Tree::new(Meta::default());
    tree.add(NodeId::ROOT, b"empty", node(Kind::File(Content::default()))).unwrap();
    let out = write(&tree, &[blob(1, &[5])], Format::default(), &[]).unwrap();
    let sb = Super::ref_from_bytes(&out.bytes[1024..1152]).unwrap();
    assert_eq!((sb.extra_devices.get(), sb.blocks.get(), sb.meta_blkaddr.get()), (0, 0, 0));
    assert!(out.blobs.is_empty());
    assert_eq!(out.bytes.len(), 8192);
}

#[test]
fn equal_trees_give_equal_bytes() {
    let (tree, blobs) = sample();
    let a = write(&tree, &blobs, Format::default(), &[]).unwrap();
    let b = write(&tree.clone(), &blobs, Format::default(), &[]).unwrap();
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
    let error = write(&tree, &blobs, Format::default(), &[]).unwrap_err();
    assert_eq!(error, RafsError::Attribute { path: b"/dir/sock".to_vec(), attribute: b"odd.name".to_vec() });
    for wrong in [file(9, 0, 10), file(0, 9, 10), file(0, 0, 11), file(0, 0, 2 << 20)] {
        let mut tree = Tree::new(Meta::default());
        tree.add(NodeId::ROOT, b"f", wrong).unwrap();
        assert_eq!(
            write(&tree, &blobs, Format::default(), &[]).unwrap_err(),
            RafsError::Chunks { path: b"/f".to_vec() }
        );
    }
}

#[test]
fn the_prefetch_table_follows_the_blob_table() {
    let (tree, blobs) = sample();
    let wanted = [tree.lookup(b"dir").unwrap(), tree.lookup(b"b").unwrap()];
    let out = write(&tree, &blobs, Format::default(), &wanted).unwrap();
    let ext = SuperExt::ref_from_bytes(&out.bytes[1152..1408]).unwrap();
    assert_eq!((ext.prefetch_table_offset.get(), ext.prefetch_table_size.get()), (4096 + 512, 8));
    let sb = Super::ref_from_bytes(&out.bytes[1024..1152]).unwrap();
    let meta_at = sb.meta_blkaddr.get() as usize * 4096;
    for (i, kind) in [libc::S_IFDIR, libc::S_IFREG].into_iter().enumerate() {
        let nid = u32::from_le_bytes(out.bytes[4096 + 512 + 4 * i..][..4].try_into().unwrap()) as usize;
        let inode =
            crate::rafs::layout::Inode::ref_from_bytes(&out.bytes[meta_at + nid * 32..][..64]).unwrap();
        assert_eq!(u32::from(inode.mode.get()) & libc::S_IFMT, kind);
    }
}

#[test]
fn data_can_be_verified_only_if_every_blob_has_its_digests() {
    let flags = |bytes: &[u8]| SuperExt::ref_from_bytes(&bytes[1152..1408]).unwrap().flags.get();
    let (tree, mut blobs) = sample();
    blobs[2].tail.features |= crate::rafs::layout::blob_features::INLINED_CHUNK_DIGEST;
    let format = Format { layout: BlobLayout::Toc, ..Format::default() };
    assert_eq!(flags(&write(&tree, &blobs, format, &[]).unwrap().bytes), 0x100_00b4);
    blobs[0].tail.features |= crate::rafs::layout::blob_features::INLINED_CHUNK_DIGEST;
    assert_eq!(flags(&write(&tree, &blobs, format, &[]).unwrap().bytes), 0x100_01b4);
}

/// Bytes are a promise: an image made again has the same digest. A change here is a change of the format that is written.
#[test]
fn the_bytes_are_those_of_before() {
    let (tree, blobs) = sample();
    let out = write(&tree, &blobs, Format::default(), &[tree.lookup(b"b").unwrap()]).unwrap();
    assert_eq!(
        blake3::hash(&out.bytes).to_hex().as_str(),
        "fa6b62251effc4dd22f5112e4315c4189f3b5f2d793ea288ac0e43d1e4b2ab36"
    );
}
