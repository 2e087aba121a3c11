//! Version 5: superblock, blob tables, and the way through its inodes. The drawing is in `rafs/v5/layout.rs`.

use std::collections::{BTreeMap, HashMap, VecDeque};

use zerocopy::little_endian::U32;

use crate::model::tree::{Kind, Node, NodeId, Tree};

use super::super::v5::bootstrap::Hasher;
use super::super::v5::layout::{BlobHead, ExtBlob, ROOT_INO, SUPER_MAGIC, SUPER_SIZE, SUPER_VERSION, Super};
use super::bytes::{Budget, Bytes};
use super::faults::{Faults, path_of};
use super::image::{BlobInfo, Chunks, Image, Superblock};
use super::v5_inode::{Body, Inodes};
use super::{ReadError, Reading, superblock, v6};
use crate::model::chunk::FsVersion;

/// Whether the bytes begin as an image of version 5 does.
pub(super) fn is_one(bytes: Bytes<'_>) -> bool {
    bytes.one::<U32>("", 0).is_ok_and(|magic| magic.get() == SUPER_MAGIC)
}

pub(super) fn read(bytes: Bytes<'_>) -> Result<Reading, ReadError> {
    let sb: &Super = bytes.one("the superblock", 0)?;
    if sb.version.get() != SUPER_VERSION || sb.size.get() as usize != SUPER_SIZE {
        return Err(ReadError::Unsupported { what: "a version of RAFS before 5" });
    }
    let format = superblock::format(FsVersion::V5, sb.flags.get(), sb.chunk_size.get(), 0)?;
    let superblock =
        Superblock { version: FsVersion::V5, flags: sb.flags.get(), format, inodes: sb.inodes.get() };
    let blobs = blobs(bytes, sb, &superblock)?;
    let table: &[U32] = bytes.many(
        "the inode table",
        sb.inode_table_offset.get(),
        u64::from(sb.inode_table_entries.get()),
    )?;
    let mut reader = Reader {
        inodes: Inodes {
            bytes,
            table,
            blobs: &blobs,
            format,
            // The inode that stands for several names is read once more than its name.
            budget: Budget::twice(bytes),
            chunks: Vec::new(),
        },
        nodes: Vec::new(),
        parents: Vec::new(),
        ids: HashMap::new(),
        faults: Faults::default(),
    };
    reader.tree()?;
    let Reader { nodes, ids, mut faults, inodes, .. } = reader;
    let chunks = Chunks::new(inodes.chunks)
        .map_err(|_| ReadError::Damaged { what: "a chunk that is described in two ways", at: 0 })?;
    let tree =
        Tree::from_nodes(nodes).map_err(|_| ReadError::Damaged { what: "names that form no tree", at: 0 })?;
    let at = sb.prefetch_table_offset.get();
    let wanted: &[U32] = bytes.many("the prefetch table", at, u64::from(sb.prefetch_table_entries.get()))?;
    let mut prefetch = Vec::new();
    for ino in wanted {
        match ids.get(&u64::from(ino.get())) {
            Some(id) => prefetch.push(*id),
            None => faults.note(ReadError::Damaged { what: "a prefetched inode that is not there", at }),
        }
    }
    Ok(Reading { image: Image { superblock, tree, blobs, chunks, prefetch }, faults: faults.into_vec() })
}

/// Ids from one table, sizes from the other.
fn blobs(bytes: Bytes<'_>, sb: &Super, superblock: &Superblock) -> Result<Vec<BlobInfo>, ReadError> {
    let at = sb.blob_table_offset.get();
    let damaged = |what| ReadError::Damaged { what, at };
    let table = bytes.range("the blob table", at, u64::from(sb.blob_table_size.get()))?;
    let mut ids = Vec::new();
    let mut rest = table;
    // Less than a head is padding.
    while rest.len() > size_of::<BlobHead>() {
        let (_, after) = rest.split_at(size_of::<BlobHead>());
        let len = after.iter().position(|b| *b == 0).unwrap_or(after.len());
        ids.push(superblock::blob_id(&after[..len], at)?);
        rest = after.get(len + 1..).unwrap_or_default();
    }
    if ids.iter().any(|id| id.len() > 64) {
        return Err(damaged("the id of a blob"));
    }
    let count = sb.ext_blob_table_entries.get();
    if count as usize != ids.len() {
        return Err(damaged("blobs without sizes"));
    }
    let sizes: &[ExtBlob] =
        bytes.many("the table of blob sizes", sb.ext_blob_table_offset.get(), u64::from(count))?;
    ids.into_iter()
        .zip(sizes)
        .map(|(id, ext)| {
            v6::unsupported(ext.features.get())?;
            Ok(BlobInfo {
                id,
                chunk_count: ext.chunk_count.get(),
                compressor: superblock.format.compressor,
                digester: superblock.format.digester,
                features: ext.features.get(),
                compressed_size: ext.compressed_size.get(),
                uncompressed_size: ext.uncompressed_size.get(),
                meta: None,
                toc_size: 0,
                toc_digest: [0; 32],
            })
        })
        .collect()
}

