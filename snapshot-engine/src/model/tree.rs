//! A file tree as a value: what a layer holds, and what an image shows.
//!
//! ```text
//! Tree { nodes: [ 0: dir "/" {etc: 1, run: 4}, 1: dir {passwd: 2, group: 3}, 2: file, 3: file, 4: fifo ] }
//! ```
//!
//! Nodes lie in one vector and are named by position, so that a hard link is simply a second name for the same
//! [`NodeId`]. Directories have one name each; [`Tree::check`] refuses anything else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chunk::ChunkRef;

/// A name in a directory: any bytes but NUL and `/`, at most 255 of them.
pub type Name = Box<[u8]>;
/// Extended attributes, sorted by name so that equal trees give equal bytes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The most bytes of a name (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// A node of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The root of every tree.
    pub const ROOT: NodeId = NodeId(0);

    /// Position in the tree's nodes.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Mtime {
    /// Seconds since the epoch; negative before it.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with set-id and sticky (`mode & 0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// The content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// Its chunks in order; empty before they are made, and for a file whose data is in a layer below.
    pub chunks: Vec<ChunkRef>,
}

/// A device number as `st_rdev` packs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rdev(pub u64);

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory and its names.
    Dir(BTreeMap<Name, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    Char(Rdev),
    /// A block device.
    Block(Rdev),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// The file type bits (`S_IFMT` of a mode).
    #[must_use]
    pub fn type_bits(&self) -> u32 {
        match self {
            Kind::Dir(_) => libc::S_IFDIR,
            Kind::File(_) => libc::S_IFREG,
            Kind::Symlink(_) => libc::S_IFLNK,
            Kind::Char(_) => libc::S_IFCHR,
            Kind::Block(_) => libc::S_IFBLK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
        }
    }
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Owner, permissions, time, attributes.
    pub meta: Meta,
    /// Type and content.
    pub kind: Kind,
}

/// Why a value is not a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Names and ids do not form a tree.
    #[error("the tree is damaged ({what}): convert the layer again")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// More nodes than an id can name.
    #[error("more than {} files: snapshot a smaller tree", u32::MAX)]
    TooManyNodes,
}

/// A file tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// A tree of nothing but its root.
    #[must_use]
    pub fn new(root: Meta) -> Tree {
        Tree { nodes: vec![Node { meta: root, kind: Kind::Dir(BTreeMap::new()) }] }
    }

    /// A tree from its nodes, the root first.
    ///
    /// # Errors
    /// When they do not form one.
    pub fn from_nodes(nodes: Vec<Node>) -> Result<Tree, TreeError> {
        let tree = Tree { nodes };
        tree.check()?;
        Ok(tree)
    }

    /// Every node; a [`NodeId`] is a position here.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes alone.
    #[must_use]
    pub fn into_nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// The node an id names; ids of another tree may be out of range.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    /// The node an id names, to change.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.index())
    }

    /// The same tree with other metadata.
    #[must_use]
    pub fn map_metas(mut self, mut change: impl FnMut(&mut Meta)) -> Tree {
        self.nodes.iter_mut().for_each(|node| change(&mut node.meta));
        self
    }

    /// The names of a directory; none for anything else.
    #[must_use]
    pub fn children(&self, id: NodeId) -> Option<&BTreeMap<Name, NodeId>> {
        match &self.get(id)?.kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }

    /// Adds a node under a name; gives its id.
    ///
    /// # Errors
    /// When `parent` is no directory of this tree or ids have run out.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::TooManyNodes)?);
        self.nodes.push(node);
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Gives a node a name (for a node that has one already: a hard link).
    ///
    /// # Errors
    /// When `parent` is no directory of this tree.
    pub fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), TreeError> {
        match self.nodes.get_mut(parent.index()).map(|node| &mut node.kind) {
            Some(Kind::Dir(children)) => {
                children.insert(name.into(), id);
                Ok(())
            }
            _ => Err(TreeError::Damaged { what: "a name in something that is no directory" }),
        }
    }

    /// The node at a path of `/`-separated names.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        let mut at = NodeId::ROOT;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            at = *self.children(at)?.get(name)?;
        }
        Some(at)
    }

    /// How many names lead to each node; the root counts as one.
    #[must_use]
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.nodes.len()];
        if let Some(root) = counts.first_mut() {
            *root = 1;
        }
        for node in &self.nodes {
            if let Kind::Dir(children) = &node.kind {
                for id in children.values() {
                    if let Some(count) = counts.get_mut(id.index()) {
                        *count = count.saturating_add(1);
                    }
                }
            }
        }
        counts
    }

    /// Whether the nodes form a tree: the root is a directory, ids are in range, names are valid, every
    /// directory but the root has exactly one name and can be reached from the root.
    ///
    /// # Errors
    /// Names the first thing that is wrong.
    pub fn check(&self) -> Result<(), TreeError> {
        let damaged = |what| Err(TreeError::Damaged { what });
        if !matches!(self.nodes.first(), Some(Node { kind: Kind::Dir(_), .. })) {
            return damaged("the root is no directory");
        }
        let mut seen = vec![false; self.nodes.len()];
        seen[0] = true;
        let mut stack = vec![NodeId::ROOT];
        while let Some(id) = stack.pop() {
            let Some(children) = self.children(id) else { continue };
            for (name, child) in children {
                if name.is_empty()
                    || name.len() > NAME_MAX
                    || name.iter().any(|b| matches!(b, 0 | b'/'))
                    || matches!(&**name, b"." | b"..")
                {
                    return damaged("a name that cannot be one");
                }
                let Some(node) = self.get(*child) else { return damaged("an id without a node") };
                let is_dir = matches!(node.kind, Kind::Dir(_));
                if std::mem::replace(&mut seen[child.index()], true) {
                    if is_dir {
                        return damaged("a directory with two names");
                    }
                } else if is_dir {
                    stack.push(*child);
                }
            }
        }
        if seen.contains(&false) {
            return damaged("a node without a name");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node { meta: Meta::default(), kind: Kind::File(Content::default()) }
    }

    #[test]
    fn hard_links_are_names_of_one_node() -> Result<(), TreeError> {
        let mut tree = Tree::new(Meta::default());
        let dir = Node { meta: Meta::default(), kind: Kind::Dir(BTreeMap::new()) };
        let dir = tree.add(NodeId::ROOT, b"dir", dir)?;
        let a = tree.add(dir, b"a", file())?;
        tree.link(NodeId::ROOT, b"b", a)?;
        assert_eq!(tree.lookup(b"/dir/a"), Some(a));
        assert_eq!(tree.lookup(b"b"), Some(a));
        assert_eq!(tree.link_counts(), [1, 1, 2]);
        tree.check()
    }

    #[test]
    fn damage_is_found() {
        let dir = |names: &[(&[u8], u32)]| Node {
            meta: Meta::default(),
            kind: Kind::Dir(names.iter().map(|(n, id)| ((*n).into(), NodeId(*id))).collect()),
        };
        for nodes in [
            vec![],
            vec![file()],
            vec![dir(&[(b"a", 1)])],
            vec![dir(&[(b"a", 0)])],
            vec![dir(&[(b"a", 1), (b"b", 1)]), dir(&[])],
            vec![dir(&[]), file()],
            vec![dir(&[(b"", 1)]), file()],
            vec![dir(&[(b"a/b", 1)]), file()],
            vec![dir(&[(b"..", 1)]), file()],
            vec![dir(&[]), dir(&[(b"a", 2)]), dir(&[(b"b", 1)])],
        ] {
            assert!(Tree::from_nodes(nodes.clone()).is_err(), "{nodes:?}");
        }
    }
}
