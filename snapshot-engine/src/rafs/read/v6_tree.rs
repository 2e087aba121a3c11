//! Version 6: from the root's inode to the whole tree, breadth first.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::model::chunk::{BLOCK, BlobIndex, ChunkRef, ChunkSize};
use crate::model::tree::{Content, Kind, Meta, Mtime, Node, NodeId, Rdev, Tree};

use super::super::dirent::Entry;
use super::super::inode::file_type;
use super::super::layout::{CHUNK_INDEXES, ChunkIndex, Inode, InodeCompact, SLOT, Super};
use super::bytes::{Budget, Bytes};
use super::faults::{Faults, path_of};
use super::image::Chunks;
use super::{ReadError, dirent, xattr};

/// The most bytes of a link's target (`PATH_MAX`, less the NUL).
const TARGET_MAX: u64 = 4095;
/// A null address: a hole, which the kernel can read and Nydus cannot.
const NULL_BLOCK: u32 = u32::MAX;

pub(super) struct Read {
    pub(super) tree: Tree,
    /// Which node an inode has become.
    pub(super) ids: HashMap<u64, NodeId>,
    pub(super) faults: Faults,
}

/// Where the data of an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Plain,
    Inline,
    Chunks,
}

/// An inode's fields, from either form.
#[derive(Debug, Clone, Copy)]
struct Raw {
    data: Data,
    mode: u32,
    size: u64,
    union: u32,
    meta: (u32, u32, Mtime),
    /// Where its attributes begin, and where they end.
    xattrs: (u64, u64),
}

struct Reader<'a> {
    bytes: Bytes<'a>,
    meta_start: u64,
    chunk_size: ChunkSize,
    chunks: &'a Chunks,
    budget: Budget,
    nodes: Vec<Node>,
    /// The directory of each node, for messages.
    parents: Vec<NodeId>,
    ids: HashMap<u64, NodeId>,
    faults: Faults,
}

/// A directory whose names are still to be read.
struct Todo {
    id: NodeId,
    nid: u64,
    parent_nid: u64,
    raw: Raw,
}

pub(super) fn read(
    bytes: Bytes<'_>,
    sb: &Super,
    chunk_size: ChunkSize,
    chunks: &Chunks,
) -> Result<Read, ReadError> {
    let mut reader = Reader {
        bytes,
        meta_start: u64::from(sb.meta_blkaddr.get()) * BLOCK,
        chunk_size,
        chunks,
        budget: Budget::of(bytes),
        nodes: Vec::new(),
        parents: Vec::new(),
        ids: HashMap::new(),
        faults: Faults::default(),
    };
    let root = u64::from(sb.root_nid.get());
    let raw = reader.raw(root)?;
    let node = reader.node(root, &raw)?;
    if !matches!(node.kind, Kind::Dir(_)) {
        return Err(ReadError::Damaged { what: "a root that is no directory", at: reader.place(root) });
    }
    reader.ids.insert(root, NodeId::ROOT);
    reader.nodes.push(node);
    reader.parents.push(NodeId::ROOT);
    let mut todo = VecDeque::from([Todo { id: NodeId::ROOT, nid: root, parent_nid: root, raw }]);
    while let Some(next) = todo.pop_front() {
        reader.directory(&next, &mut todo);
    }
    // Every node was pushed with a name that leads to it from the root; only the order of checks could be wrong here.
    let tree = Tree::from_nodes(reader.nodes)
        .map_err(|_| ReadError::Damaged { what: "names that form no tree", at: reader.meta_start })?;
    Ok(Read { tree, ids: reader.ids, faults: reader.faults })
}

impl<'a> Reader<'a> {
    /// The file offset of an inode.
    fn place(&self, nid: u64) -> u64 {
        self.meta_start.saturating_add(nid.saturating_mul(SLOT))
    }

    /// Reads the names of a directory and the inodes they lead to. What is wrong is noted.
    fn directory(&mut self, dir: &Todo, todo: &mut VecDeque<Todo>) {
        let mut children = BTreeMap::new();
        let result = self.data(&dir.raw, dir.nid).and_then(|data| {
            let at = self.place(dir.nid);
            let mut last: Option<Vec<u8>> = None;
            let mut dots = 0;
            for entry in dirent::entries(&data) {
                let entry = entry.map_err(|what| ReadError::Damaged { what, at })?;
                if last.as_deref().is_some_and(|last| last >= entry.name) {
                    return Err(ReadError::Damaged { what: "names that are not sorted", at });
                }
                last = Some(entry.name.to_vec());
                match entry.name {
                    b"." | b".." => {
                        let to = if entry.name == b"." { dir.nid } else { dir.parent_nid };
                        if entry.nid != to {
                            return Err(ReadError::Damaged { what: "`.` or `..` that lead elsewhere", at });
                        }
                        dots += 1;
                    }
                    name => match self.entry(dir, &entry, todo) {
                        Ok(id) => {
                            children.insert(name.into(), id);
                        }
                        Err(error) => self.fault(dir.id, Some(name), error),
                    },
                }
            }
            if dots == 2 {
                Ok(())
            } else {
                Err(ReadError::Damaged { what: "a directory without `.` or `..`", at })
            }
        });
        if let Err(error) = result {
            self.fault(dir.id, None, error);
        }
        if let Some(node) = self.nodes.get_mut(dir.id.index()) {
            node.kind = Kind::Dir(children);
        }
    }

