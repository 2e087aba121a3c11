//! Giving the copies the metadata of the originals, in the order the kernel demands.
//!
//! 1. owner: `chown` clears the set-user-ID bits and `security.capability` (`ATTR_KILL_PRIV`, fs/attr.c), so it comes first;
//! 2. mode: after the owner, and before an access ACL, whose mask `chmod` rewrites (`posix_acl_chmod`, fs/posix_acl.c);
//! 3. attributes, in every namespace;
//! 4. times: last, as everything before may touch them.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::Error;
use crate::kernel::beneath::{Stat, Xattrs};

/// Gives `name` in `dir`, which is the engine's own, the metadata `stat` and `xattrs`. `path` is for messages.
pub(super) fn put(
    dir: BorrowedFd<'_>,
    name: &str,
    stat: &Stat,
    xattrs: &Xattrs,
    path: &dyn Fn() -> std::path::PathBuf,
) -> Result<(), Error> {
    let fail = |op, e: rustix::io::Errno| Error::shadow(op, path(), e);
    let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| fail("give an owner to", e))?;
    // A link has no permissions of its own, and fchmodat(2) would follow it.
    if !stat.is_symlink() {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.mode & 0o7777), AtFlags::empty())
            .map_err(|e| fail("set the mode of", e))?;
    }
    if !xattrs.is_empty() {
        let place = in_proc(dir, name);
        for (key, value) in xattrs {
            set_xattr(&place, key, value).map_err(|source| Error::Xattr {
                name: String::from_utf8_lossy(key).into_owned(),
                path: path(),
                source,
            })?;
        }
    }
    let time = |(seconds, nanos): (i64, u32)| Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: time(stat.atime), last_modification: time(stat.mtime) };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| fail("set the times of", e))
}

/// `setxattrat(2)` came with Linux 6.13 only; the directory's entry in `/proc` is the way before.
fn in_proc(dir: BorrowedFd<'_>, name: &str) -> std::path::PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

fn set_xattr(place: &Path, key: &[u8], value: &[u8]) -> io::Result<()> {
    // Attribute names have no inner NUL: they came out of a list of NUL-terminated ones.
    let key: CString = CString::new(key)?;
    let key: &CStr = &key;
    Ok(rustix::fs::lsetxattr(place, key, value, XattrFlags::empty())?)
}
