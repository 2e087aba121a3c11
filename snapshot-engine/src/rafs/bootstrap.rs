//! The bootstrap of RAFS v6 (builder/src/core/v6.rs, `Bootstrap::v6_dump`).
//!
//! ```text
//! 0      1024        1152             1408      4K          4K          4K                4K          4K
//! | zero | superblock | ext superblock | devices | blob table, | one empty | inodes, tails, | directory | chunk |
//! |      |            |                |         | prefetch    | block     | chunk indexes  | blocks    | table |
//!                                                              ^ meta_blkaddr: nid = (offset - it) / 32
//! ```
//!
//! The empty block keeps the root's nid at 128, never 0. Inodes are written breadth first; whole blocks of directories
//! and long link targets follow all inodes.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::model::chunk::{BLOCK, Blob, Compressor, Digester, Format};
use crate::model::tree::{Kind, Mtime, NodeId, Tree};

use super::dirent::{self, Entry};
use super::inode::{self, Data, Fields, Shape, chunk_format, file_type};
use super::layout::{
    BlobEntry, COMPAT_RAFS_V6, ChunkEntry, ChunkIndex, DEVICE_OFFSET, Device, INCOMPAT, SLOT, SUPER_MAGIC,
    SUPER_OFFSET, Super, SuperExt,
};
use super::used::Used;
use super::{Bootstrap, RafsError, xattr};

/// The most chunk indexes of an image: 512 MiB of them, 64 TiB of content at the default chunk size.
const MAX_INDEXES: u64 = 1 << 26;
/// Flat addresses of blobs are multiples of this many bytes (`V6_BLOCK_SEG_ALIGNMENT`).
const SEGMENT: u64 = 0x8_0000;

/// Where a node lies.
struct Placed {
    id: NodeId,
    parent: usize,
    shape: Shape,
    xattrs: Vec<u8>,
    /// Offset of the inode from `meta_blkaddr`.
    offset: u64,
    /// Offset of its whole blocks from `meta_blkaddr`.
    blocks: u64,
}

impl Placed {
    fn nid(&self) -> u64 {
        self.offset / SLOT
    }
}

