//! Layers merged into the one tree an overlay mount would show.
//!
//! ```text
//! lowest layer --step--> view --step--> view ... --step--> the image's tree
//!                 ^               ^
//!              layer 2         layer 3: whiteouts, opaque, redirect, metacopy are looked up in the view below
//! ```
//!
//! The marks are those of overlayfs (Documentation/filesystems/overlayfs.rst; fs/overlayfs/namei.c `ovl_lookup_single`,
//! `ovl_check_redirect`; util.c `ovl_path_is_whiteout`). Folding from the bottom gives the same answers as the
//! kernel's lookup from the top: a redirect names a path of the merged layers below the one that carries it.
//! Views share unchanged subtrees. A hand-made redirect can therefore show one directory at several
//! places; the last step gives each its own copy, and bounds how many there may be.

use std::collections::BTreeMap;

use super::tree::{Kind, Name, Node, NodeId, Tree, TreeError, Xattrs};

/// The most entries a merged tree may have: redirects can multiply a few directories without end.
pub(super) const MAX_ENTRIES: usize = 1 << 24;

/// Which attributes carry overlayfs' marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Namespaces {
    /// `trusted.overlay.*`: a mount without `userxattr`. `user.overlay.*` is then the container's own data.
    Trusted,
    /// `user.overlay.*`: a mount with `userxattr`.
    User,
    /// Both, for layers whose mount is not known.
    #[default]
    Both,
}

impl Namespaces {
    fn prefixes(self) -> &'static [&'static [u8]] {
        match self {
            Namespaces::Trusted => &[b"trusted.overlay."],
            Namespaces::User => &[b"user.overlay."],
            Namespaces::Both => &[b"trusted.overlay.", b"user.overlay."],
        }
    }

    /// Whether an attribute is one of overlayfs' marks.
    #[must_use]
    pub fn is_mark(self, name: &[u8]) -> bool {
        self.prefixes().iter().any(|prefix| name.starts_with(prefix))
    }

    /// The attribute that, with the value `y`, makes a directory hide what is below it.
    #[must_use]
    pub fn opaque(self) -> Vec<u8> {
        [self.prefixes()[0], b"opaque"].concat()
    }
}

/// Why layers cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// No layer was given.
    #[error("no layer to merge: give at least one")]
    NoLayers,
    /// A file has only metadata in its layer and its data is nowhere below.
    #[error(
        "`{}` has its data in a layer below (overlay.metacopy), where no such file is: give all lower layers of the mount",
        String::from_utf8_lossy(name)
    )]
    NoData {
        /// The file's name.
        name: Vec<u8>,
    },
    /// Redirects multiply the tree.
    #[error(
        "the merged tree has more than {MAX_ENTRIES} entries: check the layers' overlay.redirect attributes"
    )]
    TooLarge,
    /// A layer is not a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// What overlayfs wrote on an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// The lower directory is hidden.
    pub opaque: bool,
    /// Files in this directory may be whiteouts in the attribute form.
    pub has_xattr_whiteouts: bool,
    /// A whiteout, if its directory says that it has such.
    pub whiteout: bool,
    /// The data is in a layer below.
    pub metacopy: bool,
    /// Where the lower inode is.
    pub redirect: Option<Vec<u8>>,
}

impl Marks {
    /// Takes overlayfs' private attributes out of `xattrs`; escaped ones are unescaped by one level, as the kernel shows
    /// them (fs/overlayfs/xattrs.c `ovl_is_escaped_xattr`).
    pub fn take(xattrs: &mut Xattrs, namespaces: Namespaces) -> Marks {
        let mut marks = Marks::default();
        let mut unescaped = false;
        xattrs.retain_mut(|(name, value)| {
            for prefix in namespaces.prefixes() {
                let Some(rest) = name.strip_prefix(*prefix) else { continue };
                if let Some(inner) = rest.strip_prefix(b"overlay.") {
                    *name = [*prefix, inner].concat();
                    unescaped = true;
                    return true;
                }
                match rest {
                    b"opaque" => match value.as_slice() {
                        b"y" => marks.opaque = true,
                        b"x" => marks.has_xattr_whiteouts = true,
                        _ => {}
                    },
                    b"whiteout" => marks.whiteout = true,
                    b"metacopy" => marks.metacopy = true,
                    b"redirect" => marks.redirect = Some(std::mem::take(value)),
                    _ => {}
                }
                return false;
            }
            true
        });
        if unescaped {
            xattrs.sort();
        }
        marks
    }