struct Reader<'a> {
    inodes: Inodes<'a>,
    nodes: Vec<Node>,
    /// The directory of each node, for messages.
    parents: Vec<NodeId>,
    /// Which node an inode has become.
    ids: HashMap<u64, NodeId>,
    faults: Faults,
}

/// A directory whose children are still to be read.
struct Todo {
    id: NodeId,
    ino: u64,
    first: u64,
    count: u64,
    digest: [u8; 32],
}

impl<'a> Reader<'a> {
    /// Breadth first: a directory's children have numbers in a row.
    fn tree(&mut self) -> Result<(), ReadError> {
        let root = self.inodes.body(ROOT_INO)?;
        let node = self.inodes.node(&root)?;
        if !matches!(node.kind, Kind::Dir(_)) || root.ino != ROOT_INO {
            return Err(ReadError::Damaged { what: "a root that is no directory", at: root.at });
        }
        self.ids.insert(ROOT_INO, NodeId::ROOT);
        self.nodes.push(node);
        self.parents.push(NodeId::ROOT);
        let mut todo = VecDeque::from([Todo::of(NodeId::ROOT, &root)]);
        while let Some(next) = todo.pop_front() {
            self.directory(&next, &mut todo);
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Todo, todo: &mut VecDeque<Todo>) {
        let mut children = BTreeMap::new();
        let mut last: Option<Vec<u8>> = None;
        let mut hasher = Hasher::new(self.inodes.format.digester);
        for number in dir.first..dir.first.saturating_add(dir.count) {
            let body = match self.inodes.body(number) {
                Ok(body) => body,
                Err(error) => {
                    self.fault(dir.id, None, error);
                    // The count of children is not to be believed either.
                    break;
                }
            };
            if last.as_deref().is_some_and(|last| last >= body.name) {
                let error = ReadError::Damaged { what: "names that are not sorted", at: body.at };
                self.fault(dir.id, Some(body.name), error);
            }
            last = Some(body.name.to_vec());
            hasher.add(body.digest());
            match self.entry(dir, number, &body, todo) {
                Ok(id) => {
                    children.insert(body.name.into(), id);
                }
                Err(error) => self.fault(dir.id, Some(body.name), error),
            }
        }
        if hasher.end().0 != dir.digest {
            let what = "the digest of a directory";
            self.fault(dir.id, None, ReadError::Damaged { what, at: self.inodes.place(dir.ino) });
        }
        if let Some(node) = self.nodes.get_mut(dir.id.index()) {
            node.kind = Kind::Dir(children);
        }
    }

    /// The node of a child, read if it is new.
    fn entry(
        &mut self,
        dir: &Todo,
        number: u64,
        body: &Body<'a>,
        todo: &mut VecDeque<Todo>,
    ) -> Result<NodeId, ReadError> {
        let damaged = |what| ReadError::Damaged { what, at: body.at };
        if body.parent != dir.ino {
            return Err(damaged("a parent that is another directory"));
        }
        if let Some(id) = self.ids.get(&body.ino) {
            let id = *id;
            match self.nodes.get(id.index()).map(|node| &node.kind) {
                Some(Kind::Dir(_)) | None => return Err(damaged("a directory with two names")),
                Some(kind) if kind.type_bits() != body.file_type() => {
                    return Err(damaged("a name of an inode of another type"));
                }
                Some(_) => {}
            }
            // nydusd serves each name by what lies behind it, so it must be the same.
            let again = self.inodes.node(body)?;
            let same = self.nodes.get(id.index()) == Some(&again);
            return if same { Ok(id) } else { Err(damaged("a name that says other things of its inode")) };
        }
        // A further name of an inode has a number and a place of its own, and says which inode it is of.
        let node = if body.ino == number {
            self.inodes.node(body)?
        } else {
            let own = self.inodes.body(body.ino)?;
            if own.ino != body.ino || own.file_type() != body.file_type() {
                return Err(damaged("a name of an inode that is not there"));
            }
            self.inodes.node(&own)?
        };
        let is_dir = matches!(node.kind, Kind::Dir(_));
        if is_dir && body.ino != number {
            return Err(damaged("a directory with two names"));
        }
        let id = u32::try_from(self.nodes.len())
            .map(NodeId)
            .map_err(|_| ReadError::Unsupported { what: "more than 4 billion inodes" })?;
        if is_dir {
            todo.push_back(Todo::of(id, body));
        }
        self.ids.insert(body.ino, id);
        self.nodes.push(node);
        self.parents.push(dir.id);
        Ok(id)
    }

    fn fault(&mut self, dir: NodeId, name: Option<&[u8]>, error: ReadError) {
        let path = || path_of(&self.nodes, &self.parents, dir, name);
        self.faults.note_at(path, error);
    }
}

impl Todo {
    fn of(id: NodeId, body: &Body<'_>) -> Todo {
        Todo {
            id,
            ino: body.ino,
            first: u64::from(body.child_index),
            count: u64::from(body.child_count),
            digest: *body.digest(),
        }
    }
}
