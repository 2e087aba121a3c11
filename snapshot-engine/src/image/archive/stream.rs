//! A changeset as a tar stream (image-spec, `layer.md`): each directory before what is in it, names in the order of their bytes.
//!
//! | in the tree | in the stream |
//! |---|---|
//! | a name that is gone | `.wh.NAME`, an empty file |
//! | an opaque directory | `.wh..wh..opq` in it, before everything else in it |
//! | a further name of an inode | a link to the first in the stream |
//! | a hole | zeros: the specification advises against sparse entries, which readers treat differently |
//! | a socket | nothing: tar has none. They are of use only while the process that made them runs |

use std::collections::{BTreeMap, HashMap, btree_map};
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use tar::Builder;

use super::contents::Contents;
use super::entry::{Entry, What, head};
use super::pack::Blocks;
use crate::image::ImageError;
use crate::model::changeset::{Changeset, is_gone};
use crate::model::tree::{Content, Kind, Meta, Name, Node, NodeId};

/// How the name of an entry begins that says that another one is gone.
const GONE: &[u8] = b".wh.";
/// The name of the entry that says that nothing below shows through.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Tar is made of blocks of this size.
const BLOCK: u64 = 512;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Names, the root and those that are gone included.
    pub(super) entries: u64,
    /// Bytes of files.
    pub(super) content: u64,
    /// Sockets that were left out.
    pub(super) sockets: u64,
    /// Attributes that were left out because they are overlayfs' own.
    pub(super) private: u64,
}

/// Bytes of all files that the stream will have.
pub(super) fn content(set: &Changeset) -> u64 {
    let size = |node: &Node| match &node.kind {
        Kind::File(content) => content.size,
        _ => 0,
    };
    set.tree.nodes().iter().map(size).fold(0, u64::saturating_add)
}

struct Writing<'a, 'b> {
    set: &'a Changeset,
    contents: Contents<'a>,
    /// How many names each node has.
    links: Vec<u32>,
    /// The first path of those that have several.
    first: HashMap<NodeId, Box<[u8]>>,
    tar: Builder<&'b mut Blocks>,
    written: Written,
    progress: &'a dyn Fn(u64),
}

/// Writes the stream; `progress` is told bytes of files.
///
/// # Errors
/// [`ImageError::Unfit`] for what tar cannot hold, and what comes of reading files.
pub(super) fn write<'a>(
    set: &'a Changeset,
    contents: Contents<'a>,
    to: &mut Blocks,
    progress: &'a dyn Fn(u64),
) -> Result<Written, ImageError> {
    let mut writing = Writing {
        set,
        contents,
        links: set.tree.link_counts(),
        first: HashMap::new(),
        tar: Builder::new(to),
        written: Written::default(),
        progress,
    };
    writing.all()?;
    let Writing { tar, written, .. } = writing;
    tar.into_inner().map_err(|source| failed(b".", source))?;
    Ok(written)
}

fn shown(path: &[u8]) -> PathBuf {
    OsStr::from_bytes(path).into()
}

fn failed(path: &[u8], source: io::Error) -> ImageError {
    ImageError::Io { what: "write the layer with", path: shown(path), source }
}

type Names<'a> = btree_map::Iter<'a, Name, NodeId>;

impl<'a> Writing<'a, '_> {
    fn all(&mut self) -> Result<(), ImageError> {
        let root = &self.set.tree.nodes()[0];
        self.entry(Entry { path: b"./", meta: &root.meta, what: What::Node(&root.kind) })?;
        // One path, and how long it is in each directory that is open: a tree may be deeper than there is room for paths.
        let mut path: Vec<u8> = Vec::new();
        let mut open: Vec<(usize, Names<'a>)> = Vec::new();
        if let Kind::Dir(names) = &root.kind {
            self.opaque(NodeId::ROOT, &mut path)?;
            open.push((0, names.iter()));
        }
        while let Some((length, names)) = open.last_mut() {
            path.truncate(*length);
            let Some((name, id)) = names.next() else {
                open.pop();
                continue;
            };
            if let Some(names) = self.node(&mut path, name, *id)? {
                open.push((path.len(), names.iter()));
            }
        }
        Ok(())
    }

    /// Writes a node under a name in the directory at `path`; of a directory the names are returned, and `path` is its own.
    fn node(
        &mut self,
        path: &mut Vec<u8>,
        name: &[u8],
        id: NodeId,
    ) -> Result<Option<&'a BTreeMap<Name, NodeId>>, ImageError> {
        let set = self.set;
        let node = &set.tree.nodes()[id.index()];
        if is_gone(&node.kind) {
            path.extend_from_slice(GONE);
            path.extend_from_slice(name);
            return self.mark(path).map(|()| None);
        }
        path.extend_from_slice(name);
        if name.starts_with(GONE) {
            let what = "its name would mean there that another file is gone";
            return Err(ImageError::Unfit { path: shown(path), what });
        }
        if matches!(node.kind, Kind::Socket) {
            self.written.sockets += 1;
            tracing::debug!(path = %shown(path).display(), "a socket is left out");
            return Ok(None);
        }
        if let Kind::Dir(names) = &node.kind {
            path.push(b'/');
            self.entry(Entry { path, meta: &node.meta, what: What::Node(&node.kind) })?;
            self.opaque(id, path)?;
            return Ok(Some(names));
        }
        if self.links[id.index()] > 1 {
            if let Some(first) = self.first.get(&id).cloned() {
                self.entry(Entry { path, meta: &node.meta, what: What::Link(&first) })?;
                return Ok(None);
            }
            self.first.insert(id, path.as_slice().into());
        }
        self.entry(Entry { path, meta: &node.meta, what: What::Node(&node.kind) })?;
        if let Kind::File(content) = &node.kind {
            self.content(content, path)?;
        }
        Ok(None)
    }

    fn opaque(&mut self, dir: NodeId, path: &mut Vec<u8>) -> Result<(), ImageError> {
        if !self.set.opaque.contains(&dir) {
            return Ok(());
        }
        let length = path.len();
        path.extend_from_slice(OPAQUE);
        self.mark(path)?;
        path.truncate(length);
        Ok(())
    }

    /// An empty file whose name is the message.
    fn mark(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let meta = Meta { mode: 0o600, ..Meta::default() };
        self.entry(Entry { path, meta: &meta, what: What::Node(&Kind::File(Content::default())) })
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<(), ImageError> {
        let path = entry.path;
        let head = head(&entry).map_err(|what| ImageError::Unfit { path: shown(path), what })?;
        if head.private > 0 {
            self.written.private += head.private as u64;
            tracing::debug!(path = %shown(path).display(), "attributes of overlayfs' are left out");
        }
        let records = head.records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(|e| failed(path, e))?;
        self.tar.get_mut().write_all(head.header.as_bytes()).map_err(|e| failed(path, e))?;
        self.written.entries += 1;
        Ok(())
    }

    fn content(&mut self, content: &Content, path: &[u8]) -> Result<(), ImageError> {
        self.contents.copy(content, *self.tar.get_mut())?;
        let padding = content.size.next_multiple_of(BLOCK) - content.size;
        let padding = &[0; BLOCK as usize][..padding as usize];
        self.tar.get_mut().write_all(padding).map_err(|e| failed(path, e))?;
        self.written.content += content.size;
        (self.progress)(content.size);
        Ok(())
    }
}