    /// The node a name leads to, read if it is new.
    fn entry(
        &mut self,
        dir: &Todo,
        entry: &Entry<'_>,
        todo: &mut VecDeque<Todo>,
    ) -> Result<NodeId, ReadError> {
        let at = self.place(entry.nid);
        let id = match self.ids.get(&entry.nid) {
            Some(id) => *id,
            None => {
                let raw = self.raw(entry.nid)?;
                let node = self.node(entry.nid, &raw)?;
                let id = NodeId(
                    u32::try_from(self.nodes.len())
                        .map_err(|_| ReadError::Unsupported { what: "more than 4 billion inodes" })?,
                );
                if file_type(&node.kind) != entry.file_type {
                    return Err(ReadError::Damaged { what: "an entry of another type than its inode", at });
                }
                if matches!(node.kind, Kind::Dir(_)) {
                    todo.push_back(Todo { id, nid: entry.nid, parent_nid: dir.nid, raw });
                }
                self.ids.insert(entry.nid, id);
                self.nodes.push(node);
                self.parents.push(dir.id);
                return Ok(id);
            }
        };
        match self.nodes.get(id.index()).map(|node| &node.kind) {
            Some(Kind::Dir(_)) => Err(ReadError::Damaged { what: "a directory with two names", at }),
            Some(kind) if file_type(kind) == entry.file_type => Ok(id),
            _ => Err(ReadError::Damaged { what: "an entry of another type than its inode", at }),
        }
    }

    fn fault(&mut self, dir: NodeId, name: Option<&[u8]>, error: ReadError) {
        let path = || path_of(&self.nodes, &self.parents, dir, name);
        self.faults.note_at(path, error);
    }

    fn raw(&mut self, nid: u64) -> Result<Raw, ReadError> {
        let at = self.place(nid);
        let damaged = |what| ReadError::Damaged { what, at };
        let short: &InodeCompact = self.bytes.one("an inode", at)?;
        let format = short.format.get();
        let data = match format >> 1 {
            0 => Data::Plain,
            2 => Data::Inline,
            4 => Data::Chunks,
            1 | 3 => return Err(ReadError::Unsupported { what: "the compression of EROFS" }),
            _ => return Err(damaged("the layout of an inode")),
        };
        let extended = format & 1 == 1;
        let (len, raw) = if extended {
            let inode: &Inode = self.bytes.one("an inode", at)?;
            let mtime = Mtime { sec: inode.mtime.get().cast_signed(), nsec: inode.mtime_nsec.get() };
            (
                size_of::<Inode>() as u64,
                Raw {
                    data,
                    mode: u32::from(inode.mode.get()),
                    size: inode.size.get(),
                    union: inode.union.get(),
                    meta: (inode.uid.get(), inode.gid.get(), mtime),
                    xattrs: (0, 0),
                },
            )
        } else {
            (
                size_of::<InodeCompact>() as u64,
                Raw {
                    data,
                    mode: u32::from(short.mode.get()),
                    size: u64::from(short.size.get()),
                    union: short.union.get(),
                    meta: (u32::from(short.uid.get()), u32::from(short.gid.get()), Mtime::default()),
                    xattrs: (0, 0),
                },
            )
        };
        if raw.meta.2.nsec >= 1_000_000_000 {
            return Err(damaged("nanoseconds of an inode"));
        }
        let start = at + len;
        let end = start + xattr::size(short.xattr_icount.get());
        self.budget.pay("an inode", at, end - at)?;
        Ok(Raw { xattrs: (start, end), ..raw })
    }

