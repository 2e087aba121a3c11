//! Which programs a file system needs, and whether a kernel may lack them.

use super::Error;
use super::btf::Btf;
use super::functions::{self, Function};
use crate::model::snapshot::Backend;

/// A program and the tracepoint it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// The tracepoint, and the program's name in the object.
    pub name: &'static str,
    /// What kernels before called the tracepoint.
    pub formerly: Option<&'static str>,
    /// The arguments the program relies on, as [`Btf::tracepoint`] gives them. A kernel may pass more.
    pub arguments: &'static str,
    /// The program and its function that take its place in a kernel without the tracepoint, with the arguments relied on.
    pub instead: Option<(&'static str, &'static str)>,
    /// Without it events would be lost.
    pub required: bool,
}

/// Where a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A tracepoint, by its name in this kernel.
    Tracepoint(&'static str),
    /// The entry of a function, by a kprobe.
    Function(&'static str),
}

const fn need(name: &'static str, arguments: &'static str) -> Program {
    Program { name, formerly: None, arguments, instead: None, required: true }
}
const fn may(name: &'static str, arguments: &'static str) -> Program {
    Program { name, formerly: None, arguments, instead: None, required: false }
}

const INODE: &str = "inode*";
const RANGE: &str = "inode*, loff_t, loff_t";
const WRITE: &str = "inode*, loff_t, unsigned int";
const XFS_INODE: &str = "xfs_inode*";
const XFS_LOCK: &str = "xfs_inode*, unsigned int";
const IO: &str = "kiocb*, iov_iter*";

/// The calls' programs: what the fence and the drain stand on. Attached last, so that no call is counted whose events could be missed;
/// `sys_exit` before `sys_enter`, so that no call is counted in that could not be counted out.
pub const CALLS: &[Program] = &[
    need("sched_process_exit", ""),
    need("sched_process_exec", "task_struct*, pid_t"),
    // Without it nobody would know of requests by a ring that was made after we had looked for rings (6.1 has the former name).
    Program { formerly: Some("io_uring_submit_sqe"), ..may("io_uring_submit_req", "") },
    need("sys_exit", ""),
    need("sys_enter", "pt_regs*, long int"),
];

const ANY: &[Program] = &[
    need("writeback_dirty_folio", "folio*, address_space*"),
    need("writeback_mark_inode_dirty", "inode*, int"),
    need("iomap_iter", "iomap_iter*"),
    // Not in 6.1, where `iomap_iter` tells direct I/O as well.
    may("iomap_dio_rw_begin", IO),
];

const EXT4: &[Program] = &[
    need("ext4_mark_inode_dirty", INODE),
    // The only event of changed attributes and flags. 6.1 does not have it, and no other tracepoint names the inode then.
    Program {
        instead: Some(("ext4_mark_iloc_dirty", "handle_t*, inode*")),
        ..need("ext4_journal_start_inode", INODE)
    },
    need("ext4_unlink_enter", INODE),
    need("ext4_truncate_enter", INODE),
    need("ext4_truncate_exit", INODE),
    need("ext4_collapse_range", INODE),
    need("ext4_insert_range", INODE),
    need("ext4_da_write_begin", WRITE),
    need("ext4_da_write_end", WRITE),
    need("ext4_write_begin", WRITE),
    need("ext4_write_end", WRITE),
    may("ext4_journalled_write_end", WRITE),
    need("ext4_fallocate_enter", RANGE),
    need("ext4_punch_hole", RANGE),
    need("ext4_zero_range", RANGE),
];

const XFS: &[Program] = &[
    need("xfs_ilock", XFS_LOCK),
    need("xfs_ilock_nowait", XFS_LOCK),
    need("xfs_create", XFS_INODE),
    need("xfs_remove", XFS_INODE),
    need("xfs_link", XFS_INODE),
    need("xfs_symlink", XFS_INODE),
    need("xfs_rename", "xfs_inode*, xfs_inode*"),
    need("xfs_setattr", XFS_INODE),
    need("xfs_file_buffered_write", IO),
    need("xfs_file_direct_write", IO),
    may("xfs_free_file_space", XFS_INODE),
    may("xfs_zero_file_space", XFS_INODE),
    may("xfs_collapse_file_space", XFS_INODE),
    may("xfs_insert_file_space", XFS_INODE),
    may("xfs_reflink_remap_range", "xfs_inode*, xfs_off_t, xfs_off_t, xfs_inode*"),
    may("xfs_reflink_remap_extent_dest", XFS_INODE),
    may("xfs_swap_extent_before", XFS_INODE),
    // Since 6.10.
    may("xfs_exchrange_before", XFS_INODE),
];

/// The file systems with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, and ext2 and ext3 through its driver.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs: no tracepoints that name what changes, so the VFS' functions.
    Btrfs,
    /// tmpfs: no tracepoints at all.
    Tmpfs,
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
            "btrfs" => Ok(FileSystem::Btrfs),
            "tmpfs" => Ok(FileSystem::Tmpfs),
            _ => Err(Error::UnsupportedFileSystem { fs: name.to_owned() }),
        }
    }

    /// What sees its changes, and the programs on functions that takes.
    ///
    /// # Errors
    /// [`Error::NoFunction`].
    pub fn backend(self, btf: &Btf) -> Result<(Backend, Vec<Function>), Error> {
        let name = match self {
            FileSystem::Ext4 | FileSystem::Xfs => return Ok((Backend::Tracepoints, Vec::new())),
            FileSystem::Btrfs => "btrfs",
            FileSystem::Tmpfs => "tmpfs",
        };
        Ok((Backend::Fentry, functions::present(btf, name)?))
    }

    /// Whether a store through a mapping is never an event, not even the first to a clean page: tmpfs does not account for dirty pages, so
    /// write-back cleans and write-protects nothing there. A mapped file counts as dirty as long as it is mapped, then (T4).
    #[must_use]
    pub fn stores_are_silent(self) -> bool {
        self == FileSystem::Tmpfs
    }

    /// The kernel module that is its driver, where it is not built in.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
            FileSystem::Tmpfs => "tmpfs",
        }
    }

    /// The tracepoints that see its changes.
    pub fn programs(self) -> impl Iterator<Item = Program> {
        let own = match self {
            FileSystem::Ext4 => EXT4,
            FileSystem::Xfs => XFS,
            FileSystem::Btrfs | FileSystem::Tmpfs => &[],
        };
        own.iter().chain(ANY).copied()
    }
}

