//! Which system calls can change a tree.
//!
//! Closed world: a call that is not named here and not known to be harmless counts as modifying. The table is made for the machine's own numbers.

use snapshot_ebpf::{
    CALL_DATA, CALL_FD, CALL_MMAP, CALL_OPEN, CALL_OPENAT2, CALL_OTHER, CALL_PATH, CALL_PROBE, MAX_CALLS,
};

/// Calls that change the content of what a descriptor refers to: number and which argument the descriptor is.
const CONTENT: &[(libc::c_long, u8)] = &[
    (libc::SYS_write, 0),
    (libc::SYS_writev, 0),
    (libc::SYS_pwrite64, 0),
    (libc::SYS_pwritev, 0),
    (libc::SYS_pwritev2, 0),
    (libc::SYS_ftruncate, 0),
    (libc::SYS_fallocate, 0),
    (libc::SYS_ioctl, 0),
    (libc::SYS_sendfile, 0),
    (libc::SYS_splice, 2),
    (libc::SYS_copy_file_range, 2),
];

/// Calls that change the inode a descriptor refers to, whatever its kind.
const INODE: &[(libc::c_long, u8)] =
    &[(libc::SYS_fchmod, 0), (libc::SYS_fchown, 0), (libc::SYS_fsetxattr, 0), (libc::SYS_fremovexattr, 0)];

/// Calls that name a path, or submit work whose target cannot be told.
const BY_PATH: &[libc::c_long] = &[
    libc::SYS_truncate,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    FILE_SETATTR,
    libc::SYS_open_by_handle_at,
    libc::SYS_io_submit,
    libc::SYS_io_uring_enter,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_quotactl,
    // Unix sockets appear in the tree by bind.
    libc::SYS_bind,
];

#[cfg(target_arch = "x86_64")]
const BY_PATH_OLD: &[libc::c_long] = &[
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const BY_PATH_OLD: &[libc::c_long] = &[];

// The same numbers on every architecture (asm-generic/unistd.h, since 5.1 all are); newer than the libc crate on some targets.
const FCHMODAT2: libc::c_long = 452;
const SETXATTRAT: libc::c_long = 463;
const REMOVEXATTRAT: libc::c_long = 466;
const FILE_SETATTR: libc::c_long = 469;
/// The last call this table was made for; the ones above are unknown to it and count.
const LAST_KNOWN: libc::c_long = 470;

/// The class of each call by its number.
#[must_use]
pub fn classes() -> [u8; MAX_CALLS as usize] {
    let mut classes = [CALL_OTHER; MAX_CALLS as usize];
    let mut set = |number: libc::c_long, class| {
        if let Some(slot) = usize::try_from(number).ok().and_then(|n| classes.get_mut(n)) {
            *slot = class;
        }
    };
    for number in LAST_KNOWN + 1..libc::c_long::from(MAX_CALLS) {
        set(number, CALL_PATH);
    }
    BY_PATH.iter().chain(BY_PATH_OLD).for_each(|&number| set(number, CALL_PATH));
    CONTENT.iter().for_each(|&(number, argument)| set(number, CALL_DATA | argument));
    INODE.iter().for_each(|&(number, argument)| set(number, CALL_FD | argument));
    set(libc::SYS_mmap, CALL_MMAP);
    set(libc::SYS_openat, CALL_OPEN | 2);
    set(libc::SYS_openat2, CALL_OPENAT2);
    #[cfg(target_arch = "x86_64")]
    set(libc::SYS_open, CALL_OPEN | 1);
    set(libc::SYS_fcntl, CALL_PROBE);
    classes
}

/// The open flags that can change a tree, copying a lower file up among them.
#[must_use]
pub fn open_write() -> u32 {
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_who_writes_and_who_does_not() {
        let classes = classes();
        let class = |n: libc::c_long| classes[usize::try_from(n).unwrap()];
        assert_eq!(class(libc::SYS_pwrite64), CALL_DATA);
        assert_eq!(class(libc::SYS_fchmod), CALL_FD);
        assert_eq!(class(libc::SYS_copy_file_range), CALL_DATA | 2);
        assert_eq!(class(libc::SYS_openat), CALL_OPEN | 2);
        assert_eq!(class(libc::SYS_renameat2), CALL_PATH);
        for harmless in [
            libc::SYS_read,
            libc::SYS_futex,
            libc::SYS_fsync,
            libc::SYS_sendto,
            libc::SYS_clock_nanosleep,
            libc::SYS_exit_group,
        ] {
            assert_eq!(class(harmless), CALL_OTHER);
        }
        // The future: whatever comes after the calls we know may change a tree.
        assert_eq!(class(LAST_KNOWN + 1), CALL_PATH);
    }
}
