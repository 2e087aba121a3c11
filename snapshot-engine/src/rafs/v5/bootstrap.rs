//! The bootstrap of RAFS v5 (builder/src/core/v5.rs, `Bootstrap::v5_dump`); the drawing is in [`super::layout`].

use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::model::chunk::{Blob, ChunkDigest, Digester, Format};
use crate::model::tree::{Content, Kind, Mtime, Node, NodeId, Tree, Xattrs};

use super::layout::{
    ALIGN, BlobHead, ExtBlob, Inode, MAX_INODE_SLOT, ROOT_INO, SUPER_MAGIC, SUPER_SIZE, SUPER_VERSION, Super,
    XattrTable, inode_flags,
};
use super::names::{Named, number, path};
use crate::rafs::layout::ChunkEntry;
use crate::rafs::used::Used;
use crate::rafs::{Bootstrap, RafsError};

/// What a name adds to the size of its directory (`RAFS_V5_VIRTUAL_ENTRY_SIZE`).
const ENTRY_SIZE: u64 = 8;

pub(in crate::rafs) fn write(
    tree: &Tree,
    blobs: &[Blob],
    format: Format,
    prefetch: &[NodeId],
) -> Result<Bootstrap, RafsError> {
    let names = number(tree);
    // A file's further names have nothing new.
    let first = |(at, name): &(usize, &Named<'_>)| name.ino == *at as u64 + ROOT_INO;
    let inodes = names.iter().enumerate().filter(first);
    let inode_count = inodes.clone().count() as u64;
    let used = Used::collect(tree, inodes.map(|(at, n)| (at, n.id)), blobs, format, |at| path(&names, at))?;
    let blob_table = blob_table(&used);
    let ext_table: Vec<u8> = used.blobs().flat_map(|b| ext_blob(b).as_bytes().to_vec()).collect();
    let hints = prefetch_table(&names, prefetch);

    let inode_table_at = SUPER_SIZE as u64;
    let prefetch_at = inode_table_at + (names.len() as u64 * 4).next_multiple_of(ALIGN);
    let blob_table_at = prefetch_at + (hints.len() as u64).next_multiple_of(ALIGN);
    let ext_table_at = blob_table_at + blob_table.len() as u64;
    let mut end = ext_table_at + ext_table.len() as u64;
    let mut offsets = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        if end / ALIGN >= MAX_INODE_SLOT {
            return Err(RafsError::TooLarge { what: "inodes" });
        }
        offsets.push(end);
        let Some(node) = tree.get(name.id) else { continue };
        end += body_size(name, node).ok_or_else(|| RafsError::Attributes { path: path(&names, at) })?;
    }

    let superblock = Super {
        magic: U32::new(SUPER_MAGIC),
        version: U32::new(SUPER_VERSION),
        size: U32::new(SUPER_SIZE as u32),
        chunk_size: U32::new(format.chunk_size.bytes()),
        flags: U64::new(used.super_flags(format)),
        inodes: U64::new(inode_count),
        inode_table_offset: U64::new(inode_table_at),
        prefetch_table_offset: U64::new(prefetch_at),
        blob_table_offset: U64::new(blob_table_at),
        inode_table_entries: U32::new(names.len() as u32),
        prefetch_table_entries: U32::new((hints.len() / size_of::<u32>()) as u32),
        blob_table_size: U32::new(blob_table.len() as u32),
        ext_blob_table_entries: U32::new(used.order.len() as u32),
        ext_blob_table_offset: U64::new(ext_table_at),
        reserved: [0; SUPER_SIZE - 80],
    };
    let size = usize::try_from(end).map_err(|_| RafsError::TooLarge { what: "bootstrap" })?;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(superblock.as_bytes());
    for offset in &offsets {
        bytes.extend_from_slice(&((offset / ALIGN) as u32).to_le_bytes());
    }
    pad(&mut bytes);
    bytes.extend_from_slice(&hints);
    pad(&mut bytes);
    bytes.extend_from_slice(&blob_table);
    bytes.extend_from_slice(&ext_table);
    let digests = digests(tree, &names, &used, format.digester);
    for (at, name) in names.iter().enumerate() {
        if let Some(node) = tree.get(name.id) {
            write_inode(&mut bytes, &names, at, node, digests[at], &used, format);
        }
    }
    Ok(Bootstrap { bytes, chunks: used.chunks.len() as u64, entries: names.len() as u64, blobs: used.order })
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGN as usize), 0);
}