/// The programs this kernel has a place for, by name and in the order they are attached.
///
/// # Errors
/// [`Error::NoTracepoint`] when one is missing without which events would be lost; [`Error::Arguments`] when a place passes something else
/// than the program reads.
pub fn present(btf: &Btf, fs: FileSystem) -> Result<Vec<(&'static str, Place)>, Error> {
    let mut programs = Vec::new();
    for program in fs.programs().chain(CALLS.iter().copied()) {
        let mut names = std::iter::once(program.name).chain(program.formerly);
        let found = names.find_map(|name| Some((name, btf.tracepoint(name)?)));
        let instead = || {
            let (function, expected) = program.instead?;
            Some((function, btf.function(function)?, expected))
        };
        let check = |name, passed: String, expected| {
            if passes(&passed, expected) { Ok(()) } else { Err(Error::Arguments { name, passed, expected }) }
        };
        if let Some((name, passed)) = found {
            check(name, passed, program.arguments)?;
            programs.push((program.name, Place::Tracepoint(name)));
        } else if let Some((function, takes, expected)) = instead() {
            check(function, takes, expected)?;
            programs.push((function, Place::Function(function)));
        } else if program.required {
            return Err(Error::NoTracepoint { name: program.name, fs: format!("{fs:?}").to_lowercase() });
        } else {
            tracing::info!(tracepoint = program.name, "this kernel does not have it");
        }
    }
    Ok(programs)
}

/// Whether what a tracepoint passes begins with these arguments.
fn passes(passed: &str, expected: &str) -> bool {
    let rest = passed.strip_prefix(expected);
    expected.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracepoint_may_pass_more_and_nothing_else() {
        assert!(passes("inode*, int", INODE) && passes("inode*", INODE) && passes("bool", ""));
        assert!(!passes("super_block*, inode*", INODE));
        assert!(!passes("inode*, loff_t", RANGE));
        assert!(!passes("inode*, loff_t, unsigned int", "inode*, loff_t, unsigned"));
    }

    #[test]
    fn this_kernel_passes_what_the_programs_read() {
        for fs in [FileSystem::Ext4, FileSystem::Xfs] {
            let Ok(btf) = Btf::of_kernel_with(fs.module()) else {
                return eprintln!("this kernel has no BTF: not tested");
            };
            match present(&btf, fs) {
                Ok(programs) => assert!(programs.len() > 15),
                // A module that nobody has loaded yet.
                Err(e) => assert!(matches!(e, Error::NoTracepoint { .. }), "{e}"),
            }
        }
    }
}
