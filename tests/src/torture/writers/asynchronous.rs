//! Requests that the kernel works on after the call that made them: its own AIO (`io_submit`) and io_uring. Submitted and waited for, one at a time in each
//! thread: an operation begins with the submission and ends when the completion was seen, and lands at any instant between the two.
//!
//! POSIX AIO as the C library has it is threads that call pwrite: nothing new.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::OFlags;

use super::content::{BLOCK, aligned, place};
use super::{length, names, new_name, some, some_file, some_name};
use crate::torture::dice::{Dice, fill};
use crate::torture::op::{Hands, Op};
use crate::torture::tree::{Tree, put};

/// io_submit of buffered writes.
pub(super) fn aio(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let (at, len, seed) = (place(tree, dice, &path), length(tree, dice), dice.roll());
    let real = path.clone();
    Some(Op::new(
        format!("aio write {path} at {at} len {len}"),
        move |hands| {
            let file = hands.file(&real, OFlags::WRONLY)?;
            hands.aio()?.write(file.as_fd(), &fill(seed, len), at)
        },
        move |tree, n| tree.rewrite(&path, |content| put(content, at, &fill(seed, n))),
    ))
}

/// io_submit of direct writes: inside a file they land when the call is long over.
pub(super) fn aio_direct(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let blocks = tree.at(&path)?.size() / BLOCK;
    let (at, len) = if blocks > 0 && !dice.one_in(4) {
        let first = dice.below(blocks);
        (first * BLOCK, (1 + dice.below(blocks - first)) * BLOCK)
    } else {
        (place(tree, dice, &path) / BLOCK * BLOCK, length(tree, dice).div_ceil(BLOCK) * BLOCK)
    };
    let seed = dice.roll();
    let real = path.clone();
    Some(Op::new(
        format!("aio direct write {path} at {at} len {len}"),
        move |hands| {
            let file = hands.file(&real, OFlags::WRONLY | OFlags::DIRECT)?;
            let (memory, range) = aligned(&fill(seed, len));
            hands.aio()?.write(file.as_fd(), &memory[range], at)
        },
        move |tree, n| tree.rewrite(&path, |content| put(content, at, &fill(seed, n))),
    ))
}

/// io_uring, by calls.
pub(super) fn uring(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    request(tree, dice, false)
}

/// io_uring, by a thread of the kernel (SQPOLL).
pub(super) fn polled(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    request(tree, dice, true)
}

fn path_of(hands: &Hands, path: &str) -> std::io::Result<CString> {
    Ok(CString::new(hands.real(path).as_os_str().as_bytes())?)
}

fn request(tree: &Tree, dice: &mut Dice, polled: bool) -> Option<Op> {
    let op = match dice.below(10) {
        0 => {
            let (path, mode) = (new_name(tree, dice)?, 0o755);
            let real = path.clone();
            names::make_directory(path, mode).by(move |hands| {
                let path = path_of(hands, &real)?;
                hands.ring(polled)?.directory(&path, mode)
            })
        }
        1 => {
            let path = some(tree, dice, |_| true)?;
            let (real, directory) = (path.clone(), tree.at(&path)?.is_dir());
            names::remove_name(tree, path).by(move |hands| {
                let path = path_of(hands, &real)?;
                hands.ring(polled)?.remove(&path, directory)
            })
        }
        2 => {
            let (from, to) = (some(tree, dice, |inode| !inode.is_dir())?, new_name(tree, dice)?);
            let (a, b) = (from.clone(), to.clone());
            names::link_name(from, to).by(move |hands| {
                let (a, b) = (path_of(hands, &a)?, path_of(hands, &b)?);
                hands.ring(polled)?.link(&a, &b)
            })
        }
        3 => {
            let (from, to) = (some(tree, dice, |_| true)?, some_name(tree, dice));
            let (a, b) = (from.clone(), to.clone());
            names::rename_name(from, to, rustix::fs::RenameFlags::empty())?.by(move |hands| {
                let (a, b) = (path_of(hands, &a)?, path_of(hands, &b)?);
                hands.ring(polled)?.rename(&a, &b)
            })
        }
        4 => {
            let path = some_file(tree, dice)?;
            let (at, len) = (place(tree, dice, &path), length(tree, dice).min(1 << 20));
            let real = path.clone();
            super::space::allocate_range(path, rustix::fs::FallocateFlags::empty(), at, len).by(
                move |hands| {
                    let file = hands.file(&real, OFlags::WRONLY)?;
                    hands.ring(polled)?.allocate(file.as_fd(), at, len)
                },
            )
        }
        how => {
            let path = some_file(tree, dice)?;
            // Direct ones mostly leave the call before they land; those of a worker always.
            let (direct, elsewhere) = (how == 5, how == 6);
            let unit = if direct { BLOCK } else { 1 };
            let at = place(tree, dice, &path) / unit * unit;
            let (len, seed) = (length(tree, dice).div_ceil(unit) * unit, dice.roll());
            let real = path.clone();
            Op::new(
                format!("write {path} at {at} len {len}, direct: {direct}, by a worker: {elsewhere}"),
                move |hands| {
                    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
                    let file = hands.file(&real, OFlags::WRONLY | flags)?;
                    let (memory, range) = aligned(&fill(seed, len));
                    hands.ring(polled)?.write(file.as_fd(), &memory[range], at, elsewhere)
                },
                move |tree, n| tree.rewrite(&path, |content| put(content, at, &fill(seed, n))),
            )
        }
    };
    Some(Op { what: format!("{} {}", if polled { "sqpoll:" } else { "uring:" }, op.what), ..op })
}
