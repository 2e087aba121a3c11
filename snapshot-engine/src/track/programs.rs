//! Which programs a file system needs, and whether a kernel may lack them.

use super::Error;

/// A program, named as its tracepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// The tracepoint, and the program's name in the object.
    pub name: &'static str,
    /// Without it events would be lost.
    pub required: bool,
}

const fn need(name: &'static str) -> Program {
    Program { name, required: true }
}
const fn may(name: &'static str) -> Program {
    Program { name, required: false }
}

/// The calls' programs: what the fence and the drain stand on. Attached last, so that no call is counted whose events could be missed;
/// `sys_exit` before `sys_enter`, so that no call is counted in that could not be counted out.
pub const CALLS: &[Program] =
    &[need("sched_process_exit"), may("io_uring_submit_req"), need("sys_exit"), need("sys_enter")];

const ANY: &[Program] = &[
    need("writeback_dirty_folio"),
    need("writeback_mark_inode_dirty"),
    may("iomap_iter"),
    may("iomap_dio_rw_begin"),
];

const EXT4: &[Program] = &[
    need("ext4_mark_inode_dirty"),
    // Since 6.2; before it a changed attribute shows up nowhere but in the sweep (T6).
    may("ext4_journal_start_inode"),
    need("ext4_unlink_enter"),
    need("ext4_truncate_enter"),
    need("ext4_truncate_exit"),
    need("ext4_collapse_range"),
    need("ext4_insert_range"),
    need("ext4_da_write_begin"),
    need("ext4_da_write_end"),
    need("ext4_write_begin"),
    need("ext4_write_end"),
    may("ext4_journalled_write_end"),
    need("ext4_fallocate_enter"),
    need("ext4_punch_hole"),
    need("ext4_zero_range"),
];

const XFS: &[Program] = &[
    need("xfs_ilock"),
    need("xfs_ilock_nowait"),
    need("xfs_create"),
    need("xfs_remove"),
    need("xfs_link"),
    need("xfs_symlink"),
    need("xfs_rename"),
    need("xfs_setattr"),
    need("xfs_file_buffered_write"),
    need("xfs_file_direct_write"),
    may("xfs_free_file_space"),
    may("xfs_zero_file_space"),
    may("xfs_collapse_file_space"),
    may("xfs_insert_file_space"),
    may("xfs_reflink_remap_range"),
    may("xfs_reflink_remap_extent_dest"),
    may("xfs_swap_extent_before"),
];

/// The file systems with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, and ext2 and ext3 through its driver.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// By the name mountinfo gives.
    ///
    /// # Errors
    /// [`Error::UnsupportedFileSystem`] for all others.
    pub fn named(name: &str) -> Result<FileSystem, Error> {
        match name {
            "ext2" | "ext3" | "ext4" => Ok(FileSystem::Ext4),
            "xfs" => Ok(FileSystem::Xfs),
            _ => Err(Error::UnsupportedFileSystem { fs: name.to_owned() }),
        }
    }

    /// The programs that see its changes.
    pub fn programs(self) -> impl Iterator<Item = Program> {
        let own = match self {
            FileSystem::Ext4 => EXT4,
            FileSystem::Xfs => XFS,
        };
        own.iter().chain(ANY).copied()
    }
}
