//! Version 5: one inode, with its name, target, attributes and chunks behind it.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U32, U64};

use crate::model::chunk::Format;
use crate::model::tree::{Content, Kind, Meta, Mtime, NAME_MAX, Node, Rdev, Xattrs};

use super::super::layout::ChunkEntry;
use super::super::v5::bootstrap::Hasher;
use super::super::v5::layout::{ALIGN, Inode, ROOT_INO, inode_flags};
use super::bytes::{Budget, Bytes};
use super::image::{BlobInfo, Chunk};
use super::{ReadError, v6};

/// An inode's place, and what is next to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'a> {
    pub(super) at: u64,
    raw: &'a Inode,
    pub(super) ino: u64,
    pub(super) parent: u64,
    pub(super) child_index: u32,
    pub(super) child_count: u32,
    pub(super) name: &'a [u8],
    /// Where the target, or what follows it, begins.
    rest: u64,
}

impl Body<'_> {
    pub(super) fn file_type(&self) -> u32 {
        self.raw.mode.get() & libc::S_IFMT
    }

    /// What stands for the inode and, of a directory, for all below it.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.raw.digest
    }
}

/// The inodes of an image, and what they cost.
pub(super) struct Inodes<'a> {
    pub(super) bytes: Bytes<'a>,
    pub(super) table: &'a [U32],
    pub(super) blobs: &'a [BlobInfo],
    pub(super) format: Format,
    pub(super) budget: Budget,
    /// Every chunk of every file so far.
    pub(super) chunks: Vec<Chunk>,
}

