//! What the window captured, as the shadow takes it in once the gate is down.

use std::ffi::CStr;

use super::inode::{Stat, Xattrs};

/// An inode as it stood at the cut.
#[derive(Debug)]
pub struct CapturedInode<'a> {
    /// Its metadata at the cut. `nlink` 0: it is gone.
    pub stat: Stat,
    /// The shadow knows nothing of this inode, or of another one under its number: everything there is to it is here.
    pub fresh: bool,
    /// Content that replaces the shadow's, by offset. Bytes between and behind these, up to `stat.size`, are as the shadow has them (holes if `fresh`).
    pub data: Vec<(u64, &'a [u8])>,
    /// The target of a symbolic link (only if `fresh`).
    pub link: &'a [u8],
    /// All extended attributes; `None`: as the shadow has them.
    pub xattrs: Option<Xattrs>,
}

/// A directory's entries at the cut, complete.
#[derive(Debug)]
pub struct Listing<'a> {
    /// The directory's inode number.
    pub ino: u64,
    /// Name, inode number and `DT_*` of each entry, without `.` and `..`.
    pub entries: Vec<(&'a CStr, u64, u8)>,
}

/// Everything the window captured.
#[derive(Debug, Default)]
pub struct Residual<'a> {
    /// Inodes that had changed.
    pub inodes: Vec<CapturedInode<'a>>,
    /// Directories that had changed.
    pub listings: Vec<Listing<'a>>,
}