    /// The node of an inode; a directory without its names.
    fn node(&mut self, nid: u64, raw: &Raw) -> Result<Node, ReadError> {
        let at = self.place(nid);
        let damaged = |what| ReadError::Damaged { what, at };
        let (start, end) = raw.xattrs;
        let attributes = self.bytes.range("attributes", start, end - start)?;
        let xattrs = xattr::decode(attributes).ok_or(ReadError::Damaged { what: "attributes", at: start })?;
        let kind = match raw.mode & libc::S_IFMT {
            libc::S_IFDIR if raw.data == Data::Chunks => return Err(damaged("a directory made of chunks")),
            libc::S_IFDIR => Kind::Dir(BTreeMap::new()),
            libc::S_IFREG => Kind::File(self.content(nid, raw)?),
            libc::S_IFLNK => {
                if raw.size == 0 || raw.size > TARGET_MAX {
                    return Err(damaged("the length of a link's target"));
                }
                let target = self.data(raw, nid)?;
                if target.contains(&0) {
                    return Err(damaged("a NUL in a link's target"));
                }
                Kind::Symlink(target.into())
            }
            libc::S_IFCHR => Kind::Char(Rdev(u64::from(raw.union))),
            libc::S_IFBLK => Kind::Block(Rdev(u64::from(raw.union))),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return Err(damaged("the type of an inode")),
        };
        let (uid, gid, mtime) = raw.meta;
        Ok(Node { meta: Meta { mode: raw.mode & 0o7777, uid, gid, mtime, xattrs }, kind })
    }

    /// The bytes of a directory or link: whole blocks elsewhere, the rest behind the inode.
    fn data(&mut self, raw: &Raw, nid: u64) -> Result<Cow<'a, [u8]>, ReadError> {
        let at = self.place(nid);
        self.budget.pay("data of an inode", at, raw.size)?;
        let inline = match raw.data {
            Data::Plain => 0,
            Data::Inline => raw.size % BLOCK,
            Data::Chunks => return Err(ReadError::Damaged { what: "an inode made of chunks", at }),
        };
        let tail = self.bytes.range("data behind an inode", raw.xattrs.1, inline)?;
        // fs/erofs/data.c, `erofs_map_blocks`: the kernel finds it by its block.
        if inline > 0 && raw.xattrs.1 / BLOCK != (raw.xattrs.1 + inline - 1) / BLOCK {
            return Err(ReadError::Damaged { what: "data behind an inode that crosses a block", at });
        }
        let start = if raw.size == inline { 0 } else { u64::from(raw.union) * BLOCK };
        let whole = self.bytes.range("data of an inode", start, raw.size - inline)?;
        Ok(if tail.is_empty() {
            Cow::Borrowed(whole)
        } else if whole.is_empty() {
            Cow::Borrowed(tail)
        } else {
            Cow::Owned([whole, tail].concat())
        })
    }

    fn content(&mut self, nid: u64, raw: &Raw) -> Result<Content, ReadError> {
        let at = self.place(nid);
        let damaged = |what| ReadError::Damaged { what, at };
        if raw.size == 0 {
            return Ok(Content::default());
        }
        if raw.data != Data::Chunks {
            return Err(ReadError::Unsupported { what: "files inside the bootstrap" });
        }
        let bits = (raw.union & 0x1f) + 12;
        if raw.union & !0x1f != CHUNK_INDEXES || bits < self.chunk_size.bits() {
            return Err(damaged("the chunk format of a file"));
        }
        let start = raw.xattrs.1.next_multiple_of(8);
        let count = self.chunk_size.count(raw.size);
        let indexes: &[ChunkIndex] = self.bytes.many("the chunks of a file", start, count)?;
        self.budget.pay("the chunks of a file", start, count * size_of::<ChunkIndex>() as u64)?;
        let first = indexes.first().map_or(0, |index| u64::from(index.block.get()));
        let mut chunks = Vec::with_capacity(indexes.len());
        let mut left = raw.size;
        for (n, index) in indexes.iter().enumerate() {
            let block = index.block.get();
            if block == NULL_BLOCK {
                return Err(damaged("a hole in a file, which Nydus cannot read,"));
            }
            let blob = index.device.checked_sub(1).ok_or(damaged("a chunk of no blob"))?;
            let name = ChunkRef {
                blob: BlobIndex(u16::from(blob)),
                index: u32::from(index.index_high) << 16 | u32::from(index.index_low.get()),
            };
            let chunk = self.chunks.get(name).ok_or(damaged("a chunk that the chunk table has not"))?;
            if chunk.info.slot != u64::from(block) * BLOCK {
                return Err(damaged("a chunk in another place than the chunk table says"));
            }
            if u64::from(chunk.info.size) != left.min(u64::from(self.chunk_size.bytes())) {
                return Err(damaged("a chunk of another size than its place in the file"));
            }
            // The kernel looks at every 2^bits-th index only: what lies between must follow (builder/src/core/v6.rs,
            // `v6_dump_file`).
            let expected = first + n as u64 * u64::from(self.chunk_size.bytes()) / BLOCK;
            if bits > self.chunk_size.bits()
                && (u64::from(block) != expected || index.device != indexes[0].device)
            {
                return Err(damaged("large chunks that are not in a row"));
            }
            left -= u64::from(chunk.info.size);
            chunks.push(name);
        }
        Ok(Content { size: raw.size, chunks })
    }
}