    /// Whether a file's data is in a layer below, by its attributes alone.
    #[must_use]
    pub fn is_metacopy(xattrs: &Xattrs, namespaces: Namespaces) -> bool {
        namespaces.prefixes().iter().any(|prefix| {
            xattrs.iter().any(|(name, _)| name.strip_prefix(*prefix).is_some_and(|rest| rest == b"metacopy"))
        })
    }
}

/// Merges layers, the lowest first, over what an image shows, if there is one. In that, nothing is a mark: what looks like one is the
/// image's own content.
///
/// # Errors
/// When a file's data is in no layer, or the result would be too large.
pub fn merge(
    base: Option<Tree>,
    layers: impl IntoIterator<Item = Tree>,
    namespaces: Namespaces,
) -> Result<Tree, OverlayError> {
    merge_bounded(base, layers, namespaces, MAX_ENTRIES)
}

fn merge_bounded(
    base: Option<Tree>,
    layers: impl IntoIterator<Item = Tree>,
    namespaces: Namespaces,
    most: usize,
) -> Result<Tree, OverlayError> {
    let view = base.is_some().then_some(NodeId::ROOT);
    let mut merger =
        Merger { nodes: base.map(Tree::into_nodes).unwrap_or_default(), view, redirected: false };
    for layer in layers {
        merger.step(layer, namespaces)?;
    }
    merger.finish(most)
}

struct Merger {
    /// The nodes of all layers so far. Nodes of finished steps are not changed any more.
    nodes: Vec<Node>,
    /// The root of the merged view so far.
    view: Option<NodeId>,
    /// A redirect has been followed: a directory may be at several places of the view.
    redirected: bool,
}

impl Merger {
    fn children(&self, id: NodeId) -> Option<&BTreeMap<Name, NodeId>> {
        match &self.nodes.get(id.index())?.kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }

    /// The inode of the view below that one of this layer goes with.
    fn below(&self, lower_dir: Option<NodeId>, name: &[u8], marks: &Marks) -> Option<NodeId> {
        match marks.redirect.as_deref() {
            Some([b'/', path @ ..]) => {
                let mut at = self.view?;
                for name in path.split(|b| *b == b'/') {
                    at = *self.children(at)?.get(name)?;
                }
                Some(at)
            }
            Some(sibling) => self.children(lower_dir?)?.get(sibling).copied(),
            None => self.children(lower_dir?)?.get(name).copied(),
        }
    }

