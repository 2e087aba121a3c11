//! Everything about an inode that is not its content.

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::some;
use crate::torture::dice::{Dice, fill};
use crate::torture::op::Op;
use crate::torture::tree::{Body, Inode, Tree};

/// The attribute that holds an inode's ACL.
const ACL: &str = "system.posix_acl_access";

/// chmod and chown.
pub(super) fn mode(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    if dice.one_in(2) {
        let path = some(tree, dice, |_| true)?;
        let (uid, gid) = (small(dice, 70_000), small(dice, 70_000));
        let real = path.clone();
        return Some(Op::new(
            format!("chown {path} {uid}:{gid}"),
            move |hands| {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::chownat(CWD, hands.real(&real), uid, gid, flags).map(|()| 0)?)
            },
            move |tree, _| tree.change(&path, |inode| (inode.uid, inode.gid) = (uid, gid)),
        ));
    }
    let path = some(tree, dice, |inode| !matches!(inode.body, Body::Link(_)))?;
    let mode = small(dice, 0o1000) | if dice.one_in(5) { 0o1000 } else { 0 };
    let real = path.clone();
    Some(Op::new(
        format!("chmod {path} {mode:o}"),
        move |hands| {
            let (path, mode) = (hands.real(&real), Mode::from_raw_mode(mode));
            Ok(rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()).map(|()| 0)?)
        },
        move |tree, _| {
            tree.change(&path, |inode| {
                inode.mode = mode;
                // posix_acl_chmod (fs/posix_acl.c): owner, mask and others follow the mode.
                if let Some(acl) = inode.xattrs.get_mut(ACL) {
                    follow(acl, mode);
                }
            });
        },
    ))
}

fn small(dice: &mut Dice, below: u64) -> u32 {
    u32::try_from(dice.below(below)).unwrap_or(0)
}

/// utimensat.
pub(super) fn times(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some(tree, dice, |_| true)?;
    let (seconds, nanos) = (i64::from(small(dice, 1 << 31)), small(dice, 1_000_000_000));
    let real = path.clone();
    Some(Op::new(
        format!("utimens {path} {seconds}.{nanos:09}"),
        move |hands| {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
            let times = Timestamps { last_access: time, last_modification: time };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::utimensat(CWD, hands.real(&real), &times, flags).map(|()| 0)?)
        },
        move |tree, _| tree.change(&path, |inode| inode.mtime = Some((seconds, nanos))),
    ))
}

/// setxattr, small and large, new and replaced; removexattr.
pub(super) fn xattr(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let path = some(tree, dice, |_| true)?;
    let plain = tree.at(&path)?.is_dir() || tree.at(&path)?.content().is_some();
    let space = if plain && !dice.one_in(4) { "user" } else { "trusted" };
    let name = format!("{space}.x{}", dice.below(4));
    let (real, key) = (path.clone(), name.clone());
    if dice.one_in(4) {
        return Some(Op::new(
            format!("removexattr {path} {name}"),
            move |hands| Ok(rustix::fs::lremovexattr(hands.real(&real), &key).map(|()| 0)?),
            move |tree, _| {
                tree.change(&path, |inode| {
                    inode.xattrs.remove(&name);
                });
            },
        ));
    }
    let most = if dice.one_in(10) { 60_000 } else { 300 };
    let (len, seed) = (dice.below(most), dice.roll());
    let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE]
        [if dice.one_in(2) { 0 } else { 1 + usize::from(dice.one_in(2)) }];
    Some(Op::new(
        format!("setxattr {path} {name} of {len} {flags:?}"),
        move |hands| Ok(rustix::fs::lsetxattr(hands.real(&real), &key, &fill(seed, len), flags).map(|()| 0)?),
        move |tree, _| {
            tree.change(&path, |inode| {
                inode.xattrs.insert(name, fill(seed, len));
            });
        },
    ))
}

/// An access ACL, given or taken away.
pub(super) fn acl(tree: &Tree, dice: &mut Dice) -> Option<Op> {
    let has = |inode: &Inode| inode.xattrs.contains_key(ACL);
    if dice.one_in(3) {
        let path = some(tree, dice, has)?;
        let real = path.clone();
        return Some(Op::new(
            format!("remove the ACL of {path}"),
            move |hands| Ok(rustix::fs::lremovexattr(hands.real(&real), ACL).map(|()| 0)?),
            move |tree, _| {
                tree.change(&path, |inode| {
                    inode.xattrs.remove(ACL);
                });
            },
        ));
    }
    let path = some(tree, dice, |inode| !matches!(inode.body, Body::Link(_)))?;
    let mode = small(dice, 0o1000);
    let value = entries(mode, &[(small(dice, 1000), small(dice, 8)), (5000, small(dice, 8))]);
    let (real, given) = (path.clone(), value.clone());
    Some(Op::new(
        format!("setfacl {path} {mode:o}"),
        move |hands| {
            Ok(rustix::fs::lsetxattr(hands.real(&real), ACL, &given, XattrFlags::empty()).map(|()| 0)?)
        },
        move |tree, _| {
            tree.change(&path, |inode| {
                // posix_acl_update_mode: the permissions follow the ACL, its mask taking the group's place.
                inode.mode = inode.mode & !0o777 | mode;
                inode.xattrs.insert(ACL.to_owned(), value);
            });
        },
    ))
}

// Tags of include/uapi/linux/posix_acl.h.
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An ACL as its attribute holds it (include/uapi/linux/posix_acl_xattr.h): version 2, then entries of tag, permissions and id.
fn entries(mode: u32, users: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let mut entry = |tag: u16, permissions: u32, id: u32| {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(u16::try_from(permissions & 7).unwrap_or(0).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    };
    entry(OWNER, mode >> 6, u32::MAX);
    users.iter().for_each(|(id, permissions)| entry(USER, *permissions, *id));
    entry(GROUP, 5, u32::MAX);
    entry(MASK, mode >> 3, u32::MAX);
    entry(OTHER, mode, u32::MAX);
    bytes
}

/// What chmod does to an ACL.
fn follow(acl: &mut [u8], mode: u32) {
    for entry in acl[4..].chunks_exact_mut(8) {
        let permissions = match u16::from_le_bytes([entry[0], entry[1]]) {
            OWNER => mode >> 6,
            MASK => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2] = u8::try_from(permissions & 7).unwrap_or(0);
    }
}
