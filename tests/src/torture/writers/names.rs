//! Names: made, taken away, changed.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::{new_name, some, some_directory, some_file, some_name};
use crate::torture::dice::Dice;
use crate::torture::op::Op;
use crate::torture::tree::{Body, Inode, Tree};

fn mode(dice: &mut Dice) -> u32 {
    *dice.pick(&[0o644, 0o600, 0o755, 0o400, 0o666, 0o000]).unwrap_or(&0o644)
}

/// open with O_CREAT, and with O_TRUNC.
pub(super) fn create(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    if dice.one_in(5) {
        let path = some_file(tree, dice)?;
        let real = path.clone();
        return Some(Op::new(
            format!("open {path} O_TRUNC"),
            move |hands| hands.file(&real, OFlags::WRONLY | OFlags::TRUNC).map(|_| 0),
            move |tree, _| tree.rewrite(&path, Vec::clear),
        ));
    }
    let (path, mode) = (new_name(tree, dice)?, mode(dice));
    Some(create_file(path, mode))
}

/// A new empty file.
pub(super) fn create_file(path: String, mode: u32) -> Op {
    let real = path.clone();
    Op::new(
        format!("create {path} {mode:o}"),
        move |hands| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, hands.real(&real), flags, Mode::from_raw_mode(mode))?;
            Ok(0)
        },
        move |tree, _| {
            tree.make(&path, Inode::new(Body::File(Arc::default()), mode));
        },
    )
}

/// unlink, or rmdir of what is a directory.
pub(super) fn remove(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    // Half empty is as well as it gets.
    if tree.list().len() < tree.room.names / 2 && !dice.one_in(3) {
        return None;
    }
    let path = some(tree, dice, |_| true)?;
    Some(remove_name(tree, path))
}

/// Takes a name away.
pub(super) fn remove_name(tree: &Tree, path: String) -> Op {
    let (flags, call) = match tree.at(&path) {
        Some(inode) if inode.is_dir() => (AtFlags::REMOVEDIR, "rmdir"),
        _ => (AtFlags::empty(), "unlink"),
    };
    let real = path.clone();
    Op::new(
        format!("{call} {path}"),
        move |hands| Ok(rustix::fs::unlinkat(CWD, hands.real(&real), flags).map(|()| 0)?),
        move |tree, _| tree.unlink(&path),
    )
}

/// rename, over what is there or not; RENAME_NOREPLACE; RENAME_EXCHANGE.
pub(super) fn rename(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let from = some(tree, dice, |_| true)?;
    let taken = dice.one_in(2);
    let to = if taken { some(tree, dice, |_| true)? } else { some_name(tree, dice) };
    let flags = match dice.below(4) {
        0 => RenameFlags::NOREPLACE,
        1 => RenameFlags::EXCHANGE,
        _ => RenameFlags::empty(),
    };
    rename_name(from, to, flags)
}

/// Changes a name.
pub(super) fn rename_name(from: String, to: String, flags: RenameFlags) -> Option<Op> {
    // The name would be longer than the kernel takes when it has wandered down often.
    if to.len() > 900 {
        return None;
    }
    let (a, b, parent) = (from.clone(), to.clone(), super::parent(&from).to_owned());
    let op = Op::new(
        format!("rename {from} to {to} {flags:?}"),
        move |hands| {
            Ok(rustix::fs::renameat_with(CWD, hands.real(&a), CWD, hands.real(&b), flags).map(|()| 0)?)
        },
        move |tree, _| {
            if flags == RenameFlags::EXCHANGE { tree.exchange(&from, &to) } else { tree.rename(&from, &to) }
        },
    );
    // Overlayfs asks for a whiteout where a lower name was; ext4 puts the name back after a failure (ext4_resetent, fs/ext4/namei.c).
    Some(op.even_failed(move |tree, _| tree.change(&parent, |inode| inode.mtime = None)))
}

/// link.
pub(super) fn link(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let from = some(tree, dice, |inode| !inode.is_dir())?;
    let to = new_name(tree, dice)?;
    Some(link_name(from, to))
}

/// Another name.
pub(super) fn link_name(from: String, to: String) -> Op {
    let (a, b) = (from.clone(), to.clone());
    Op::new(
        format!("link {from} to {to}"),
        move |hands| {
            Ok(rustix::fs::linkat(CWD, hands.real(&a), CWD, hands.real(&b), AtFlags::empty()).map(|()| 0)?)
        },
        move |tree, _| tree.link(&from, &to),
    )
}

/// mkdir, every other time in the deepest directory there is.
pub(super) fn directory(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let mut path = new_name(tree, dice)?;
    if dice.one_in(2) {
        let directories = tree
            .list()
            .into_iter()
            .filter(|(path, id)| super::free(path) && tree.get(*id).is_some_and(Inode::is_dir));
        let deepest = directories.max_by_key(|(path, _)| path.matches('/').count());
        let deepest = deepest.map_or_else(|| some_directory(tree, dice), |(path, _)| path);
        path = format!("{deepest}/n{}", dice.below(12));
        if path.matches('/').count() > 24 || tree.find(&path).is_some() {
            return None;
        }
    }
    let mode = *dice.pick(&[0o755, 0o700, 0o1777, 0o500])?;
    Some(make_directory(path, mode))
}

/// A new directory.
pub(super) fn make_directory(path: String, mode: u32) -> Op {
    let real = path.clone();
    Op::new(
        format!("mkdir {path} {mode:o}"),
        move |hands| Ok(rustix::fs::mkdirat(CWD, hands.real(&real), Mode::from_raw_mode(mode)).map(|()| 0)?),
        move |tree, _| {
            tree.make(&path, Inode::new(Body::Directory(BTreeMap::new()), mode));
        },
    )
}

/// Symbolic links, FIFOs, sockets, devices.
pub(super) fn special(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = new_name(tree, dice)?;
    let real = path.clone();
    match dice.below(5) {
        0 | 1 => {
            let to = "x/".repeat(usize::try_from(dice.length(1000)).unwrap_or(1)) + &dice.roll().to_string();
            let target = to.clone();
            Some(Op::new(
                format!("symlink {path} of {} bytes", to.len()),
                move |hands| Ok(rustix::fs::symlinkat(target, CWD, hands.real(&real)).map(|()| 0)?),
                move |tree, _| {
                    tree.make(&path, Inode::new(Body::Link(to), 0o777));
                },
            ))
        }
        2 => Some(Op::new(
            format!("bind a socket {path}"),
            move |hands| UnixListener::bind(hands.real(&real)).map(|_| 0),
            move |tree, _| {
                tree.make(&path, Inode::new(Body::Socket, 0o777));
            },
        )),
        _ => {
            let mode = mode(dice);
            // Not 0/0, which is a whiteout and refused.
            let number = rustix::fs::makedev(200 + u32::try_from(dice.below(20)).unwrap_or(0), 7);
            let (kind, number, body) = match dice.below(3) {
                0 => (FileType::Fifo, 0, Body::Fifo),
                1 => (FileType::CharacterDevice, number, Body::Character(number)),
                _ => (FileType::BlockDevice, number, Body::Block(number)),
            };
            Some(Op::new(
                format!("mknod {path} {body:?} {mode:o}"),
                move |hands| {
                    let mode = Mode::from_raw_mode(mode);
                    Ok(rustix::fs::mknodat(CWD, hands.real(&real), kind, mode, number).map(|()| 0)?)
                },
                move |tree, _| {
                    tree.make(&path, Inode::new(body, mode));
                },
            ))
        }
    }
}
