//! What only an overlay has: files of a lower layer copied up and whited out, lower directories deleted and made again (opaque), or renamed (which is
//! refused with EXDEV unless the overlay is mounted with `redirect_dir=on`).
//!
//! The other kinds do these things too when they come upon a lower file; this one goes on until a whole lower directory is gone, and makes it again.

use super::names::{create_file, make_directory, remove_name};
use crate::torture::dice::Dice;
use crate::torture::op::Op;
use crate::torture::tree::{Body, Tree};

/// Directories that a lower layer has: see `lower`.
const LOWER: [&str; 4] = ["own/low/d0", "own/low/d1", "own/low/d2", "own/low/d0/sub"];

pub(super) fn plan(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = *dice.pick(&LOWER)?;
    match tree.at(path).map(|inode| &inode.body) {
        None => match tree.at(path.rsplit_once('/')?.0) {
            Some(parent) if parent.is_dir() => Some(make_directory(path.to_owned(), 0o755)),
            _ => None,
        },
        Some(Body::Directory(names)) => {
            // Fill it with names that the lower one has too, now and then.
            if dice.one_in(3) {
                let path = format!("{path}/{}", dice.pick(&["a", "b", "c"])?);
                return tree.find(&path).is_none().then(|| create_file(path, 0o644));
            }
            let Some((name, _)) = names.iter().next() else {
                return Some(remove_name(tree, path.to_owned()));
            };
            // Down to something that can be removed.
            let mut path = format!("{path}/{name}");
            while let Some(Body::Directory(names)) = tree.at(&path).map(|inode| &inode.body) {
                let Some(name) = names.keys().next() else { break };
                path = format!("{path}/{name}");
            }
            Some(remove_name(tree, path))
        }
        Some(_) => Some(remove_name(tree, path.to_owned())),
    }
}
