//! The kinds of writers, one file a family. A new kind is a function that plans its next operation (see [`Kind`]), and a line in [`ALL`].
//!
//! | file | what |
//! |---|---|
//! | `content` | write, pwrite, writev, pwritev, append; synchronous, direct |
//! | `transfer` | sendfile, splice, copy_file_range, reflink |
//! | `space` | truncate, fallocate in all modes |
//! | `names` | create, unlink, rename, link, mkdir, rmdir, links, FIFOs, sockets, devices |
//! | `layers` | lower files copied up and whited out, lower directories deleted and made again |
//! | `attributes` | mode, owner, times, attributes, ACLs |
//! | `orphans` | files that are open, and written to when their last name is gone |
//! | `maps` | stores through shared mappings |
//! | `asynchronous` | the kernel's AIO, io_uring |
//! | `odd` | pwritev2 with flags, O_TMPFILE, inode flags, flushes |
//! | `shared` | one log and one paged file that all threads write to |

mod asynchronous;
mod attributes;
mod content;
mod layers;
mod maps;
mod names;
mod odd;
mod orphans;
mod shared;
mod space;
mod transfer;

use super::dice::Dice;
use super::op::Kind;
use super::tree::{Inode, Tree};

/// Every kind.
pub const ALL: &[Kind] = &[
    kind("write", content::write),
    kind("append", content::append),
    kind("sync", content::sync),
    kind("direct", content::direct),
    kind("transfer", transfer::plan),
    kind("truncate", space::truncate),
    kind("fallocate", space::fallocate),
    kind("create", names::create),
    kind("remove", names::remove),
    kind("rename", names::rename),
    kind("link", names::link),
    kind("directory", names::directory),
    kind("special", names::special),
    kind("layers", layers::plan),
    kind("mode", attributes::mode),
    kind("times", attributes::times),
    kind("xattr", attributes::xattr),
    kind("acl", attributes::acl),
    kind("orphan", orphans::plan),
    kind("log", shared::log),
    kind("pages", shared::pages),
    kind("aio", asynchronous::aio),
    kind("aio-direct", asynchronous::aio_direct),
    kind("pwritev2", odd::flagged),
    kind("tmpfile", odd::nameless),
    kind("flags", odd::flags),
    kind("flush", odd::nothing),
    Kind { name: "uring", plan: asynchronous::uring, freezer_only: true },
    Kind { name: "sqpoll", plan: asynchronous::polled, freezer_only: true },
    Kind { name: "mmap", plan: maps::plan, freezer_only: true },
];

const fn kind(name: &'static str, plan: fn(&Tree, &mut Dice) -> Option<super::op::Op>) -> Kind {
    Kind { name, plan, freezer_only: false }
}

/// Whether a path of a model is one that its thread may do with as it likes.
fn free(path: &str) -> bool {
    path.starts_with("own/") || path.starts_with("shared/")
}

/// The directory of a name.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Some name whose inode is as wanted.
fn some(tree: &Tree, dice: &mut Dice, wanted: impl Fn(&Inode) -> bool) -> Option<String> {
    let mut names = tree.list();
    names.retain(|(path, id)| free(path) && tree.get(*id).is_some_and(&wanted));
    dice.pick(&names).map(|(path, _)| path.clone())
}

/// Some regular file whose content may be changed at will.
fn some_file(tree: &Tree, dice: &mut Dice) -> Option<String> {
    some(tree, dice, |inode| inode.content().is_some() && !inode.pinned)
}

/// Some directory that may have new names.
fn some_directory(tree: &Tree, dice: &mut Dice) -> String {
    let found = if dice.one_in(4) { None } else { some(tree, dice, Inode::is_dir) };
    found.unwrap_or_else(|| if dice.one_in(4) { "shared".into() } else { "own".into() })
}

/// A name in some directory, taken or not: there are few, so that names are used again soon.
fn some_name(tree: &Tree, dice: &mut Dice) -> String {
    let directory = some_directory(tree, dice);
    format!("{directory}/n{}", dice.below(12))
}

/// A name that nothing has.
fn new_name(tree: &Tree, dice: &mut Dice) -> Option<String> {
    if tree.list().len() >= tree.room.names {
        return None;
    }
    let path = some_name(tree, dice);
    (tree.find(&path).is_none() && path.len() < 900).then_some(path)
}

/// How long a write may be that there still is room for.
fn length(tree: &Tree, dice: &mut Dice) -> u64 {
    dice.length(tree.room.bytes.saturating_sub(tree.bytes()).max(512))
}