pub(super) fn write(
    tree: &Tree,
    blobs: &[Blob],
    format: Format,
    prefetch: &[NodeId],
) -> Result<Bootstrap, RafsError> {
    let order = breadth_first(tree);
    let nodes = order.iter().enumerate().map(|(at, (id, _))| (at, *id));
    let used = Used::collect(tree, nodes, blobs, format, |at| path(tree, &order, at))?;
    // Without data there is nothing to prefetch, and no table for it.
    let prefetch = if used.order.is_empty() { &[] } else { prefetch };
    let table_at =
        (DEVICE_OFFSET as u64 + (used.order.len() * size_of::<Device>()) as u64).next_multiple_of(BLOCK);
    let prefetch_at = table_at + (used.order.len() * size_of::<BlobEntry>()) as u64;
    let prefetch_size = size_of_val(prefetch) as u64;
    let meta_start =
        if used.order.is_empty() { 0 } else { (prefetch_at + prefetch_size).next_multiple_of(BLOCK) };
    let (mut placed, slots) = place(tree, &order, format)?;
    let inodes_end = placed.last().map_or(BLOCK, |p| p.offset + p.shape.body);
    let mut end = inodes_end.next_multiple_of(BLOCK);
    for p in &mut placed {
        if p.shape.blocks > 0 {
            p.blocks = end;
            end += p.shape.blocks * BLOCK;
        }
    }
    if (meta_start + end) / BLOCK > u64::from(u32::MAX) || end / SLOT > u64::from(u32::MAX) {
        return Err(RafsError::TooLarge { what: "inodes" });
    }

    let chunk_table_at = meta_start + end;
    let chunk_table_size = (used.chunks.len() * size_of::<ChunkEntry>()) as u64;
    let total = (chunk_table_at + chunk_table_size).next_multiple_of(BLOCK);
    let mut bytes = vec![0u8; usize::try_from(total).map_err(|_| RafsError::TooLarge { what: "bootstrap" })?];
    let counts = tree.link_counts();
    for p in &placed {
        write_inode(
            &mut bytes[meta_start as usize..],
            tree,
            p,
            &placed,
            &slots,
            &counts,
            &Context { used: &used, format, meta_start },
        )?;
    }
    used.write_chunk_table(&mut bytes[chunk_table_at as usize..]);
    let table_at = write_blob_tables(&mut bytes, &used, total)?;
    for (i, id) in prefetch.iter().enumerate() {
        let nid = slots.get(id.index()).map_or(0, |at| placed[*at as usize].nid() as u32);
        put(&mut bytes, prefetch_at + (i * size_of::<u32>()) as u64, &nid.to_le_bytes());
    }
    let entries = 1 + counts.iter().skip(1).map(|n| u64::from(*n)).sum::<u64>();
    let superblock = Super {
        magic: U32::new(SUPER_MAGIC),
        checksum: U32::ZERO,
        feature_compat: U32::new(COMPAT_RAFS_V6),
        blkszbits: 12,
        extslots: 0,
        root_nid: U16::new((BLOCK / SLOT) as u16),
        inos: U64::new(entries),
        build_time: U64::ZERO,
        build_time_nsec: U32::ZERO,
        blocks: U32::new(total_blocks(&used)?),
        meta_blkaddr: U32::new((meta_start / BLOCK) as u32),
        xattr_blkaddr: U32::ZERO,
        uuid: [0; 16],
        volume: [0; 16],
        feature_incompat: U32::new(INCOMPAT),
        union: U16::ZERO,
        extra_devices: U16::new(used.order.len() as u16),
        devt_slotoff: U16::new((DEVICE_OFFSET / size_of::<Device>()) as u16),
        reserved: [0; 38],
    };
    let ext = SuperExt {
        flags: U64::new(used.super_flags(format)),
        blob_table_offset: U64::new(table_at),
        blob_table_size: U32::new((used.order.len() * size_of::<BlobEntry>()) as u32),
        chunk_size: U32::new(format.chunk_size.bytes()),
        chunk_table_offset: U64::new(chunk_table_at),
        chunk_table_size: U64::new(chunk_table_size),
        prefetch_table_offset: U64::new(if prefetch.is_empty() { 0 } else { prefetch_at }),
        prefetch_table_size: U32::new(prefetch_size as u32),
        padding: U32::ZERO,
        reserved: [0; 200],
    };
    put(&mut bytes, SUPER_OFFSET as u64, superblock.as_bytes());
    put(&mut bytes, (SUPER_OFFSET + size_of::<Super>()) as u64, ext.as_bytes());
    let chunks = used.chunks.len() as u64;
    Ok(Bootstrap { bytes, blobs: used.order, entries, chunks })
}

fn put(bytes: &mut [u8], at: u64, data: &[u8]) {
    bytes[at as usize..][..data.len()].copy_from_slice(data);
}

/// Every node once, at its first name, with the position of its directory in the same order.
fn breadth_first(tree: &Tree) -> Vec<(NodeId, usize)> {
    let mut order = vec![(NodeId::ROOT, 0)];
    let mut seen = vec![false; tree.nodes().len()];
    let mut at = 0;
    while let Some(&(dir, _)) = order.get(at) {
        if let Some(children) = tree.children(dir) {
            for id in children.values() {
                if !std::mem::replace(&mut seen[id.index()], true) {
                    order.push((*id, at));
                }
            }
        }
        at += 1;
    }
    order
}

/// The path of a node, for messages.
fn path(tree: &Tree, order: &[(NodeId, usize)], mut at: usize) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    while at != 0 {
        let (id, parent) = order[at];
        let name = tree.children(order[parent].0).and_then(|c| c.iter().find(|(_, child)| **child == id));
        parts.push(name.map_or(b"?", |(name, _)| name));
        at = parent;
    }
    parts.push(b"");
    parts.reverse();
    parts.join(&b'/')
}

