//! Bytes by write(2) and its kin.

use std::io::{IoSlice, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;

use super::{length, some_file};
use crate::torture::dice::{Dice, fill};
use crate::torture::op::Op;
use crate::torture::tree::{Tree, put};

/// Where a write begins: inside the file, at its end, or a little behind it.
pub(super) fn place(tree: &Tree, dice: &mut Dice, path: &str) -> u64 {
    let size = tree.at(path).map_or(0, |inode| inode.size());
    if dice.one_in(8) { size + dice.below(20_000) } else { dice.below(size + 1) }
}

/// write, pwrite, writev and pwritev.
pub(super) fn write(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    at(tree, dice, OFlags::empty())
}

/// The same on a file opened with O_SYNC or O_DSYNC.
pub(super) fn sync(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let flags = if dice.one_in(2) { OFlags::SYNC } else { OFlags::DSYNC };
    at(tree, dice, flags)
}

fn at(tree: &Tree, dice: &mut Dice, flags: OFlags) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let (at, len, seed, how) = (place(tree, dice, &path), length(tree, dice), dice.roll(), dice.below(4));
    let real = path.clone();
    let name = ["pwrite", "write", "writev", "pwritev"][usize::try_from(how).unwrap_or(0)];
    Some(Op::new(
        format!("{name} {path} at {at} len {len} {flags:?}"),
        move |hands| {
            let bytes = fill(seed, len);
            let mut file = hands.file(&real, OFlags::WRONLY | flags)?;
            let (one, other) = bytes.split_at(bytes.len() / 3);
            let parts = [IoSlice::new(one), IoSlice::new(other)];
            let n = match how {
                0 => file.write_at(&bytes, at)?,
                1 | 2 => {
                    file.seek(SeekFrom::Start(at))?;
                    if how == 1 { file.write(&bytes)? } else { file.write_vectored(&parts)? }
                }
                _ => rustix::io::pwritev(file.as_fd(), &parts, at)?,
            };
            Ok(n as u64)
        },
        move |tree, n| tree.rewrite(&path, |content| put(content, at, &fill(seed, n))),
    ))
}

/// O_APPEND.
pub(super) fn append(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let (len, seed) = (length(tree, dice), dice.roll());
    let real = path.clone();
    Some(Op::new(
        format!("append {path} len {len}"),
        move |hands| {
            let mut file = hands.file(&real, OFlags::WRONLY | OFlags::APPEND)?;
            Ok(file.write(&fill(seed, len))? as u64)
        },
        move |tree, n| tree.rewrite(&path, |content| content.extend(fill(seed, n))),
    ))
}

/// Alignment that every device's direct I/O is content with.
pub(super) const BLOCK: u64 = 4096;

/// The bytes in memory that is aligned, and where in it.
pub(super) fn aligned(bytes: &[u8]) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut memory = vec![0; bytes.len() + 4096];
    let from = memory.as_ptr().align_offset(4096);
    let range = from..from + bytes.len();
    memory[range.clone()].copy_from_slice(bytes);
    (memory, range)
}

/// O_DIRECT.
pub(super) fn direct(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let at = place(tree, dice, &path) / BLOCK * BLOCK;
    let len = length(tree, dice).div_ceil(BLOCK) * BLOCK;
    let seed = dice.roll();
    let real = path.clone();
    Some(Op::new(
        format!("direct pwrite {path} at {at} len {len}"),
        move |hands| {
            let (memory, range) = aligned(&fill(seed, len));
            let file = hands.file(&real, OFlags::WRONLY | OFlags::DIRECT)?;
            Ok(file.write_at(&memory[range], at)? as u64)
        },
        move |tree, n| tree.rewrite(&path, |content| put(content, at, &fill(seed, n))),
    ))
}
