//! The inodes of v5: one for each **name** of the tree, numbered so that a directory's children are consecutive.
//!
//! ```text
//! 1: "/" | 2: a/ 3: b/ 4: c | 5: a/x 6: a/y | 7: b/z | ...        breadth first, sorted in each directory
//! ```
//!
//! Further names of a regular file repeat its inode under their own position, with the number of the first. The format has
//! no such thing for other types: readers take a parent that is not before its child for damage unless the child is a
//! regular file with several names (rafs/src/metadata/direct_v5.rs, `validate`). A link, device, FIFO or socket with several
//! names becomes several inodes.

use crate::model::tree::{Kind, NodeId, Tree};

use super::layout::ROOT_INO;

/// A name.
#[derive(Debug)]
pub(super) struct Named<'a> {
    pub(super) id: NodeId,
    pub(super) name: &'a [u8],
    /// Position of its directory; its own for the root.
    pub(super) parent: usize,
    /// The inode's number.
    pub(super) ino: u64,
    /// How many names it has.
    pub(super) nlink: u32,
    /// Positions of a directory's children.
    pub(super) children: std::ops::Range<usize>,
}

/// All names, in the order of their positions: the first has number [`ROOT_INO`].
pub(super) fn number(tree: &Tree) -> Vec<Named<'_>> {
    let counts = tree.link_counts();
    let mut first: Vec<Option<u64>> = vec![None; tree.nodes().len()];
    let mut names =
        vec![Named { id: NodeId::ROOT, name: b"/", parent: 0, ino: ROOT_INO, nlink: 1, children: 0..0 }];
    let mut at = 0;
    while let Some(dir) = names.get(at).map(|n| n.id) {
        let start = names.len();
        let mut directories = 0;
        for (name, id) in tree.children(dir).into_iter().flatten() {
            let own = names.len() as u64 + ROOT_INO;
            let kind = tree.get(*id).map(|node| &node.kind);
            directories += u32::from(matches!(kind, Some(Kind::Dir(_))));
            let (ino, nlink) = match kind {
                Some(Kind::File(_)) => (*first[id.index()].get_or_insert(own), counts[id.index()]),
                _ => (own, 1),
            };
            names.push(Named { id: *id, name, parent: at, ino, nlink, children: 0..0 });
        }
        if tree.children(dir).is_some() {
            let end = names.len();
            names[at].children = start..end;
            names[at].nlink = 2 + directories;
        }
        at += 1;
    }
    names
}

/// The path of a name, for messages.
pub(super) fn path(names: &[Named<'_>], mut at: usize) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    while at != 0 {
        parts.push(names[at].name);
        at = names[at].parent;
    }
    parts.push(b"");
    parts.reverse();
    parts.join(&b'/')
}
