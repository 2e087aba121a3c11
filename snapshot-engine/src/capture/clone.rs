//! Cloning instead of copying, where the file system can (`FICLONE`: XFS with reflink, btrfs, bcachefs).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Smaller files are copied: a clone flushes the file and allocates its blocks at once (`generic_remap_file_range_prep`,
/// fs/remap_range.c), which takes longer than copying so few bytes.
pub(super) const CLONE_FROM: u64 = 64 << 10;

/// Whether a failed clone means "not here, never", so that copying is the answer.
pub(super) fn unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM)
}

/// Whether files of this directory's file system can be cloned: tried on two files of our own, as nothing is ever written to
/// the upperdir.
pub(super) fn supported(data: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (from, to) = (c"probe-from", c"probe-to");
    let create = |name| {
        rustix::fs::openat(
            data,
            name,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::RUSR,
        )
    };
    let result = create(from).and_then(|source| {
        rustix::io::pwrite(&source, &[1; 4096], 0)?;
        let target = create(to)?;
        match rustix::fs::ioctl_ficlone(target.as_fd(), source.as_fd()) {
            Ok(()) => Ok(true),
            Err(e) if unsupported(e) => Ok(false),
            Err(e) => Err(e),
        }
    });
    for name in [from, to] {
        match rustix::fs::unlinkat(data, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    result
}