fn put_padded(bytes: &mut Vec<u8>, data: &[u8]) {
    bytes.extend_from_slice(data);
    pad(bytes);
}

fn blob_table(used: &Used<'_>) -> Vec<u8> {
    let head = BlobHead { readahead_offset: U32::ZERO, readahead_size: U32::ZERO };
    let entries: Vec<Vec<u8>> =
        used.blobs().map(|blob| [head.as_bytes(), blob.id.to_string().as_bytes()].concat()).collect();
    let mut bytes = entries.join(&0);
    pad(&mut bytes);
    bytes
}

fn ext_blob(blob: &Blob) -> ExtBlob {
    ExtBlob {
        chunk_count: U32::new(blob.chunk_count),
        features: U32::new(blob.tail.features),
        uncompressed_size: U64::new(blob.uncompressed_size),
        compressed_size: U64::new(blob.data_end),
        reserved: [0; 40],
    }
}

fn prefetch_table(names: &[Named<'_>], prefetch: &[NodeId]) -> Vec<u8> {
    let ino = |id: &NodeId| names.iter().find(|name| name.id == *id).map(|name| name.ino as u32);
    prefetch.iter().filter_map(ino).flat_map(u32::to_le_bytes).collect()
}

/// Bytes of the pairs of an inode's attributes; `None` if a length does not fit its field.
fn xattr_size(xattrs: &Xattrs) -> Option<u64> {
    let pair = |(name, value): &(Vec<u8>, Vec<u8>)| u32::try_from(name.len() + 1 + value.len()).ok();
    xattrs.iter().map(|x| pair(x).map(|n| u64::from(n) + 4)).sum()
}

/// Bytes from the beginning of an inode to that of the next.
fn body_size(name: &Named<'_>, node: &Node) -> Option<u64> {
    let mut size = size_of::<Inode>() as u64 + (name.name.len() as u64).next_multiple_of(ALIGN);
    if !node.meta.xattrs.is_empty() {
        size += size_of::<XattrTable>() as u64 + xattr_size(&node.meta.xattrs)?.next_multiple_of(ALIGN);
    }
    size += match &node.kind {
        Kind::Symlink(target) => (target.len() as u64).next_multiple_of(ALIGN),
        Kind::File(content) => (content.chunks.len() * size_of::<ChunkEntry>()) as u64,
        _ => 0,
    };
    Some(size)
}

/// What the inode digests are made with.
pub(in crate::rafs) enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
}

impl Hasher {
    pub(in crate::rafs) fn new(digester: Digester) -> Hasher {
        match digester {
            Digester::Blake3 => Hasher::Blake3(Box::default()),
            Digester::Sha256 => Hasher::Sha256(Sha256::new()),
        }
    }

    pub(in crate::rafs) fn add(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Blake3(hasher) => drop(hasher.update(bytes)),
            Hasher::Sha256(hasher) => hasher.update(bytes),
        }
    }

    pub(in crate::rafs) fn end(self) -> ChunkDigest {
        ChunkDigest(match self {
            Hasher::Blake3(hasher) => *hasher.finalize().as_bytes(),
            Hasher::Sha256(hasher) => hasher.finalize().into(),
        })
    }
}

