use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::chunk::{
    BLOCK, Blob, BlobId, BlobIndex, BlobTail, ChunkDigest, ChunkInfo, ChunkRef, Compressor, Format, FsVersion,
};
use crate::model::tree::{Content, Kind, Meta, Mtime, Node, NodeId, Rdev, Tree};
use crate::rafs::layout::blob_features;
use crate::rafs::write;

/// A tree of everything, from a seed.
fn tree(seed: u64) -> (Tree, Vec<Blob>) {
    let mut dice = seed;
    let mut roll = |n: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % n
    };
    let chunk = u64::from(Format::default().chunk_size.bytes());
    let mut blobs = Vec::new();
    for number in 0..3u8 {
        let mut chunks = Vec::new();
        let (mut offset, mut slot) = (0, 0);
        for size in [1, 4096, 5000, chunk, chunk, chunk - 1] {
            let stored = if roll(2) == 0 { size } else { 1 + size / 2 };
            chunks.push(ChunkInfo {
                digest: ChunkDigest([number * 16 + chunks.len() as u8; 32]),
                index: chunks.len() as u32,
                size: size as u32,
                stored: stored.min(size) as u32,
                offset,
                slot,
            });
            offset += stored.min(size);
            slot += size.next_multiple_of(BLOCK);
        }
        blobs.push(Blob {
            id: BlobId([number; 32]),
            format: Format::default(),
            chunks,
            chunk_count: 6,
            data_end: offset,
            file_size: offset + 96 + 4096,
            uncompressed_size: slot,
            tail: BlobTail {
                features: blob_features::ALIGNED | blob_features::CAP_TAR_TOC,
                info_compressor: 0,
                info_stored: 96,
                info_size: 96,
                toc_size: 0,
                toc_digest: [0; 32],
            },
        });
    }
    let meta = |roll: &mut dyn FnMut(u64) -> u64| Meta {
        mode: roll(0o10000) as u32,
        uid: roll(1 << 32) as u32,
        gid: roll(70_000) as u32,
        mtime: Mtime { sec: roll(1 << 40) as i64 - (1 << 39), nsec: roll(1_000_000_000) as u32 },
        xattrs: (0..roll(3))
            .map(|i| (format!("user.{i}").into_bytes(), vec![i as u8; roll(3000) as usize]))
            .collect(),
    };
    let mut root = meta(&mut roll);
    root.mtime = Mtime::default();
    let mut tree = Tree::new(root);
    let mut dirs = vec![NodeId::ROOT];
    let mut files = Vec::new();
    for n in 0..120u64 {
        let dir = dirs[roll(dirs.len() as u64) as usize];
        let blob = BlobIndex(roll(3) as u16);
        let kind = match roll(9) {
            0 => Kind::Dir(BTreeMap::new()),
            1 => Kind::Symlink(vec![b'x'; 1 + roll(4095) as usize].into()),
            2 => Kind::Char(Rdev(roll(1 << 32))),
            3 => Kind::Block(Rdev(5)),
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::File(Content::default()),
            7 => {
                let whole = roll(3);
                let mut chunks: Vec<_> =
                    (0..whole).map(|i| ChunkRef { blob, index: 3 + (i % 2) as u32 }).collect();
                chunks.push(ChunkRef { blob, index: roll(3) as u32 });
                let last = [1, 4096, 5000][chunks.last().unwrap().index as usize];
                Kind::File(Content { size: whole * chunk + last, chunks })
            }
            _ => Kind::File(Content { size: chunk - 1, chunks: vec![ChunkRef { blob, index: 5 }] }),
        };
        let is_dir = matches!(kind, Kind::Dir(_));
        let is_file = matches!(kind, Kind::File(_));
        let name = format!("{n}-{}", "n".repeat(roll(240) as usize));
        let id = tree.add(dir, name.as_bytes(), Node { meta: meta(&mut roll), kind }).unwrap();
        if is_dir {
            dirs.push(id);
        }
        if is_file {
            files.push(id);
        }
    }
    for n in 0..5 {
        let dir = dirs[roll(dirs.len() as u64) as usize];
        tree.link(dir, format!("link-{n}").as_bytes(), files[roll(files.len() as u64) as usize]).unwrap();
    }
    (tree, blobs)
}

