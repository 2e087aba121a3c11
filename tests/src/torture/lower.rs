//! What a lower layer has for each thread, so that there is something to copy up, to white out and to make opaque. The tree is made from the very model
//! that the thread begins with.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::dice::{Dice, fill};
use super::op::{HOME, Hands, PAGE, PAGES};
use super::post::{BIND, Post};
use super::tree::{Body, Inode, Room, Tree};

/// What a thread begins with.
#[must_use]
pub fn tree(seed: u64, thread: u64, room: Room, post: Post) -> Tree {
    let mut dice = Dice::new(&[seed, thread, u64::MAX]);
    let mut tree = Tree::new(thread, room);
    tree.post = post;
    let directory = || Inode::new(Body::Directory(Default::default()), 0o755);
    let file = |bytes: Vec<u8>| Inode::new(Body::File(Arc::new(bytes)), 0o644);
    for path in ["own", "shared", "own/low"] {
        tree.make(path, directory());
    }
    tree.make("log", file(Vec::new()));
    tree.make("pages", file(vec![0; PAGES * PAGE]));
    for (n, len) in [0, 100, 5000, 70_000].into_iter().enumerate() {
        let mut inode = file(fill(dice.roll(), len));
        inode.mode = *dice.pick(&[0o644, 0o600, 0o755]).unwrap_or(&0o644);
        (inode.uid, inode.gid) = (1000, 100);
        inode.xattrs.insert("user.low".into(), fill(dice.roll(), 40));
        inode.mtime = Some((1_600_000_000, 123_456_789));
        tree.make(&format!("own/low/f{n}"), inode);
    }
    for path in ["own/low/d0", "own/low/d1", "own/low/d2", "own/low/d0/sub"] {
        tree.make(path, directory());
        for name in ["a", "b"] {
            tree.make(&format!("{path}/{name}"), file(fill(dice.roll(), 300)));
        }
    }
    tree.make("own/low/link", Inode::new(Body::Link("f0".into()), 0o777));
    tree.make("own/low/fifo", Inode::new(Body::Fifo, 0o600));
    tree
}

/// Makes what all threads begin with in the lower layer `top`.
///
/// # Errors
/// As the calls.
pub fn build(trees: &[Tree], top: &Path) -> io::Result<()> {
    let home = top.join(HOME);
    fs::create_dir_all(home.join("shared"))?;
    fs::create_dir(top.join(BIND))?;
    fs::File::create(home.join("log"))?;
    fs::File::create(home.join("pages"))?.set_len((trees.len() * PAGES * PAGE) as u64)?;
    for tree in trees {
        let hands = Hands::new(tree.thread, trees.len() as u64);
        for (path, id) in tree.list() {
            let Some(inode) = tree.get(id) else { continue };
            if path == "own" || path.starts_with("own/") {
                let real = hands.real(&path);
                make(inode, &top.join(real.strip_prefix("/").unwrap_or(&real)))?;
            }
        }
    }
    Ok(())
}

fn make(inode: &Inode, at: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(inode.mode);
    match &inode.body {
        Body::File(content) => fs::write(at, &**content)?,
        Body::Directory(_) => fs::create_dir(at)?,
        Body::Link(to) => symlink(to, at)?,
        Body::Fifo => rustix::fs::mknodat(CWD, at, FileType::Fifo, mode, 0)?,
        Body::Socket | Body::Character(_) | Body::Block(_) => {
            return Err(io::Error::other("no lower layer needs one"));
        }
    }
    let (uid, gid) = (Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)));
    rustix::fs::chownat(CWD, at, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(inode.body, Body::Link(_)) {
        rustix::fs::chmodat(CWD, at, mode, AtFlags::empty())?;
    }
    for (name, value) in &inode.xattrs {
        rustix::fs::lsetxattr(at, name, value, XattrFlags::empty())?;
    }
    if let Some((seconds, nanos)) = inode.mtime {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