    fn step(&mut self, layer: Tree, namespaces: Namespaces) -> Result<(), OverlayError> {
        layer.check()?;
        let base = self.nodes.len();
        let total = base + layer.nodes().len();
        u32::try_from(total).map_err(|_| TreeError::TooManyNodes)?;
        let shift = |id: NodeId| NodeId(id.0 + base as u32);
        let mut marks = Vec::with_capacity(layer.nodes().len());
        for mut node in layer.into_nodes() {
            marks.push(Marks::take(&mut node.meta.xattrs, namespaces));
            if let Kind::Dir(children) = &mut node.kind {
                children.values_mut().for_each(|id| *id = shift(*id));
            }
            self.nodes.push(node);
        }

        let root = shift(NodeId::ROOT);
        let mut todo = vec![(root, self.view)];
        while let Some((dir, lower)) = todo.pop() {
            let Some(Node { kind: Kind::Dir(own), .. }) = self.nodes.get_mut(dir.index()) else { continue };
            let mut own = std::mem::take(own);
            let xattr_whiteouts = marks[dir.index() - base].has_xattr_whiteouts;
            let mut hidden = Vec::new();
            for (name, id) in &own {
                let id = *id;
                let mark = &marks[id.index() - base];
                if is_whiteout(&self.nodes[id.index()].kind, mark, xattr_whiteouts) {
                    hidden.push(name.clone());
                    continue;
                }
                match &self.nodes[id.index()].kind {
                    Kind::Dir(_) => {
                        let below = if mark.opaque { None } else { self.below(lower, name, mark) };
                        self.redirected |= mark.redirect.is_some();
                        todo.push((id, below.filter(|id| self.children(*id).is_some())));
                    }
                    Kind::File(_) if mark.metacopy => {
                        let below = self.below(lower, name, mark).map(|id| &self.nodes[id.index()].kind);
                        let Some(Kind::File(data)) = below else {
                            return Err(OverlayError::NoData { name: name.to_vec() });
                        };
                        let data = data.clone();
                        self.nodes[id.index()].kind = Kind::File(data);
                        // Its other names lead to the same data.
                        marks[id.index() - base].metacopy = false;
                    }
                    _ => {}
                }
            }
            let mut merged = match lower.and_then(|id| self.children(id)) {
                Some(lower) => {
                    let mut merged = lower.clone();
                    merged.append(&mut own);
                    merged
                }
                None => own,
            };
            for name in hidden {
                merged.remove(&name);
            }
            if let Some(node) = self.nodes.get_mut(dir.index()) {
                node.kind = Kind::Dir(merged);
            }
        }
        self.view = Some(root);
        Ok(())
    }

    /// Copies what the last view shows into a tree of its own.
    fn finish(mut self, most: usize) -> Result<Tree, OverlayError> {
        let root = self.view.ok_or(OverlayError::NoLayers)?;
        let mut out: Vec<Node> = Vec::new();
        let mut copied: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        let mut todo = vec![(root, out.len())];
        out.push(self.shell(root));
        while let Some((from, to)) = todo.pop() {
            let mut names = match self.nodes.get_mut(from.index()).map(|node| &mut node.kind) {
                Some(Kind::Dir(names)) if self.redirected => names.clone(),
                Some(Kind::Dir(names)) => std::mem::take(names),
                _ => BTreeMap::new(),
            };
            for named in names.values_mut() {
                let id = *named;
                let is_dir = self.children(id).is_some();
                let new = match copied[id.index()] {
                    Some(new) if !is_dir => new,
                    _ => {
                        if out.len() >= most {
                            return Err(OverlayError::TooLarge);
                        }
                        let new = NodeId(u32::try_from(out.len()).map_err(|_| TreeError::TooManyNodes)?);
                        if is_dir {
                            out.push(self.shell(id));
                            todo.push((id, new.index()));
                        } else {
                            let empty = Node { meta: Default::default(), kind: Kind::Fifo };
                            out.push(std::mem::replace(&mut self.nodes[id.index()], empty));
                        }
                        copied[id.index()] = Some(new);
                        new
                    }
                };
                *named = new;
            }
            out[to].kind = Kind::Dir(names);
        }
        Ok(Tree::from_nodes(out)?)
    }

    fn shell(&self, id: NodeId) -> Node {
        Node { meta: self.nodes[id.index()].meta.clone(), kind: Kind::Dir(BTreeMap::new()) }
    }
}

pub(super) fn is_whiteout(kind: &Kind, marks: &Marks, in_marked_dir: bool) -> bool {
    match kind {
        Kind::Char(rdev) => rdev.0 == 0,
        Kind::File(content) => in_marked_dir && marks.whiteout && content.size == 0,
        _ => false,
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
pub(super) mod tests;