/// A tree as its names lead to it: node numbers are the writer's and the reader's own.
fn by_name(tree: &Tree) -> Vec<(Vec<u8>, String)> {
    let mut all = Vec::new();
    let mut first = std::collections::HashMap::new();
    let mut todo = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let node = tree.get(id).unwrap();
        let leader = first.entry(id).or_insert_with(|| path.clone()).clone();
        let shown = match &node.kind {
            Kind::Dir(children) => {
                for (name, id) in children.iter().rev() {
                    todo.push(([&path, &b"/"[..], name].concat(), *id));
                }
                "dir".to_owned()
            }
            Kind::File(content) => format!("file {}", content.size),
            other => format!("{other:?}"),
        };
        all.push((path, format!("{:?} {shown} {leader:?}", node.meta)));
    }
    all
}

/// Every chunk of every file, by digest: blobs are renumbered by first use.
fn digests(tree: &Tree, find: impl Fn(ChunkRef) -> ChunkDigest) -> Vec<Vec<ChunkDigest>> {
    let mut all = Vec::new();
    let mut todo = vec![NodeId::ROOT];
    while let Some(id) = todo.pop() {
        match &tree.get(id).unwrap().kind {
            Kind::Dir(children) => todo.extend(children.values().rev()),
            Kind::File(content) => all.push(content.chunks.iter().map(|c| find(*c)).collect()),
            _ => {}
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(seed: u64) {
        let (tree, blobs) = tree(seed);
        let out = write(&tree, &blobs, Format::default(), &[]).unwrap();
        let image = bootstrap(&out.bytes).unwrap().whole().unwrap();
        prop_assert_eq!(by_name(&image.tree), by_name(&tree));
        let ours = digests(&tree, |c| blobs[usize::from(c.blob.0)].chunks[c.index as usize].digest);
        prop_assert_eq!(digests(&image.tree, |c| image.chunks.get(c).unwrap().info.digest), ours);
        prop_assert_eq!(image.superblock.format, Format::default());
        prop_assert_eq!(image.chunks.as_slice().len() as u64, out.chunks);
        for (blob, index) in image.blobs.iter().zip(&out.blobs) {
            let written = &blobs[usize::from(index.0)];
            prop_assert_eq!(&blob.id, &written.id.to_string());
            prop_assert_eq!(blob.compressed_size, written.file_size);
            prop_assert_eq!(blob.compressor, Compressor::zstd());
        }
        // And again: equal trees give equal bytes, so the reader has lost nothing.
        let back: Vec<Blob> = out.blobs.iter().map(|b| blobs[usize::from(b.0)].clone()).collect();
        prop_assert_eq!(write(&image.tree, &back, Format::default(), &[]).unwrap().bytes, out.bytes);
    }

    #[test]
    fn damage_is_an_error_or_harmless(seed: u64, hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let (tree, blobs) = tree(seed % 16);
        let mut bytes = write(&tree, &blobs, Format::default(), &[]).unwrap().bytes;
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = bootstrap(&bytes);
    }

    #[test]
    fn truncation_is_an_error(seed: u64, cut: prop::sample::Index) {
        let (tree, blobs) = tree(seed % 16);
        let bytes = write(&tree, &blobs, Format::default(), &[]).unwrap().bytes;
        let cut = cut.index(bytes.len());
        prop_assert!(bootstrap(&bytes[..cut]).and_then(Reading::whole).is_err());
    }
}

/// The older version.
fn v5() -> Format {
    Format { version: FsVersion::V5, ..Format::default() }
}

/// As [`tree`], with blobs made for that version.
fn older_tree(seed: u64) -> (Tree, Vec<Blob>) {
    let (tree, mut blobs) = tree(seed);
    blobs.iter_mut().for_each(|blob| blob.format = v5());
    (tree, blobs)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn version_5_is_read_as_it_was_written(seed: u64) {
        let (tree, blobs) = older_tree(seed);
        let out = write(&tree, &blobs, v5(), &[]).unwrap();
        let image = bootstrap(&out.bytes).unwrap().whole().unwrap();
        prop_assert_eq!(by_name(&image.tree), by_name(&tree));
        let ours = digests(&tree, |c| blobs[usize::from(c.blob.0)].chunks[c.index as usize].digest);
        prop_assert_eq!(digests(&image.tree, |c| image.chunks.get(c).unwrap().info.digest), ours);
        prop_assert_eq!(image.superblock.version, FsVersion::V5);
    }

    #[test]
    fn damage_of_version_5_is_an_error_or_harmless(seed: u64, hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let (tree, blobs) = older_tree(seed % 16);
        let mut bytes = write(&tree, &blobs, v5(), &[]).unwrap().bytes;
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = bootstrap(&bytes);
    }

    #[test]
    fn truncation_of_version_5_is_an_error(seed: u64, cut: prop::sample::Index) {
        let (tree, blobs) = older_tree(seed % 16);
        let bytes = write(&tree, &blobs, v5(), &[]).unwrap().bytes;
        // What pads the last of it to 8 bytes is no loss.
        let cut = cut.index(bytes.len() / 8) * 8;
        prop_assert!(bootstrap(&bytes[..cut]).and_then(Reading::whole).is_err());
    }
}

#[test]
fn a_digest_of_version_5_stands_for_everything_below() {
    let (tree, blobs) = older_tree(3);
    let mut bytes = write(&tree, &blobs, v5(), &[]).unwrap().bytes;
    let table = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
    // The second inode: its digest is damaged, and with it what its directory's is made of.
    let at = u32::from_le_bytes(bytes[table + 4..table + 8].try_into().unwrap()) as usize * 8;
    bytes[at] ^= 1;
    let faults = bootstrap(&bytes).unwrap().faults;
    assert!(faults.iter().any(|f| f.to_string().contains("the digest of a directory")), "{faults:?}");
}

/// The offset of the root's inode.
fn root_at(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[1064..1068].try_into().unwrap()) as usize * 4096 + 4096
}

#[test]
fn directories_that_share_their_blocks_cost_no_more_than_the_image_has() {
    // A thousand directories whose entries are the same block full of names.
    let mut tree = Tree::new(Meta::default());
    let dir = |tree: &mut Tree, n: u32| {
        let node = Node { meta: Meta::default(), kind: Kind::Dir(BTreeMap::new()) };
        tree.add(NodeId::ROOT, format!("{n:04}").as_bytes(), node).unwrap()
    };
    for n in 0..1000 {
        let id = dir(&mut tree, n);
        if n == 0 {
            for i in 0..3000u32 {
                let node = Node { meta: Meta::default(), kind: Kind::Fifo };
                tree.add(id, format!("{i:0100}").as_bytes(), node).unwrap();
            }
        }
    }
    let mut bytes = write(&tree, &[], Format::default(), &[]).unwrap().bytes;
    // The first directory's inode is the one after the root; the others take its size, place and layout.
    let inodes: Vec<usize> = (root_at(&bytes)..bytes.len() - 64)
        .step_by(32)
        .filter(|at| {
            u16::from_le_bytes(bytes[at + 4..at + 6].try_into().unwrap()) == 0o40000 && bytes[*at] & 1 == 1
        })
        .collect();
    assert!(inodes.len() > 900);
    let first: Vec<u8> = bytes[inodes[1]..][..24].to_vec();
    for at in &inodes[2..] {
        bytes[*at..][..24].copy_from_slice(&first);
    }
    let reading = bootstrap(&bytes).unwrap();
    assert!(reading.image.tree.nodes().len() < 20_000);
    assert!(reading.faults.len() > 100);
}

#[test]
fn one_bad_inode_does_not_hide_the_others() {
    let (tree, blobs) = tree(7);
    let mut bytes = write(&tree, &blobs, Format::default(), &[]).unwrap().bytes;
    let whole = bootstrap(&bytes).unwrap();
    assert_eq!(whole.faults, []);
    let count = whole.image.tree.nodes().len();
    // The second inode: its type is none.
    let root = bootstrap(&bytes).unwrap().image.tree.children(NodeId::ROOT).unwrap().len();
    assert!(root > 1);
    let second = root_at(&bytes) + 64;
    let at = (second..bytes.len()).step_by(32).find(|at| bytes[at + 1] == 0 && bytes[*at] == 9).unwrap();
    bytes[at + 5] |= 0xf0;
    let reading = bootstrap(&bytes).unwrap();
    assert_eq!(reading.faults.len(), 1, "{:?}", reading.faults);
    assert!(matches!(&reading.faults[0], ReadError::In { path, .. } if path.len() > 1));
    assert!(reading.image.tree.nodes().len() < count && reading.image.tree.nodes().len() > count / 2);
}

#[test]
fn other_files_are_no_images() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &[0xff; 9000]] {
        assert_eq!(bootstrap(bytes).unwrap_err(), ReadError::NotRafs);
    }
}
