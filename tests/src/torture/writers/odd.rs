//! Rarer calls: pwritev2 with flags, files without a name that get one, inode flags, and calls that change nothing (flushes, and a whiteout by mknod, which
//! an overlay refuses).

use std::io::IoSlice;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags};
use rustix::io::ReadWriteFlags;

use super::content::place;
use super::{length, new_name, some_file};
use crate::torture::dice::{Dice, fill};
use crate::torture::op::Op;
use crate::torture::tree::{Body, Inode, Tree, put};

/// pwritev2 with RWF_APPEND, RWF_DSYNC, RWF_SYNC or RWF_NOWAIT (which writes less, or nothing, where it would have to wait).
pub(super) fn flagged(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let (at, len, seed) = (place(tree, dice, &path), length(tree, dice), dice.roll());
    let all = [ReadWriteFlags::APPEND, ReadWriteFlags::DSYNC, ReadWriteFlags::SYNC, ReadWriteFlags::NOWAIT];
    let flags = *dice.pick(&all)?;
    let (real, same) = (path.clone(), path.clone());
    let op = Op::new(
        format!("pwritev2 {path} at {at} len {len} {flags:?}"),
        move |hands| {
            let bytes = fill(seed, len);
            let (one, other) = bytes.split_at(bytes.len() / 2);
            let file = hands.file(&real, OFlags::WRONLY)?;
            let parts = [IoSlice::new(one), IoSlice::new(other)];
            Ok(rustix::io::pwritev2(file.as_fd(), &parts, at, flags)? as u64)
        },
        move |tree, n| {
            tree.rewrite(&path, |content| {
                let append = flags == ReadWriteFlags::APPEND && appends();
                let at = if append { content.len() as u64 } else { at };
                put(content, at, &fill(seed, n));
            });
        },
    );
    // RWF_NOWAIT may stop when the time has been changed already (generic_write_checks comes first).
    Some(op.even_failed(move |tree, _| tree.rewrite(&same, |_| {})))
}

/// Whether an overlay passes RWF_APPEND on to the upper's file system. That of Linux 6.1 does not (`OVL_IOCB_MASK` in fs/overlayfs/file.c has no
/// IOCB_APPEND), and writes where it was told; that of 6.12 does. Asked by uname(2), which answers every writer and the checker alike: below a writer's
/// root there may be no /proc.
fn appends() -> bool {
    static APPENDS: OnceLock<bool> = OnceLock::new();
    *APPENDS.get_or_init(|| {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(12))
    })
}

/// O_TMPFILE, bytes, and then a name: the operation is the name, which comes with all of it.
pub(super) fn nameless(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = new_name(tree, dice)?;
    let (len, seed, mode) = (length(tree, dice).min(64 << 10), dice.roll(), 0o640);
    let (directory, real) = (super::parent(&path).to_owned(), path.clone());
    Some(Op::new(
        format!("tmpfile and linkat {path} len {len}"),
        move |hands| {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(CWD, hands.real(&directory), flags, Mode::from_raw_mode(mode))?;
            let bytes = fill(seed, len);
            let mut at = 0;
            while at < bytes.len() {
                at += rustix::io::write(&file, &bytes[at..])?;
            }
            Ok(rustix::fs::linkat(&file, "", CWD, hands.real(&real), AtFlags::EMPTY_PATH).map(|()| 0)?)
        },
        move |tree, _| {
            tree.make(&path, Inode::new(Body::File(std::sync::Arc::new(fill(seed, len))), mode));
        },
    ))
}

/// FS_IOC_SETFLAGS. An overlay keeps two of these flags in an attribute of the upper file. A frozen tree is not asked for them; but what they forbid is
/// refused from then on, and what they cost must not be lost.
pub(super) fn flags(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some_file(tree, dice)?;
    let all = [IFlags::NODUMP, IFlags::NOATIME, IFlags::APPEND, IFlags::IMMUTABLE];
    let flags = if dice.one_in(2) { IFlags::empty() } else { *dice.pick(&all)? };
    let real = path.clone();
    Some(Op::new(
        format!("set the flags of {path} to {flags:?}"),
        move |hands| {
            let file = hands.file(&real, OFlags::RDONLY)?;
            Ok(rustix::fs::ioctl_setflags(file.as_fd(), flags).map(|()| 0)?)
        },
        |_, _| {},
    ))
}

/// Calls that change nothing that anybody sees.
pub(super) fn nothing(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    if dice.one_in(4) {
        let path = new_name(tree, dice)?;
        return Some(Op::new(
            format!("mknod a whiteout {path}"),
            move |hands| {
                let mode = Mode::empty();
                let made = rustix::fs::mknodat(CWD, hands.real(&path), FileType::CharacterDevice, mode, 0);
                Ok(made.map(|()| 0)?)
            },
            |_, _| {},
        ));
    }
    let (path, how) = (some_file(tree, dice)?, dice.below(9));
    Some(Op::new(
        format!("flush {path} in way {how}"),
        move |hands| {
            let file = hands.file(&path, OFlags::WRONLY)?;
            match how {
                0 => rustix::fs::syncfs(file.as_fd())?,
                1..=4 => rustix::fs::fsync(file.as_fd())?,
                _ => rustix::fs::fdatasync(file.as_fd())?,
            }
            Ok(0)
        },
        |_, _| {},
    ))
}
