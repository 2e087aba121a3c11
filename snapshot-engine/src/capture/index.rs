//! The shape of the tree, in memory only.
//!
//! ```text
//!   nodes:  ino -> Node { links: [(directory, name)], known: stat, xattrs, body, entries: name -> ino }
//!                            ^------------ the two say the same thing from both ends -----------^
//! ```
//!
//! Content lies on disk by identity, so a rename or a deletion during the rounds changes two maps and touches no disk. A node
//! without `known` is a placeholder: a name that was listed but whose inode has not been read yet. Nothing is frozen while one is left.
//!
//! Listings are taken one after another while the container renames, so for a while an inode may be in two directories, in
//! none, or a directory may be its own ancestor. Nothing here assumes a tree; only `frozen` demands one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::links::Links;
use crate::kernel::beneath::{Stat, Xattrs};
use crate::model::dirty::Ino;

/// What there is to an inode besides its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// A directory; its entries are in the node.
    Directory,
    /// A regular file and the serial of its data file.
    File { serial: u64 },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A device, FIFO or socket: all of it is in the stat.
    Special,
}

/// An inode that has been read.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// As it was *before* its content was read, so that a later comparison errs on the safe side.
    pub(super) stat: Stat,
    pub(super) xattrs: Xattrs,
    pub(super) body: Body,
    /// (inode number, birth time) does not tell this inode from its successor: it was born in the tick in which it was read, or
    /// the file system keeps no birth times. Whatever is said to be dirty of it is then read whole.
    pub(super) young: bool,
    /// Of a regular file: its content was read once and not again, and nobody had it mapped shared or under direct I/O then.
    pub(super) steady: bool,
}

/// An inode number and everything that hangs on it.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) links: Links,
    pub(super) known: Option<Known>,
    /// Of a directory that was listed.
    pub(super) entries: Option<BTreeMap<Arc<CStr>, Ino>>,
}

/// The shape of the whole tree.
#[derive(Debug)]
pub(super) struct Index {
    nodes: HashMap<Ino, Node>,
    root: Ino,
    /// The roots of the grafts, and where they go.
    grafts: Vec<(Ino, PathBuf)>,
    /// In no directory right now. A rename that was listed half looks like this: they have one round to turn up again.
    orphans: HashSet<Ino>,
    stale: HashSet<Ino>,
    /// Bytes of all attributes and link targets.
    bytes: usize,
}

/// Bytes an inode's attributes and link target take here, about.
fn weight(known: &Known) -> usize {
    let attributes: usize = known.xattrs.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    match &known.body {
        Body::Symlink(target) => attributes + target.len(),
        _ => attributes,
    }
}

impl Index {
    pub(super) fn new(root: Ino, grafts: Vec<(Ino, PathBuf)>) -> Index {
        let roots = std::iter::once(root).chain(grafts.iter().map(|(ino, _)| *ino));
        let nodes = roots.map(|ino| (ino, Node::default())).collect();
        Index { nodes, root, grafts, orphans: HashSet::new(), stale: HashSet::new(), bytes: 0 }
    }

    /// The upperdir's root.
    pub(super) fn root(&self) -> Ino {
        self.root
    }

    /// It and those of the grafts.
    pub(super) fn roots(&self) -> impl Iterator<Item = Ino> {
        std::iter::once(self.root).chain(self.grafts.iter().map(|(ino, _)| *ino))
    }

    pub(super) fn is_root(&self, ino: Ino) -> bool {
        ino == self.root || self.grafts.iter().any(|(root, _)| *root == ino)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all attributes and link targets, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    pub(super) fn known(&self, ino: Ino) -> Option<&Known> {
        self.nodes.get(&ino)?.known.as_ref()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.nodes.iter().map(|(ino, node)| (*ino, node))
    }

    pub(super) fn orphans(&self) -> impl Iterator<Item = Ino> {
        self.orphans.iter().copied()
    }

    /// A placeholder that no directory names yet.
    pub(super) fn insert(&mut self, ino: Ino) {
        self.nodes.entry(ino).or_insert_with(|| {
            self.orphans.insert(ino);
            Node::default()
        });
    }

    /// The serial of the data file of an inode that is a regular file.
    pub(super) fn serial(&self, ino: Ino) -> Option<u64> {
        match self.known(ino)?.body {
            Body::File { serial } => Some(serial),
            _ => None,
        }
    }

    /// Replaces a directory's entries and returns the inodes that were not under that name before, with their `DT_*`.
    pub(super) fn set_entries(
        &mut self,
        dir: Ino,
        listing: impl IntoIterator<Item = (CString, Ino, u8)>,
    ) -> Vec<(Ino, u8)> {
        let Some(node) = self.nodes.get_mut(&dir) else { return Vec::new() };
        let mut old = node.entries.take().unwrap_or_default();
        let mut new = BTreeMap::new();
        let mut linked = Vec::new();
        for (name, ino, kind) in listing {
            let name = match old.remove_entry(name.as_c_str()) {
                Some((name, was)) if was == ino => {
                    new.insert(name, ino);
                    continue;
                }
                Some((name, was)) => {
                    self.unlink(was, dir, &name);
                    name
                }
                None => Arc::from(name),
            };
            // A directory that is read while it changes may give a name twice (POSIX leaves it open): the last one counts.
            if let Some(was) = new.insert(Arc::clone(&name), ino) {
                self.unlink(was, dir, &name);
            }
            self.nodes.entry(ino).or_default().links.push(dir, name);
            self.orphans.remove(&ino);
            linked.push((ino, kind));
        }
        for (name, ino) in old {
            self.unlink(ino, dir, &name);
        }
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.entries = Some(new);
        }
        linked
    }