/// Shapes of all inodes and where they go; the second value finds a node by its id.
fn place(
    tree: &Tree,
    order: &[(NodeId, usize)],
    format: Format,
) -> Result<(Vec<Placed>, Vec<u32>), RafsError> {
    let mut placed = Vec::with_capacity(order.len());
    let mut slots = vec![0u32; tree.nodes().len()];
    let mut next = BLOCK;
    let mut indexes = 0;
    for (at, (id, parent)) in order.iter().enumerate() {
        let Some(node) = tree.get(*id) else { continue };
        let xattrs = xattr::encode(&node.meta.xattrs).map_err(|bad| match bad {
            xattr::Bad::Name(attribute) => RafsError::Attribute { path: path(tree, order, at), attribute },
            xattr::Bad::Size => RafsError::Attributes { path: path(tree, order, at) },
        })?;
        let len = xattrs.len() as u64;
        let shape = match &node.kind {
            Kind::Dir(children) => Shape::inlined(len, dirent::size(sorted_names(children).map(|(n, _)| n))),
            Kind::Symlink(target) => Shape::inlined(len, target.len() as u64),
            Kind::File(content) => {
                let chunks = format.chunk_size.count(content.size);
                indexes += chunks;
                if chunks != content.chunks.len() as u64 {
                    return Err(RafsError::Chunks { path: path(tree, order, at) });
                }
                if indexes > MAX_INDEXES {
                    return Err(RafsError::TooManyChunks { most: MAX_INDEXES });
                }
                Shape::file(len, content.size, chunks)
            }
            Kind::Char(_) | Kind::Block(_) | Kind::Fifo | Kind::Socket => Shape::special(len),
        };
        let offset = shape.place(next);
        next = offset + shape.body;
        slots[id.index()] = at as u32;
        placed.push(Placed { id: *id, parent: *parent, shape, xattrs, offset, blocks: 0 });
    }
    Ok((placed, slots))
}

/// A directory's names with `.` and `..` in their places; those two have no id.
fn sorted_names(children: &BTreeMap<Box<[u8]>, NodeId>) -> impl Iterator<Item = (&[u8], Option<NodeId>)> {
    let dots: [(&[u8], Option<NodeId>); 2] = [(b".", None), (b"..", None)];
    let (first, second): (&[u8], &[u8]) = (b".", b"..");
    let before = children.range::<[u8], _>((Unbounded, Excluded(first)));
    let between = children.range::<[u8], _>((Excluded(first), Excluded(second)));
    let after = children.range::<[u8], _>((Excluded(second), Unbounded));
    before
        .map(|(n, id)| (&**n, Some(*id)))
        .chain([dots[0]])
        .chain(between.map(|(n, id)| (&**n, Some(*id))))
        .chain([dots[1]])
        .chain(after.map(|(n, id)| (&**n, Some(*id))))
}

struct Context<'a> {
    used: &'a Used<'a>,
    format: Format,
    meta_start: u64,
}

fn write_inode(
    meta_area: &mut [u8],
    tree: &Tree,
    p: &Placed,
    placed: &[Placed],
    slots: &[u32],
    counts: &[u32],
    context: &Context<'_>,
) -> Result<(), RafsError> {
    let Some(node) = tree.get(p.id) else { return Ok(()) };
    let place_of = |id: NodeId| &placed[slots[id.index()] as usize];
    let block_address = ((context.meta_start + p.blocks) / BLOCK) as u32;
    let mut nlink = counts[p.id.index()];
    let mut union = if p.shape.blocks > 0 { block_address } else { 0 };
    let body_at = p.offset + super::layout::INODE_SIZE + p.xattrs.len() as u64;
    match &node.kind {
        Kind::Dir(children) => {
            let entries: Vec<Entry<'_>> = sorted_names(children)
                .map(|(name, id)| {
                    let to = match id {
                        Some(id) => place_of(id),
                        None if name == b"." => p,
                        None => &placed[p.parent],
                    };
                    let file_type = id.and_then(|id| tree.get(id)).map_or(2, |n| file_type(&n.kind));
                    Entry { name, nid: to.nid(), file_type }
                })
                .collect();
            // Its subdirectories, `.` and `..`.
            nlink = entries.iter().filter(|e| e.file_type == 2).count() as u32;
            put_data(meta_area, p, body_at, &dirent::encode(&entries));
        }
        Kind::Symlink(target) => put_data(meta_area, p, body_at, target),
        Kind::File(content) => {
            union = chunk_format(context.format.chunk_size);
            let mut at = p.offset + Shape::chunks_at(p.xattrs.len() as u64);
            for chunk in &content.chunks {
                put(meta_area, at, context.used.index(chunk).as_bytes());
                at += size_of::<ChunkIndex>() as u64;
            }
        }
        Kind::Char(rdev) | Kind::Block(rdev) => union = rdev.0 as u32,
        Kind::Fifo | Kind::Socket => {}
    }
    let fields = Fields {
        xattr_icount: xattr::count(p.xattrs.len()).unwrap_or(0),
        union,
        ino: p.nid() as u32,
        nlink,
        // The root's own time is that of the mount in every RAFS image (builder/src/core/v6.rs).
        mtime: if p.id == NodeId::ROOT { Mtime::default() } else { node.meta.mtime },
    };
    put(meta_area, p.offset, inode::encode(&node.meta, &node.kind, &p.shape, &fields).as_bytes());
    put(meta_area, p.offset + super::layout::INODE_SIZE, &p.xattrs);
    Ok(())
}

