//! Owner, mode, attributes, times: in this order, because a change of owner takes set-id bits and capabilities away.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::kernel::beneath::Dir;
use crate::model::tree::{Kind, Meta, Node};

use super::Options;

/// Of an open file or directory. Gives how many attributes were left out.
pub(super) fn apply(fd: impl AsFd, node: &Node, options: Options, timed: bool) -> io::Result<u64> {
    let meta = &node.meta;
    if !options.unprivileged {
        rustix::fs::fchown(&fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    }
    rustix::fs::fchmod(&fd, mode(meta, options))?;
    let left = attributes(meta, options, |name, value| {
        rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()).map_err(io::Error::from)
    })?;
    if timed {
        rustix::fs::futimens(&fd, &times(meta))?;
    }
    Ok(left)
}

/// Of something that is not to be opened: a link, a device, a FIFO, a socket, made a moment ago.
pub(super) fn apply_at(dir: &Dir, name: &CStr, node: &Node, options: Options) -> io::Result<u64> {
    let meta = &node.meta;
    let stay = AtFlags::SYMLINK_NOFOLLOW;
    if !options.unprivileged {
        rustix::fs::chownat(dir, name, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)), stay)?;
    }
    // The mode of a link is nobody's.
    if !matches!(node.kind, Kind::Symlink(_)) {
        rustix::fs::chmodat(dir, name, mode(meta, options), AtFlags::empty())?;
    }
    let left = attributes(meta, options, |key, value| dir.set_xattr(name, key, value))?;
    rustix::fs::utimensat(dir, name, &times(meta), stay)?;
    Ok(left)
}

fn mode(meta: &Meta, options: Options) -> Mode {
    // With another owner, a set-id bit would mean something else.
    let kept = if options.unprivileged { 0o1777 } else { 0o7777 };
    Mode::from_raw_mode(meta.mode & kept)
}

fn attributes(
    meta: &Meta,
    options: Options,
    mut set: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut left = 0;
    for (name, value) in &meta.xattrs {
        if options.unprivileged && !name.starts_with(b"user.") {
            left += 1;
            continue;
        }
        set(name, value)?;
    }
    Ok(left)
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime.sec, tv_nsec: i64::from(meta.mtime.nsec) };
    Timestamps { last_access: time, last_modification: time }
}
