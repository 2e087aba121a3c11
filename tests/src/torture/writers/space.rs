//! Sizes and allocation.

use std::os::fd::AsFd as _;

use rustix::fs::{FallocateFlags as Flags, OFlags};

use super::{length, some_file};
use crate::torture::dice::Dice;
use crate::torture::op::Op;
use crate::torture::tree::{Tree, put};

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// ftruncate, up and down.
pub(super) fn truncate(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let had = tree.at(&path)?.size();
    let size = if dice.one_in(3) { had + length(tree, dice) } else { dice.below(had + 1) };
    Some(resize(path, size))
}

/// Sets a size.
pub(super) fn resize(path: String, size: u64) -> Op {
    let real = path.clone();
    Op::new(
        format!("truncate {path} to {size}"),
        move |hands| hands.file(&real, OFlags::WRONLY)?.set_len(size).map(|()| 0),
        move |tree, _| tree.rewrite(&path, |content| content.resize(index(size), 0)),
    )
}

/// Every mode of fallocate.
pub(super) fn fallocate(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    const BLOCK: u64 = 4096;
    let path = some_file(tree, dice)?;
    let size = tree.at(&path)?.size();
    let (mut at, mut len) = (dice.below(size + 1), length(tree, dice).min(1 << 20));
    let flags = match dice.below(7) {
        0 => Flags::empty(),
        1 => Flags::KEEP_SIZE,
        2 => Flags::PUNCH_HOLE | Flags::KEEP_SIZE,
        3 => Flags::ZERO_RANGE,
        4 => Flags::ZERO_RANGE | Flags::KEEP_SIZE,
        5 => Flags::COLLAPSE_RANGE,
        _ => Flags::INSERT_RANGE,
    };
    if flags.intersects(Flags::COLLAPSE_RANGE | Flags::INSERT_RANGE) {
        (at, len) = (at / BLOCK * BLOCK, len.div_ceil(BLOCK) * BLOCK);
    }
    Some(allocate_range(path, flags, at, len))
}

/// One call of it.
pub(super) fn allocate_range(path: String, flags: Flags, at: u64, len: u64) -> Op {
    let (real, same) = (path.clone(), path.clone());
    let op = Op::new(
        format!("fallocate {path} {flags:?} at {at} len {len}"),
        move |hands| {
            let file = hands.file(&real, OFlags::WRONLY)?;
            Ok(rustix::fs::fallocate(file.as_fd(), flags, at, len).map(|()| 0)?)
        },
        move |tree, _| tree.rewrite(&path, |content| allocate(content, flags, at, len)),
    );
    // file_modified() comes before the range is looked at (ext4_fallocate, fs/ext4/extents.c).
    op.even_failed(move |tree, _| tree.rewrite(&same, |_| {}))
}

fn allocate(content: &mut Vec<u8>, flags: Flags, at: u64, len: u64) {
    let (from, to) = (index(at), index(at + len));
    let end = to.min(content.len());
    if flags.contains(Flags::COLLAPSE_RANGE) {
        content.drain(from.min(end)..end);
    } else if flags.contains(Flags::INSERT_RANGE) {
        drop(content.splice(from..from, vec![0; to - from]));
    } else {
        if flags.intersects(Flags::PUNCH_HOLE | Flags::ZERO_RANGE) && from < end {
            let zeros = vec![0; end - from];
            put(content, at, &zeros);
        }
        if !flags.contains(Flags::KEEP_SIZE) && content.len() < to {
            content.resize(to, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_do_what_the_manual_says() {
        let after = |flags, at, len| {
            let mut content = b"abcdef".to_vec();
            allocate(&mut content, flags, at, len);
            content
        };
        assert_eq!(after(Flags::empty(), 4, 4), b"abcdef\0\0");
        assert_eq!(after(Flags::KEEP_SIZE, 4, 4), b"abcdef");
        assert_eq!(after(Flags::PUNCH_HOLE | Flags::KEEP_SIZE, 4, 4), b"abcd\0\0");
        assert_eq!(after(Flags::ZERO_RANGE, 4, 4), b"abcd\0\0\0\0");
        assert_eq!(after(Flags::COLLAPSE_RANGE, 1, 2), b"adef");
        assert_eq!(after(Flags::INSERT_RANGE, 1, 2), b"a\0\0bcdef");
    }
}
