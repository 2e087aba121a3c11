//! Stores through shared mappings: each is one operation, an aligned word.

use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::OFlags;
use snapshot_engine::kernel::words::Words;

use super::names::create_file;
use super::space::resize;
use crate::torture::dice::Dice;
use crate::torture::op::Op;
use crate::torture::tree::{Handle, Tree, put};

/// Words of each mapped file: some pages, so that one is clean now and then.
const WORDS: u64 = 16 * 512;

pub(super) fn plan(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = format!("own/map{}", dice.below(2));
    let pinned = |handle: &&Handle| tree.get(tree.open[*handle]).is_some_and(|inode| inode.pinned);
    let maps: Vec<Handle> = tree.open.keys().filter(pinned).copied().collect();
    if maps.len() < 2 {
        match tree.at(&path) {
            None => return Some(create_file(path, 0o644)),
            Some(inode) if inode.content().is_none() || inode.pinned => {}
            Some(inode) if inode.size() < WORDS * 8 => return Some(resize(path, WORDS * 8)),
            Some(_) => return Some(map(tree.next_handle(), path)),
        }
    }
    let handle = *dice.pick(&maps)?;
    match dice.below(40) {
        0 => Some(Op::new(
            format!("munmap {handle}"),
            move |hands| {
                hands.maps.remove(&handle);
                hands.files.remove(&handle);
                Ok(0)
            },
            move |tree, _| {
                tree.change_open(handle, |inode| inode.pinned = false);
                tree.close(handle);
            },
        )),
        1 => Some(Op::new(
            format!("msync {handle}"),
            move |hands| match hands.maps.get(&handle) {
                Some(words) => words.sync().map(|()| 0),
                None => Ok(0),
            },
            |_, _| {},
        )),
        _ => {
            // Mostly in the first pages, which stay dirty.
            let index = if dice.one_in(3) { dice.below(WORDS) } else { dice.below(600) };
            let value = dice.roll();
            Some(Op::new(
                format!("store {value:#x} into word {index} of {handle}"),
                move |hands| {
                    // Opened by another kind, and not mapped.
                    let words = hands.maps.get(&handle).ok_or(std::io::ErrorKind::NotFound)?;
                    words.as_slice()[usize::try_from(index).unwrap_or(0)].store(value, SeqCst);
                    Ok(0)
                },
                move |tree, _| tree.rewrite_open(handle, |c| put(c, index * 8, &value.to_ne_bytes())),
            ))
        }
    }
}

fn map(handle: Handle, path: String) -> Op {
    let real = path.clone();
    Op::new(
        format!("mmap {path} as {handle}"),
        move |hands| {
            let file = hands.file(&real, OFlags::RDWR)?;
            let words = Words::map(&file, usize::try_from(WORDS).unwrap_or(0))?;
            hands.files.insert(handle, file);
            hands.maps.insert(handle, words);
            Ok(0)
        },
        move |tree, _| {
            tree.open(&path);
            tree.change_open(handle, |inode| inode.pinned = true);
        },
    )
}
