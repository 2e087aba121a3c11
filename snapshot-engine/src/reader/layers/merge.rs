//! Entries of layers, one after the other, become the tree that they stand for (image-spec, `layer.md`).
//!
//! ```text
//!   a/b        the name is this layer's from now on; directories on the way that nobody has said anything of are made
//!   a/.wh.b    what the layers below have as b is gone        what this layer itself has stays, in whichever order
//!   a/.wh..wh..opq     what the layers below have in a is gone                               its entries come
//! ```
//!
//! Nothing but this value is touched: a path is a list of names in it, links are not followed, and `..` is refused. So no
//! entry can mean anything outside, and what is unpacked later (`reader/unpack`) has no path to follow.

use std::collections::BTreeMap;

use crate::model::tree::{Content, Kind, Meta, NAME_MAX, Name, Node, NodeId, Tree};

use super::tar::{Entry, What};

/// How the name of an entry begins that says that another one is gone.
pub(super) const GONE: &[u8] = b".wh.";
/// The name of the entry that says that nothing below shows through.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How names begin that aufs keeps for itself.
const RESERVED: &[u8] = b".wh..wh.";

/// A name: what has it, and the layer that spoke of it last.
struct Place {
    id: usize,
    layer: usize,
}

enum Made {
    Dir {
        meta: Meta,
        names: BTreeMap<Name, Place>,
        /// The layer whose own names are all it and what is below it has.
        own: Option<usize>,
    },
    Other(Node),
}

/// The tree so far.
pub(super) struct Merge {
    nodes: Vec<Made>,
    layer: usize,
    /// The most nodes.
    limit: usize,
}

/// What a directory is like that no layer says anything of.
fn unsaid() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

const ROOT: usize = 0;
const OUTSIDE: &str = "its path leads out of the tree";
const BELOW: &str = "it lies below something that the same layer says is no directory";

impl Merge {
    /// An empty tree, which will have so many nodes at most.
    pub(super) fn new(limit: usize) -> Merge {
        Merge {
            nodes: vec![Made::Dir { meta: unsaid(), names: BTreeMap::new(), own: None }],
            layer: 0,
            limit,
        }
    }

    /// The next layer begins.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Takes an entry in; a file's content comes with it. What is wrong with it otherwise.
    pub(super) fn apply(&mut self, entry: Entry, content: Content) -> Result<(), &'static str> {
        let Entry { path, what, meta } = entry;
        let names = names(&path)?;
        let Some((name, above)) = names.split_last() else {
            return match (what, &mut self.nodes[ROOT]) {
                (What::Dir, Made::Dir { meta: root, .. }) => {
                    *root = meta;
                    Ok(())
                }
                _ => Err("the root is no directory"),
            };
        };
        if names.iter().any(|name| name.starts_with(RESERVED) && *name != OPAQUE) {
            return Ok(());
        }
        if above.iter().any(|name| name.starts_with(GONE)) {
            return Err("it lies below something that is gone");
        }
        if *name == OPAQUE {
            if let Some(dir) = self.find(above) {
                self.only_own(dir);
            }
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(GONE) {
            if gone.is_empty() || matches!(gone, b"." | b"..") {
                return Err("it says that something is gone which cannot be there");
            }
            if let Some(dir) = self.find(above) {
                self.gone(dir, gone);
            }
            return Ok(());
        }
        let kind = match what {
            What::Link(to) => {
                let to = self.linked(&to)?;
                let dir = self.make(above)?;
                self.put(dir, name, to);
                return Ok(());
            }
            What::Dir => {
                let dir = self.make(above)?;
                let dir = self.directory(dir, name)?;
                if let Made::Dir { meta: own, .. } = &mut self.nodes[dir] {
                    *own = meta;
                }
                return Ok(());
            }
            What::File(_) => Kind::File(content),
            What::Symlink(to) => Kind::Symlink(to),
            What::Char(device) => Kind::Char(device),
            What::Block(device) => Kind::Block(device),
            What::Fifo => Kind::Fifo,
        };
        let dir = self.make(above)?;
        let id = self.add(Made::Other(Node { meta, kind }))?;
        self.put(dir, name, id);
        Ok(())
    }

