//! Files whose holes the kernel does not know.

use std::os::fd::{AsFd, BorrowedFd};

/// `EXT4_SUPER_MAGIC`, which ext2 and ext3 have too (linux/magic.h).
const EXT4: u64 = 0xEF53;
/// `FS_EXTENT_FL` (linux/fs.h): the file is mapped by extents.
const EXTENTS: u32 = 0x0008_0000;

/// Whether `SEEK_DATA` may pass over data of this open file.
///
/// It does in files of ext4 that are mapped by indirect blocks: those of file systems made as ext2 or ext3, and those whose
/// flags somebody has set to 0 (`FS_IOC_SETFLAGS` without `FS_EXTENT_FL` converts them). A hole is then reported up to the next block that is
/// *on the disk* (`ext4_ind_map_blocks`, fs/ext4/indirect.c), and what was written behind it and not yet been allocated is taken for
/// a part of the hole. Measured on Linux 6.18. Once the range is written back ([`super::writeback::sync_range`]) the answers are right.
#[must_use]
pub fn hidden(fd: BorrowedFd<'_>) -> bool {
    let ext4 =
        rustix::fs::fstatfs(fd).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == EXT4));
    ext4 && rustix::fs::ioctl_getflags(fd.as_fd()).is_ok_and(|flags| flags.bits() & EXTENTS == 0)
}