    fn unlink(&mut self, ino: Ino, dir: Ino, name: &Arc<CStr>) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.links.remove(dir, name);
        if node.links.is_empty() && !self.is_root(ino) {
            self.orphans.insert(ino);
        }
    }

    /// Takes in what was read of an inode; returns the serial of the data file it replaces.
    pub(super) fn set_known(&mut self, ino: Ino, known: Known) -> Option<u64> {
        if known.body != Body::Directory {
            self.forget_entries(ino);
        }
        let new = match known.body {
            Body::File { serial } => Some(serial),
            _ => None,
        };
        let node = self.nodes.get_mut(&ino)?;
        self.bytes += weight(&known);
        let old = node.known.replace(known)?;
        self.bytes -= weight(&old);
        match old.body {
            Body::File { serial } if Some(serial) != new => Some(serial),
            _ => None,
        }
    }

    /// Makes an inode a placeholder again; returns the serial of its data file.
    pub(super) fn forget(&mut self, ino: Ino) -> Option<u64> {
        self.forget_entries(ino);
        let old = self.nodes.get_mut(&ino)?.known.take()?;
        self.bytes -= weight(&old);
        match old.body {
            Body::File { serial } => Some(serial),
            _ => None,
        }
    }

    fn forget_entries(&mut self, ino: Ino) {
        let entries = self.nodes.get_mut(&ino).and_then(|node| node.entries.take());
        for (name, child) in entries.into_iter().flatten() {
            self.unlink(child, ino, &name);
        }
    }

    /// Drops the inodes that are in no directory and were not at the last call either (`all`: without that grace), with
    /// everything below them. Returns each with the serial of its data file.
    pub(super) fn drop_orphans(&mut self, all: bool) -> Vec<(Ino, Option<u64>)> {
        let mut stack: Vec<Ino> =
            self.orphans.iter().filter(|ino| all || self.stale.contains(ino)).copied().collect();
        let mut dropped = Vec::new();
        while let Some(ino) = stack.pop() {
            if !self.orphans.remove(&ino) {
                continue;
            }
            let children: Vec<Ino> = self
                .get(ino)
                .and_then(|n| n.entries.as_ref())
                .into_iter()
                .flat_map(|e| e.values().copied())
                .collect();
            let serial = self.forget(ino);
            // Children that lost their last link with this directory go with it.
            stack.extend(children.into_iter().filter(|child| self.orphans.contains(child)));
            self.nodes.remove(&ino);
            dropped.push((ino, serial));
        }
        self.stale = self.orphans.clone();
        dropped
    }

    /// The way to an inode from the root of its tree, which comes first, by the newest link of each step; `None` if it is not connected to a root.
    fn locate(&self, ino: Ino) -> Option<(Ino, Vec<&CStr>)> {
        let mut way = Vec::new();
        let mut at = ino;
        while !self.is_root(at) {
            // Listings of different moments may have made a circle.
            if way.len() > self.nodes.len() {
                return None;
            }
            let (dir, name) = self.nodes.get(&at)?.links.last()?;
            way.push(&**name);
            at = *dir;
        }
        way.reverse();
        Some((at, way))
    }

    /// The path of an inode for messages, relative to the upperdir's root.
    pub(super) fn path(&self, ino: Ino) -> PathBuf {
        let Some((root, way)) = self.locate(ino) else { return PathBuf::from(format!("<inode {}>", ino.0)) };
        let mut path = self
            .grafts
            .iter()
            .find(|(graft, _)| *graft == root)
            .map(|(_, at)| at.clone())
            .unwrap_or_default();
        path.extend(way.iter().map(|name| OsStr::from_bytes(name.to_bytes())));
        if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
    }
}