    fn add(&mut self, made: Made) -> Result<usize, &'static str> {
        if self.nodes.len() >= self.limit {
            return Err("it has more directories that nobody names than layers of this length can have");
        }
        self.nodes.push(made);
        Ok(self.nodes.len() - 1)
    }

    fn names(&mut self, dir: usize) -> Option<&mut BTreeMap<Name, Place>> {
        match self.nodes.get_mut(dir) {
            Some(Made::Dir { names, .. }) => Some(names),
            _ => None,
        }
    }

    fn put(&mut self, dir: usize, name: &[u8], id: usize) {
        let layer = self.layer;
        if let Some(names) = self.names(dir) {
            names.insert(name.into(), Place { id, layer });
        }
    }

    /// What has a name in a directory.
    fn place(&self, dir: usize, name: &[u8]) -> Option<&Place> {
        match self.nodes.get(dir) {
            Some(Made::Dir { names, .. }) => names.get(name),
            _ => None,
        }
    }

    /// What has a path.
    fn find(&self, path: &[&[u8]]) -> Option<usize> {
        path.iter().try_fold(ROOT, |at, name| Some(self.place(at, name)?.id))
    }

    /// What a hard link leads to.
    fn linked(&self, path: &[u8]) -> Result<usize, &'static str> {
        let id = self.find(&names(path)?).ok_or("it is another name of something that is not there")?;
        match &self.nodes[id] {
            Made::Dir { .. } => Err("it is another name of a directory"),
            Made::Other(_) => Ok(id),
        }
    }

    /// The directory at a path, with what is missing on the way.
    fn make(&mut self, path: &[&[u8]]) -> Result<usize, &'static str> {
        path.iter().try_fold(ROOT, |at, name| {
            if let Some(Place { id, layer }) = self.place(at, name)
                && *layer == self.layer
                && matches!(self.nodes[*id], Made::Other(_))
            {
                return Err(BELOW);
            }
            self.directory(at, name)
        })
    }

    /// The directory with a name, which this layer speaks of. Of what a layer below has there only a directory stays.
    fn directory(&mut self, dir: usize, name: &[u8]) -> Result<usize, &'static str> {
        let there = self.place(dir, name).map(|place| place.id);
        let id = match there {
            Some(id) if matches!(self.nodes[id], Made::Dir { .. }) => id,
            _ => self.add(Made::Dir { meta: unsaid(), names: BTreeMap::new(), own: Some(self.layer) })?,
        };
        self.put(dir, name, id);
        Ok(id)
    }

    /// Takes away what layers below have under a name.
    fn gone(&mut self, dir: usize, name: &[u8]) {
        match self.place(dir, name) {
            Some(Place { id, layer }) if *layer == self.layer => self.only_own(*id),
            _ => {
                if let Some(names) = self.names(dir) {
                    names.remove(name);
                }
            }
        }
    }

    /// Takes away what layers below have in a directory. Each is done once in a layer: after that it has nothing of theirs.
    fn only_own(&mut self, dir: usize) {
        let layer = self.layer;
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            if let Some(Made::Dir { names, own, .. }) = self.nodes.get_mut(dir)
                && *own != Some(layer)
            {
                *own = Some(layer);
                names.retain(|_, place| place.layer == layer);
                todo.extend(names.values().map(|place| place.id));
            }
        }
    }

    /// The tree: what still has a name.
    pub(super) fn into_tree(mut self) -> Tree {
        let nothing = || Made::Other(Node { meta: Meta::default(), kind: Kind::Fifo });
        let mut ids: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        let root = match std::mem::replace(&mut self.nodes[ROOT], nothing()) {
            Made::Dir { meta, names, .. } => (meta, names),
            Made::Other(_) => (unsaid(), BTreeMap::new()),
        };
        let mut tree = Tree::new(root.0);
        let mut todo = vec![(NodeId::ROOT, root.1)];
        while let Some((dir, names)) = todo.pop() {
            for (name, Place { id, .. }) in names {
                // Both fail only for ids that there are not, and for more of them than the limit allows.
                if let Some(known) = ids[id] {
                    let _ = tree.link(dir, &name, known);
                    continue;
                }
                let (node, below) = match std::mem::replace(&mut self.nodes[id], nothing()) {
                    Made::Dir { meta, names, .. } => {
                        (Node { meta, kind: Kind::Dir(BTreeMap::new()) }, Some(names))
                    }
                    Made::Other(node) => (node, None),
                };
                let Ok(new) = tree.add(dir, &name, node) else { continue };
                ids[id] = Some(new);
                todo.extend(below.map(|names| (new, names)));
            }
        }
        tree
    }
}

/// The names of a path from the root, which may begin with a slash or a dot.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    let names = path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names = names.map(|name| match name {
        b".." => Err(OUTSIDE),
        name if name.len() > NAME_MAX => Err("a name in its path is longer than 255 bytes"),
        name if name.contains(&0) => Err("a name in its path has a NUL"),
        name => Ok(name),
    });
    names.collect()
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