impl<'a> Inodes<'a> {
    /// The inode of a number, without what comes behind its name.
    pub(super) fn body(&mut self, number: u64) -> Result<Body<'a>, ReadError> {
        let slot = number.checked_sub(1).and_then(|n| self.table.get(usize::try_from(n).ok()?));
        let slot = slot.ok_or(ReadError::Damaged { what: "the number of an inode", at: number })?;
        let at = u64::from(slot.get()) * ALIGN;
        let raw: &Inode = self.bytes.one("an inode", at)?;
        let name_at = at + size_of::<Inode>() as u64;
        let name_size = u64::from(raw.name_size.get());
        let name = self.bytes.range("a name", name_at, name_size)?;
        self.budget.pay("an inode", at, size_of::<Inode>() as u64 + name_size)?;
        let root = number == ROOT_INO;
        if !root
            && (name.is_empty()
                || name.len() > NAME_MAX
                || name.iter().any(|b| matches!(b, 0 | b'/'))
                || matches!(name, b"." | b".."))
        {
            return Err(ReadError::Damaged { what: "a name that cannot be one", at });
        }
        Ok(Body {
            at,
            raw,
            ino: raw.ino.get(),
            parent: raw.parent.get(),
            child_index: raw.child_index.get(),
            child_count: raw.child_count.get(),
            name,
            rest: (name_at + name_size).next_multiple_of(ALIGN),
        })
    }

    /// Where the inode of a number is.
    pub(super) fn place(&self, number: u64) -> u64 {
        let slot = number.checked_sub(1).and_then(|n| self.table.get(usize::try_from(n).ok()?));
        slot.map_or(0, |slot| u64::from(slot.get()) * ALIGN)
    }

    /// Its node; a directory without its names.
    pub(super) fn node(&mut self, body: &Body<'a>) -> Result<Node, ReadError> {
        let raw = body.raw;
        let damaged = |what| ReadError::Damaged { what, at: body.at };
        let flags = raw.flags.get();
        let mut at = body.rest;
        let is_link = body.file_type() == libc::S_IFLNK;
        let target_size = u64::from(raw.symlink_size.get());
        if (flags & inode_flags::SYMLINK != 0) != is_link || (!is_link && target_size != 0) {
            return Err(damaged("a link's target where there is no link, or none where there is"));
        }
        let target = self.bytes.range("a link's target", at, target_size)?;
        self.budget.pay("a link's target", at, target_size)?;
        at = (at + target_size).next_multiple_of(ALIGN);
        let mut xattrs = Xattrs::new();
        if flags & inode_flags::XATTR != 0 {
            let size: &U64 = self.bytes.one("attributes", at)?;
            let (start, size) = (at + 8, size.get());
            let pairs = self.bytes.range("attributes", start, size)?;
            self.budget.pay("attributes", at, size)?;
            xattrs = attributes(pairs).ok_or(ReadError::Damaged { what: "attributes", at })?;
            at = (start + size).next_multiple_of(ALIGN);
        }
        if body.file_type() != libc::S_IFDIR && body.file_type() != libc::S_IFREG {
            let mut hasher = Hasher::new(self.format.digester);
            hasher.add(target);
            if hasher.end().0 != raw.digest {
                return Err(damaged("the digest of an inode"));
            }
        }
        let rdev = Rdev(u64::from(raw.rdev.get()));
        let kind = match body.file_type() {
            libc::S_IFDIR => Kind::Dir(BTreeMap::new()),
            libc::S_IFREG => Kind::File(self.content(body, at)?),
            libc::S_IFLNK if target.is_empty() || target.contains(&0) || target.len() > 4095 => {
                return Err(damaged("a link's target"));
            }
            libc::S_IFLNK => Kind::Symlink(target.into()),
            libc::S_IFCHR => Kind::Char(rdev),
            libc::S_IFBLK => Kind::Block(rdev),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return Err(damaged("the type of an inode")),
        };
        let mtime = Mtime { sec: raw.mtime.get().cast_signed(), nsec: raw.mtime_nsec.get() };
        if mtime.nsec >= 1_000_000_000 {
            return Err(damaged("nanoseconds of an inode"));
        }
        let meta =
            Meta { mode: raw.mode.get() & 0o7777, uid: raw.uid.get(), gid: raw.gid.get(), mtime, xattrs };
        Ok(Node { meta, kind })
    }

    fn content(&mut self, body: &Body<'_>, at: u64) -> Result<Content, ReadError> {
        if body.raw.flags.get() & inode_flags::HAS_HOLE != 0 {
            return Err(ReadError::Unsupported { what: "holes in files" });
        }
        let size = body.raw.size.get();
        let count = u64::from(body.child_count);
        if count != self.format.chunk_size.count(size) {
            return Err(ReadError::Damaged { what: "the number of a file's chunks", at: body.at });
        }
        let entries: &[ChunkEntry] = self.bytes.many("the chunks of a file", at, count)?;
        self.budget.pay("the chunks of a file", at, count * size_of::<ChunkEntry>() as u64)?;
        let step = u64::from(self.format.chunk_size.bytes());
        let mut chunks = Vec::with_capacity(entries.len());
        let mut hasher = Hasher::new(self.format.digester);
        for (n, entry) in entries.iter().enumerate() {
            let chunk = v6::chunk(entry, self.blobs, self.format, at)?;
            let offset = n as u64 * step;
            if entry.file_offset.get() != offset || u64::from(chunk.info.size) != (size - offset).min(step) {
                return Err(ReadError::Damaged { what: "a chunk in another place than it should be", at });
            }
            hasher.add(&entry.digest);
            chunks.push(chunk.name);
            self.chunks.push(chunk);
        }
        if hasher.end().0 != body.raw.digest {
            return Err(ReadError::Damaged { what: "the digest of a file", at: body.at });
        }
        Ok(Content { size, chunks })
    }
}

/// `{ u32 length of the rest, name, NUL, value } ...`, sorted by name.
fn attributes(mut bytes: &[u8]) -> Option<Xattrs> {
    let mut all = Xattrs::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (pair, after) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let end = pair.iter().position(|b| *b == 0)?;
        if end == 0 {
            return None;
        }
        all.push((pair[..end].to_vec(), pair[end + 1..].to_vec()));
        bytes = after;
    }
    all.sort();
    let twice = all.windows(2).any(|pair| pair[0].0 == pair[1].0);
    (!twice).then_some(all)
}
