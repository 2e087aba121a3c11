//! What a layer changes, said by itself: for formats that know whiteouts and opaque directories, but neither redirects nor files whose data is
//! elsewhere.
//!
//! ```text
//!   layer of overlayfs                       changeset
//!   gone     char 0:0, or the attribute      gone     char 0:0
//!   dir      opaque                          dir      opaque
//!   moved    redirect=/old                   moved    opaque, with all that the merged tree shows in it
//!   chmoded  metacopy                        chmoded  with its data
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::overlay::{MAX_ENTRIES, Marks, Namespaces, OverlayError, is_whiteout};
use super::tree::{Kind, Meta, Name, Node, NodeId, Rdev, Tree, TreeError};

/// A layer without overlayfs' marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changeset {
    /// What is in it. A character device 0:0 stands for a name that is no more.
    pub tree: Tree,
    /// The directories that hide what is below them.
    pub opaque: BTreeSet<NodeId>,
}

/// Whether a node of a changeset stands for a name that is no more.
#[must_use]
pub fn is_gone(kind: &Kind) -> bool {
    matches!(kind, Kind::Char(Rdev(0)))
}

/// Whether a layer says something that only the layers below it explain.
#[must_use]
pub fn needs_below(layer: &Tree, namespaces: Namespaces) -> bool {
    layer.nodes().iter().any(|node| {
        let marks = Marks::take(&mut node.meta.xattrs.clone(), namespaces);
        marks.metacopy || (marks.redirect.is_some() && matches!(node.kind, Kind::Dir(_)))
    })
}

/// The changeset of a layer over what the layers below it show; nothing need be below if [`needs_below`] says so.
///
/// # Errors
/// When a file's data is nowhere below, or redirects make too much of it.
pub fn changeset(
    below: Option<&Tree>,
    layer: Tree,
    namespaces: Namespaces,
) -> Result<Changeset, OverlayError> {
    layer.check()?;
    let mut marks = Vec::with_capacity(layer.nodes().len());
    let mut nodes = layer.into_nodes();
    for node in &mut nodes {
        marks.push(Marks::take(&mut node.meta.xattrs, namespaces));
    }
    let root = Node { meta: std::mem::take(&mut nodes[0].meta), kind: Kind::Dir(BTreeMap::new()) };
    let mut making = Making {
        below,
        nodes,
        marks,
        out: vec![root],
        opaque: BTreeSet::new(),
        own: HashMap::new(),
        lower: HashMap::new(),
    };
    making.run()?;
    Ok(Changeset { tree: Tree::from_nodes(making.out)?, opaque: making.opaque })
}

struct Making<'a> {
    below: Option<&'a Tree>,
    /// Those of the layer, without marks; what is taken over is taken out.
    nodes: Vec<Node>,
    marks: Vec<Marks>,
    out: Vec<Node>,
    opaque: BTreeSet<NodeId>,
    /// What became of files of the layer, and of files below: they may have other names.
    own: HashMap<NodeId, NodeId>,
    lower: HashMap<NodeId, NodeId>,
}

/// A directory to go into.
struct Todo {
    /// In the layer.
    dir: NodeId,
    /// In the result.
    to: NodeId,
    /// What it is merged with below.
    lower: Option<NodeId>,
    /// Whether the result has what is below as well.
    whole: bool,
    /// Whether nothing that is below shows through here, whatever the result says.
    hidden: bool,
}

