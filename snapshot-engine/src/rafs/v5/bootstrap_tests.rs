use zerocopy::FromBytes;

use super::*;
use crate::model::chunk::{BlobIndex, FsVersion};
use crate::model::tree::Meta;
use crate::rafs::sample::{blob, file, node, sample};

fn v5(blobs: &mut [Blob]) -> Format {
    let format = Format { version: FsVersion::V5, ..Format::default() };
    for blob in blobs {
        blob.format = format;
    }
    format
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..][..4].try_into().unwrap())
}

/// An inode by its position, its name, and what follows it.
fn inode<'a>(bytes: &'a [u8], sb: &Super, at: usize) -> (&'a Inode, &'a [u8], &'a [u8]) {
    let offset = word(bytes, sb.inode_table_offset.get() as usize + at * 4) as usize * 8;
    let inode = Inode::ref_from_bytes(&bytes[offset..][..128]).unwrap();
    let rest = &bytes[offset + 128..];
    let size = usize::from(inode.name_size.get());
    (inode, &rest[..size], &rest[size.next_multiple_of(8)..])
}

#[test]
fn fields_are_where_readers_look() {
    let (tree, mut blobs) = sample();
    let format = v5(&mut blobs);
    let out = write(&tree, &blobs, format, &[tree.lookup(b"b").unwrap()]).unwrap();
    assert_eq!(out.blobs, [BlobIndex(2), BlobIndex(0)], "by first use, the unused one left out");
    // The file with two names counts twice, and so does every other name.
    assert_eq!((out.entries, out.chunks), (507, 2));
    let sb = Super::ref_from_bytes(&out.bytes[..SUPER_SIZE]).unwrap();
    assert_eq!((sb.inodes.get(), sb.inode_table_entries.get()), (506, 507));
    assert_eq!(sb.flags.get(), 0x100_00b4, "zstd, blake3");
    assert_eq!((sb.ext_blob_table_entries.get(), sb.prefetch_table_entries.get()), (2, 1));
    let blob_table = &out.bytes[sb.blob_table_offset.get() as usize..][..sb.blob_table_size.get() as usize];
    assert_eq!(blob_table[8..72], [b'0', b'3'].repeat(32));
    assert_eq!((blob_table[72], blob_table.len()), (0, (72 + 1 + 72usize).next_multiple_of(8)));
    let ext = &out.bytes[sb.ext_blob_table_offset.get() as usize..][..128];
    let ext = ExtBlob::ref_from_bytes(&ext[64..]).unwrap();
    assert_eq!((ext.chunk_count.get(), ext.compressed_size.get()), (2, 8192));

    let (root, name, _) = inode(&out.bytes, sb, 0);
    assert_eq!((name, root.ino.get(), root.parent.get(), root.nlink.get()), (&b"/"[..], 1, 0, 3));
    assert_eq!((root.child_index.get(), root.child_count.get(), root.mtime.get()), (2, 5, 0));
    let (first, name, chunks) = inode(&out.bytes, sb, 1);
    assert_eq!((name, first.ino.get(), first.nlink.get()), (&b"!first"[..], 2, 2));
    let chunk = ChunkEntry::ref_from_bytes(&chunks[..80]).unwrap();
    assert_eq!((chunk.blob_index.get(), chunk.uncompressed_size.get()), (0, 100));
    assert_eq!(first.digest, *blake3::hash(&chunk.digest).as_bytes());
    assert_eq!(word(&out.bytes, sb.prefetch_table_offset.get() as usize), 3, "`b`");
    let again = (0..507).map(|at| inode(&out.bytes, sb, at)).find(|(_, name, _)| *name == b"again").unwrap();
    assert_eq!((again.0.ino.get(), again.0.digest), (2, first.digest));
    let (link, _, target) = inode(&out.bytes, sb, 4);
    assert_eq!((link.symlink_size.get(), link.size.get()), (4090, 4090));
    assert!(target.starts_with(&[b'x'; 4090]));
}

#[test]
fn a_directory_s_digest_is_that_of_its_children_s() {
    let (tree, mut blobs) = sample();
    let format = v5(&mut blobs);
    let out = write(&tree, &blobs, format, &[]).unwrap();
    let sb = Super::ref_from_bytes(&out.bytes[..SUPER_SIZE]).unwrap();
    for at in [0, 3] {
        let (dir, _, _) = inode(&out.bytes, sb, at);
        let mut hasher = blake3::Hasher::new();
        for child in dir.child_index.get()..dir.child_index.get() + dir.child_count.get() {
            hasher.update(&inode(&out.bytes, sb, child as usize - 1).0.digest);
        }
        assert_eq!(dir.digest, *hasher.finalize().as_bytes());
    }
}

#[test]
fn attributes_of_any_name_and_links_of_any_type() {
    let mut tree = Tree::new(Meta::default());
    let xattrs = vec![(b"odd.name".to_vec(), vec![1; 65536]), (b"user.b".to_vec(), Vec::new())];
    let mut fifo = node(Kind::Fifo);
    fifo.meta.xattrs = xattrs;
    let id = tree.add(NodeId::ROOT, b"a", fifo).unwrap();
    tree.link(NodeId::ROOT, b"b", id).unwrap();
    let format = Format { version: FsVersion::V5, ..Format::default() };
    let out = write(&tree, &[], format, &[]).unwrap();
    let sb = Super::ref_from_bytes(&out.bytes[..SUPER_SIZE]).unwrap();
    let (a, _, rest) = inode(&out.bytes, sb, 1);
    assert_eq!((a.ino.get(), a.nlink.get(), a.flags.get()), (2, 1, inode_flags::XATTR));
    assert_eq!(u64::from_le_bytes(rest[..8].try_into().unwrap()), 4 + 9 + 65536 + 4 + 7);
    assert_eq!(inode(&out.bytes, sb, 2).0.ino.get(), 3, "a FIFO's second name is a FIFO of its own");
    assert!(out.blobs.is_empty() && sb.blob_table_size.get() == 0);
}

#[test]
fn what_cannot_be_stored_is_named() {
    for wrong in [file(9, 0, 10), file(0, 9, 10), file(0, 0, 11)] {
        let mut tree = Tree::new(Meta::default());
        tree.add(NodeId::ROOT, b"f", wrong).unwrap();
        let mut blobs = [blob(1, &[10])];
        let format = v5(&mut blobs);
        let error = write(&tree, &blobs, format, &[]).unwrap_err();
        assert_eq!(error, RafsError::Chunks { path: b"/f".to_vec() });
    }
}

/// Bytes are a promise: an image made again has the same digest. A change here is a change of the format that is written.
#[test]
fn the_bytes_are_those_of_before() {
    let (tree, mut blobs) = sample();
    let format = v5(&mut blobs);
    let out = write(&tree, &blobs, format, &[tree.lookup(b"b").unwrap()]).unwrap();
    assert_eq!(
        blake3::hash(&out.bytes).to_hex().as_str(),
        "d1232f424d85bccc9fc1dfec9f1662df11e321576c9443d8519495053d160690"
    );
}
