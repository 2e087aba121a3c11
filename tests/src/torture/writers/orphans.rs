//! Files that stay open: written to through their descriptor, also when their last name is gone, which no tree must show.

use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;

use super::names::remove_name;
use super::{length, some_file};
use crate::torture::dice::{Dice, fill};
use crate::torture::op::Op;
use crate::torture::tree::{Handle, Tree, put};

pub(super) fn plan(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let plain = |handle: &&Handle| tree.get(tree.open[*handle]).is_some_and(|inode| !inode.pinned);
    let open: Vec<Handle> = tree.open.keys().filter(plain).copied().collect();
    if open.len() < 2 || (open.len() < 4 && dice.one_in(6)) {
        let path = some_file(tree, dice)?;
        let (handle, real) = (tree.next_handle(), path.clone());
        return Some(Op::new(
            format!("open {path} as {handle}"),
            move |hands| {
                let file = hands.file(&real, OFlags::RDWR)?;
                hands.files.insert(handle, file);
                Ok(0)
            },
            move |tree, _| tree.open(&path),
        ));
    }
    let handle = *dice.pick(&open)?;
    let id = tree.open[&handle];
    match dice.below(10) {
        0 => Some(Op::new(
            format!("close {handle}"),
            move |hands| {
                hands.files.remove(&handle);
                Ok(0)
            },
            move |tree, _| tree.close(handle),
        )),
        1 | 2 => {
            let names = tree.list().into_iter().filter(|(path, of)| *of == id && super::free(path));
            let path = names.map(|(path, _)| path).next()?;
            Some(remove_name(tree, path))
        }
        3 => {
            let size = dice.below(tree.get(id)?.size() + 1);
            Some(Op::new(
                format!("ftruncate {handle} to {size}"),
                move |hands| hands.open(handle)?.set_len(size).map(|()| 0),
                move |tree, _| {
                    tree.rewrite_open(handle, |c| c.resize(usize::try_from(size).unwrap_or(0), 0));
                },
            ))
        }
        _ => {
            let at = dice.below(tree.get(id)?.size() + 3000);
            let (len, seed) = (length(tree, dice), dice.roll());
            Some(Op::new(
                format!("pwrite to {handle} at {at} len {len}"),
                move |hands| Ok(hands.open(handle)?.write_at(&fill(seed, len), at)? as u64),
                move |tree, n| tree.rewrite_open(handle, |c| put(c, at, &fill(seed, n))),
            ))
        }
    }
}