/// The digest of every inode: with a validating nydusd the root's stands for the whole tree.
fn digests(tree: &Tree, names: &[Named<'_>], used: &Used<'_>, digester: Digester) -> Vec<ChunkDigest> {
    let mut digests = vec![ChunkDigest([0; 32]); names.len()];
    // Children lie behind their directory, so from the end every digest that is needed is there.
    for (at, name) in names.iter().enumerate().rev() {
        let mut hasher = Hasher::new(digester);
        match tree.get(name.id).map(|node| &node.kind) {
            Some(Kind::Dir(_)) => digests[name.children.clone()].iter().for_each(|d| hasher.add(&d.0)),
            Some(Kind::File(content)) => content.chunks.iter().for_each(|c| hasher.add(&used.digest(c).0)),
            Some(Kind::Symlink(target)) => hasher.add(target),
            _ => {}
        }
        digests[at] = hasher.end();
    }
    digests
}

fn write_inode(
    bytes: &mut Vec<u8>,
    names: &[Named<'_>],
    at: usize,
    node: &Node,
    digest: ChunkDigest,
    used: &Used<'_>,
    format: Format,
) {
    let name = &names[at];
    let meta = &node.meta;
    let xattrs = xattr_size(&meta.xattrs).unwrap_or(0);
    let mut flags = 0;
    let (size, child_index, child_count, symlink_size) = match &node.kind {
        Kind::Dir(_) => {
            let sizes = names[name.children.clone()].iter().map(|n| n.name.len() as u64 + ENTRY_SIZE);
            let size = sizes.sum::<u64>().next_multiple_of(4096).max(4096);
            (size, name.children.start as u64 + ROOT_INO, name.children.len(), 0)
        }
        Kind::File(content) => (content.size, 0, content.chunks.len(), 0),
        Kind::Symlink(target) => {
            flags |= inode_flags::SYMLINK;
            (target.len() as u64, 0, 0, target.len())
        }
        _ => (0, 0, 0, 0),
    };
    if name.nlink > 1 && matches!(node.kind, Kind::File(_)) {
        flags |= inode_flags::HARDLINK;
    }
    if !meta.xattrs.is_empty() {
        flags |= inode_flags::XATTR;
    }
    // The root's own time is that of the mount in every RAFS image (builder/src/core/node.rs, `build_inode_stat`).
    let mtime = if at == 0 { Mtime::default() } else { meta.mtime };
    let inode = Inode {
        digest: digest.0,
        parent: U64::new(if at == 0 { 0 } else { names[name.parent].ino }),
        ino: U64::new(name.ino),
        uid: U32::new(meta.uid),
        gid: U32::new(meta.gid),
        projid: U32::ZERO,
        mode: U32::new(node.kind.type_bits() | meta.mode & 0o7777),
        size: U64::new(size),
        blocks: U64::new((size + xattrs.next_multiple_of(ALIGN)).div_ceil(512)),
        flags: U64::new(flags),
        nlink: U32::new(name.nlink),
        child_index: U32::new(child_index as u32),
        child_count: U32::new(child_count as u32),
        name_size: U16::new(name.name.len() as u16),
        symlink_size: U16::new(symlink_size as u16),
        rdev: U32::new(match node.kind {
            Kind::Char(rdev) | Kind::Block(rdev) => rdev.0 as u32,
            _ => 0,
        }),
        mtime_nsec: U32::new(mtime.nsec),
        mtime: U64::new(mtime.sec.cast_unsigned()),
        reserved: [0; 8],
    };
    bytes.extend_from_slice(inode.as_bytes());
    put_padded(bytes, name.name);
    if let Kind::Symlink(target) = &node.kind {
        put_padded(bytes, target);
    }
    write_xattrs(bytes, &meta.xattrs, xattrs);
    if let Kind::File(content) = &node.kind {
        write_chunks(bytes, content, used, format);
    }
}

fn write_xattrs(bytes: &mut Vec<u8>, xattrs: &Xattrs, size: u64) {
    if xattrs.is_empty() {
        return;
    }
    bytes.extend_from_slice(XattrTable { size: U64::new(size) }.as_bytes());
    for (name, value) in xattrs {
        bytes.extend_from_slice(&((name.len() + 1 + value.len()) as u32).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(value);
    }
    pad(bytes);
}

fn write_chunks(bytes: &mut Vec<u8>, content: &Content, used: &Used<'_>, format: Format) {
    let step = u64::from(format.chunk_size.bytes());
    for (i, chunk) in content.chunks.iter().enumerate() {
        if let Some(entry) = used.entry(chunk, i as u64 * step) {
            bytes.extend_from_slice(entry.as_bytes());
        }
    }
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
