//! Bytes from file to file without passing through the process.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;

use rustix::fs::OFlags;
use rustix::pipe::SpliceFlags;

use super::{length, some_file};
use crate::torture::dice::{Dice, fill};
use crate::torture::op::Op;
use crate::torture::tree::{Tree, put};

/// sendfile, copy_file_range, splice, FICLONE.
pub(super) fn plan(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let to = some_file(tree, dice)?;
    let at = dice.below(tree.at(&to)?.size() + 5000);
    let len = length(tree, dice);
    if dice.one_in(4) {
        return Some(splice(to, at, len.min(60_000), dice.roll()));
    }
    let from = some_file(tree, dice)?;
    if tree.find(&from) == tree.find(&to) {
        return None;
    }
    let begin = dice.below(tree.at(&from)?.size() + 1);
    let (a, b, same, how) = (from.clone(), to.clone(), to.clone(), dice.below(3));
    let name = ["sendfile", "copy_file_range", "reflink"][usize::try_from(how).unwrap_or(0)];
    let op = Op::new(
        format!("{name} {from} at {begin} to {to} at {at} len {len}"),
        move |hands| {
            let source = hands.file(&a, OFlags::RDONLY)?;
            let mut target = hands.file(&b, OFlags::WRONLY)?;
            let (mut begin, mut at, len) = (begin, at, usize::try_from(len).unwrap_or(0));
            Ok(match how {
                0 => {
                    target.seek(SeekFrom::Start(at))?;
                    rustix::fs::sendfile(target.as_fd(), source.as_fd(), Some(&mut begin), len)? as u64
                }
                1 => {
                    let (from, to) = (Some(&mut begin), Some(&mut at));
                    rustix::fs::copy_file_range(source.as_fd(), from, target.as_fd(), to, len)? as u64
                }
                _ => rustix::fs::ioctl_ficlone(target.as_fd(), source.as_fd()).map(|()| 0)?,
            })
        },
        move |tree, n| {
            let Some(source) = tree.at(&from).and_then(|inode| inode.content()).cloned() else { return };
            if how == 2 {
                // What lies behind the clone stays (ioctl_ficlonerange(2)).
                tree.rewrite(&to, |content| put(content, 0, &source));
            } else if n > 0 {
                let range = usize::try_from(begin).unwrap_or(0)..usize::try_from(begin + n).unwrap_or(0);
                // More than the model has: the next comparison will tell.
                let part = source.get(range).unwrap_or(&source);
                tree.rewrite(&to, |content| put(content, at, part));
            }
        },
    );
    // The times are touched before the ranges are looked at (generic_remap_file_range_prep, fs/remap_range.c).
    Some(op.even_failed(move |tree, _| tree.rewrite(&same, |_| {})))
}

fn splice(to: String, at: u64, len: u64, seed: u64) -> Op {
    let real = to.clone();
    Op::new(
        format!("splice to {to} at {at} len {len}"),
        move |hands| {
            let (read, write) = rustix::pipe::pipe()?;
            // A pipe holds 64 KiB: nobody waits.
            std::fs::File::from(write).write_all(&fill(seed, len))?;
            let target = hands.file(&real, OFlags::WRONLY)?;
            let (mut at, len) = (at, usize::try_from(len).unwrap_or(0));
            let flags = SpliceFlags::empty();
            Ok(rustix::pipe::splice(read, None, target.as_fd(), Some(&mut at), len, flags)? as u64)
        },
        move |tree, n| tree.rewrite(&to, |content| put(content, at, &fill(seed, n))),
    )
}
