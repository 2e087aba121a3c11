//! Every name of a tree, in order.

use std::collections::btree_map::Iter;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::model::tree::{Name, NodeId, Tree};

/// Calls `each` for every name at and below a node, sorted, each directory before what is in it. The root's path is empty. One path
/// is kept, however deep the tree is: a copy for each name of a deep tree would cost the square of its depth.
pub(super) fn walk(tree: &Tree, start: NodeId, mut path: Vec<u8>, each: &mut dyn FnMut(&[u8], NodeId)) {
    each(&path, start);
    let mut open: Vec<(Iter<'_, Name, NodeId>, usize)> = Vec::new();
    open.extend(tree.children(start).map(|children| (children.iter(), path.len())));
    while let Some((children, len)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, id)) = children.next() else {
            open.pop();
            continue;
        };
        path.push(b'/');
        path.extend_from_slice(name);
        each(&path, *id);
        open.extend(tree.children(*id).map(|children| (children.iter(), path.len())));
    }
}

/// A path from the root, as it is shown.
pub(super) fn to_path(path: &[u8]) -> PathBuf {
    if path.is_empty() { PathBuf::from("/") } else { PathBuf::from(OsString::from_vec(path.to_vec())) }
}
