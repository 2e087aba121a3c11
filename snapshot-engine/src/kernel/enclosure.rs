//! A directory as the root of a mount of its own: read-only, without devices, without links that are followed, without access times, and without whatever
//! is mounted below it. It is in no mount namespace, so nothing can be mounted into it, and it ends with the descriptors opened through it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::process::new_namespaces;

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

// linux/mount.h
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const NOSYMFOLLOW: u64 = 0x0020_0000;

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// The directory at a path of ours.
///
/// # Errors
/// As `open_tree(2)` and `mount_setattr(2)`: `EINVAL` where the mount is another namespace's, or unbindable.
pub(super) fn of_path(path: &Path) -> io::Result<OwnedFd> {
    closed(open_tree(CWD, path, CLONE)?)
}

/// A directory that lies on a mount of another mount namespace, by a descriptor of it (`O_PATH` will do). The kernel clones mounts only for who is in their
/// namespace: a thread of ours goes there, makes this one call, and ends.
///
/// # Errors
/// As `setns(2)`, and as [`of_path`].
pub fn in_namespace(namespace: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let enter = || {
        // Who shares his root and working directory with other threads may not enter.
        new_namespaces(UnshareFlags::FS)?;
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
        closed(open_tree(place, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("enclose".to_owned()).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn closed(tree: OwnedFd) -> io::Result<OwnedFd> {
    const HERE: &CStr = c"";
    let attr = MountAttr {
        set: RDONLY | NOSUID | NODEV | NOEXEC | NOATIME | NOSYMFOLLOW,
        clear: ATIME,
        // MS_PRIVATE
        propagation: 1 << 18,
        userns: 0,
    };
    // SAFETY: the kernel reads `size_of::<MountAttr>()` bytes of `attr`, which is a `struct mount_attr` as of Linux 5.12, and an empty string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            HERE.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rustix::fs::openat(&tree, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