impl Making<'_> {
    fn run(&mut self) -> Result<(), OverlayError> {
        let hides = self.marks[0].opaque;
        if hides {
            self.opaque.insert(NodeId::ROOT);
        }
        let lower = self.below.filter(|_| !hides).map(|_| NodeId::ROOT);
        let mut todo = vec![Todo { dir: NodeId::ROOT, to: NodeId::ROOT, lower, whole: false, hidden: hides }];
        while let Some(next) = todo.pop() {
            self.directory(&next, &mut todo)?;
        }
        Ok(())
    }

    fn directory(&mut self, at: &Todo, todo: &mut Vec<Todo>) -> Result<(), OverlayError> {
        let own = match &mut self.nodes[at.dir.index()].kind {
            Kind::Dir(own) => std::mem::take(own),
            _ => return Ok(()),
        };
        let marked = self.marks[at.dir.index()].has_xattr_whiteouts;
        let mut children: BTreeMap<Name, NodeId> = BTreeMap::new();
        for (name, id) in &own {
            let mark = self.marks[id.index()].clone();
            let kind = &self.nodes[id.index()].kind;
            if is_whiteout(kind, &mark, marked) {
                // Where nothing is below, nothing need be said to be gone.
                if !at.hidden {
                    let gone = Node { meta: Meta::default(), kind: Kind::Char(Rdev(0)) };
                    children.insert(name.clone(), self.push(gone)?);
                }
                continue;
            }
            let new = match kind {
                Kind::Dir(_) => {
                    let lower = if mark.opaque { None } else { self.find(at.lower, name, &mark) };
                    let lower = lower.filter(|id| self.children(*id).is_some());
                    let shell = self.shell(*id);
                    let to = self.push(shell)?;
                    let moved = mark.redirect.is_some() && !mark.opaque;
                    if !at.hidden && (mark.opaque || moved) {
                        self.opaque.insert(to);
                    }
                    // An opaque directory within a whole one has its own content alone.
                    let whole = !mark.opaque && (at.whole || moved);
                    let hidden = at.hidden || mark.opaque || moved;
                    todo.push(Todo { dir: *id, to, lower, whole, hidden });
                    to
                }
                _ => self.file(*id, name, at.lower, &mark)?,
            };
            children.insert(name.clone(), new);
        }
        if let (Some(below), Some(lower), true) = (self.below, at.lower, at.whole) {
            for (name, id) in below.children(lower).into_iter().flatten() {
                if !own.contains_key(name) {
                    children.insert(name.clone(), self.copy(below, *id)?);
                }
            }
        }
        self.out[at.to.index()].kind = Kind::Dir(children);
        Ok(())
    }

    /// Takes over a node of the layer that is no directory.
    fn file(
        &mut self,
        id: NodeId,
        name: &[u8],
        lower: Option<NodeId>,
        mark: &Marks,
    ) -> Result<NodeId, OverlayError> {
        if let Some(new) = self.own.get(&id) {
            return Ok(*new);
        }
        if mark.metacopy && matches!(self.nodes[id.index()].kind, Kind::File(_)) {
            let data = self.find(lower, name, mark).and_then(|id| self.below?.get(id)).map(|node| &node.kind);
            let Some(Kind::File(data)) = data else {
                return Err(OverlayError::NoData { name: name.to_vec() });
            };
            self.nodes[id.index()].kind = Kind::File(data.clone());
        }
        let empty = Node { meta: Meta::default(), kind: Kind::Fifo };
        let taken = std::mem::replace(&mut self.nodes[id.index()], empty);
        let new = self.push(taken)?;
        self.own.insert(id, new);
        Ok(new)
    }

    /// Copies what is below with all in it.
    fn copy(&mut self, below: &Tree, from: NodeId) -> Result<NodeId, OverlayError> {
        let mut todo = Vec::new();
        let top = self.copy_one(below, from, &mut todo)?;
        while let Some((from, to)) = todo.pop() {
            let mut children = BTreeMap::new();
            for (name, id) in below.children(from).into_iter().flatten() {
                children.insert(name.clone(), self.copy_one(below, *id, &mut todo)?);
            }
            self.out[to.index()].kind = Kind::Dir(children);
        }
        Ok(top)
    }

    fn copy_one(
        &mut self,
        below: &Tree,
        from: NodeId,
        todo: &mut Vec<(NodeId, NodeId)>,
    ) -> Result<NodeId, OverlayError> {
        if let Some(new) = self.lower.get(&from) {
            return Ok(*new);
        }
        let node = &below.nodes()[from.index()];
        if matches!(node.kind, Kind::Dir(_)) {
            let new = self.push(Node { meta: node.meta.clone(), kind: Kind::Dir(BTreeMap::new()) })?;
            todo.push((from, new));
            return Ok(new);
        }
        let new = self.push(node.clone())?;
        self.lower.insert(from, new);
        Ok(new)
    }

    fn push(&mut self, node: Node) -> Result<NodeId, OverlayError> {
        if self.out.len() >= MAX_ENTRIES {
            return Err(OverlayError::TooLarge);
        }
        self.out.push(node);
        Ok(NodeId(u32::try_from(self.out.len() - 1).map_err(|_| TreeError::TooManyNodes)?))
    }

    fn shell(&mut self, id: NodeId) -> Node {
        let meta = std::mem::take(&mut self.nodes[id.index()].meta);
        Node { meta, kind: Kind::Dir(BTreeMap::new()) }
    }

    fn children(&self, lower: NodeId) -> Option<&BTreeMap<Name, NodeId>> {
        self.below?.children(lower)
    }

    /// The inode below that one of this layer goes with; as `Merger::below`.
    fn find(&self, dir: Option<NodeId>, name: &[u8], mark: &Marks) -> Option<NodeId> {
        match mark.redirect.as_deref() {
            Some([b'/', path @ ..]) => self.below?.lookup(path),
            Some(sibling) => self.children(dir?)?.get(sibling).copied(),
            None => self.children(dir?)?.get(name).copied(),
        }
    }
}

#[cfg(test)]
#[path = "changeset_tests.rs"]
mod tests;
