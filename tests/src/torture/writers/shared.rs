//! Two files that all threads write to, each thread its own part of them: the model of a thread has its part only (`view` takes the files apart).

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;

use crate::torture::dice::{Dice, fill};
use crate::torture::op::{Op, PAGE, PAGES, RECORD};
use crate::torture::tree::{Tree, put};

/// Records of a thread, one or more in one call.
fn records(thread: u64, seed: u64, count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..count {
        bytes.extend(u32::try_from(thread).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(fill(seed ^ n, RECORD as u64 - 4));
    }
    bytes
}

/// Appends to the log.
pub(super) fn log(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    // It only grows.
    if tree.at("log")?.size() > 64 << 10 {
        return None;
    }
    let bytes = records(tree.thread, dice.roll(), 1 + dice.below(3) * dice.below(20));
    let added = bytes.clone();
    Some(Op::new(
        format!("append {} records to the log", bytes.len() / RECORD),
        move |hands| Ok(hands.file("log", OFlags::WRONLY | OFlags::APPEND)?.write(&bytes)? as u64),
        move |tree, n| {
            tree.rewrite("log", |c| c.extend(&added[..usize::try_from(n).unwrap_or(0)]));
        },
    ))
}

/// Writes into one of the thread's pages.
pub(super) fn pages(_: &Tree, dice: &mut Dice) -> Option<Op> {
    let (page, at) = (dice.below(PAGES as u64), dice.below(PAGE as u64));
    let (len, seed) = (1 + dice.below(PAGE as u64 - at), dice.roll());
    Some(Op::new(
        format!("pwrite into page {page} at {at} len {len}"),
        move |hands| {
            let place = (page * hands.threads + hands.thread) * PAGE as u64 + at;
            Ok(hands.file("pages", OFlags::WRONLY)?.write_at(&fill(seed, len), place)? as u64)
        },
        move |tree, n| tree.rewrite("pages", |c| put(c, page * PAGE as u64 + at, &fill(seed, n))),
    ))
}