/// Whole blocks where they were placed, the tail behind the inode.
fn put_data(meta_area: &mut [u8], p: &Placed, body_at: u64, data: &[u8]) {
    let inline = if p.shape.data == Data::Inline { data.len() % BLOCK as usize } else { 0 };
    let (whole, tail) = data.split_at(data.len() - inline);
    if !whole.is_empty() {
        put(meta_area, p.blocks, whole);
    }
    put(meta_area, body_at, tail);
}

/// Device table and blob table; gives the latter's place.
fn write_blob_tables(bytes: &mut [u8], used: &Used<'_>, total: u64) -> Result<u64, RafsError> {
    let devices_end = DEVICE_OFFSET as u64 + (used.order.len() * size_of::<Device>()) as u64;
    let table_at = devices_end.next_multiple_of(BLOCK);
    let mut flat = total.next_multiple_of(SEGMENT);
    for (number, blob) in used.blobs().enumerate() {
        let mut id = [0u8; 64];
        id.copy_from_slice(blob.id.to_string().as_bytes());
        let blocks = u32::try_from(blob.uncompressed_size / BLOCK)
            .map_err(|_| RafsError::TooLarge { what: "a blob" })?;
        let device = Device {
            blob_id: id,
            blocks: U32::new(blocks),
            mapped_blkaddr: U32::new((flat / BLOCK) as u32),
            reserved: [0; 56],
        };
        flat = (flat + blob.uncompressed_size).next_multiple_of(SEGMENT);
        put(bytes, (DEVICE_OFFSET + number * size_of::<Device>()) as u64, device.as_bytes());
        let entry = blob_entry(number, id, blob);
        put(bytes, table_at + (number * size_of::<BlobEntry>()) as u64, entry.as_bytes());
    }
    Ok(table_at)
}

fn blob_entry(number: usize, blob_id: [u8; 64], blob: &Blob) -> BlobEntry {
    BlobEntry {
        blob_id,
        blob_index: U32::new(number as u32),
        chunk_size: U32::new(blob.format.chunk_size.bytes()),
        chunk_count: U32::new(blob.chunk_count),
        compression_algo: U32::new(match blob.format.compressor {
            Compressor::None => 0,
            Compressor::Lz4Block => 1,
            Compressor::Gzip => 2,
            Compressor::Zstd(_) => 3,
        }),
        digest_algo: U32::new(match blob.format.digester {
            Digester::Blake3 => 0,
            Digester::Sha256 => 1,
        }),
        features: U32::new(blob.tail.features),
        compressed_size: U64::new(blob.file_size),
        uncompressed_size: U64::new(blob.uncompressed_size),
        toc_size: U32::new(blob.tail.toc_size),
        ci_compressor: U32::new(blob.tail.info_compressor),
        ci_offset: U64::new(blob.data_end),
        ci_compressed_size: U64::new(blob.tail.info_stored),
        ci_uncompressed_size: U64::new(blob.tail.info_size),
        toc_digest: blob.tail.toc_digest,
        meta_digest: [0; 32],
        meta_size: U64::ZERO,
        cipher_iv: [0; 8],
        cipher_algo: U32::ZERO,
        reserved: [0; 36],
    }
}

fn total_blocks(used: &Used<'_>) -> Result<u32, RafsError> {
    let sum: u64 = used.blobs().map(|b| b.uncompressed_size / BLOCK).sum();
    u32::try_from(sum).map_err(|_| RafsError::TooLarge { what: "blobs" })
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
