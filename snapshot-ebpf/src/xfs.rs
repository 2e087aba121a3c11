//! Events of XFS. Which operation raises which: measured, docs/events.md.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::any::io_range;
use crate::kernel::{Ref, constant};
use crate::slots::{content, direct, meta, whole};

/// XFS_IOLOCK_EXCL | XFS_ILOCK_EXCL (fs/xfs/xfs_inode.h).
const EXCLUSIVE: u32 = 1 | 1 << 2;

#[inline(always)]
fn inode(xfs: *const u8) -> Ref {
    Ref(xfs).inside(constant!(OFFSETS.xfs_vnode))
}

macro_rules! on_inode {
    ($($name:literal $function:ident $($arg:literal)+ => $mark:ident;)*) => {$(
        #[btf_tracepoint(function = $name)]
        pub fn $function(ctx: BtfTracePointContext) -> i32 {
            $($mark(inode(ctx.arg($arg)));)+
            0
        }
    )*};
}

on_inode! {
    "xfs_create" xfs_create 0 => meta;
    "xfs_remove" xfs_remove 0 => meta;
    "xfs_link" xfs_link 0 => meta;
    "xfs_symlink" xfs_symlink 0 => meta;
    "xfs_rename" xfs_rename 0 1 => meta;
    // A truncation among others; it does not say which.
    "xfs_setattr" xfs_setattr 0 => whole;
    "xfs_free_file_space" xfs_free_file_space 0 => whole;
    "xfs_zero_file_space" xfs_zero_file_space 0 => whole;
    "xfs_collapse_file_space" xfs_collapse_file_space 0 => whole;
    "xfs_insert_file_space" xfs_insert_file_space 0 => whole;
    // Extents that change hands without a write: source and destination.
    "xfs_reflink_remap_range" xfs_reflink_remap_range 0 3 => whole;
    "xfs_reflink_remap_extent_dest" xfs_reflink_remap_extent_dest 0 => whole;
    "xfs_swap_extent_before" xfs_swap_extent_before 0 => whole;
}

macro_rules! on_lock {
    ($($name:literal $function:ident;)*) => {$(
        #[btf_tracepoint(function = $name)]
        pub fn $function(ctx: BtfTracePointContext) -> i32 {
            if ctx.arg::<u32>(1) & EXCLUSIVE != 0 {
                meta(inode(ctx.arg(0)));
            }
            0
        }
    )*};
}

// The catch-all: nothing changes an inode without holding one of these exclusively.
on_lock! {
    "xfs_ilock" xfs_ilock;
    "xfs_ilock_nowait" xfs_ilock_nowait;
}

#[btf_tracepoint(function = "xfs_file_buffered_write")]
pub fn xfs_file_buffered_write(ctx: BtfTracePointContext) -> i32 {
    let (file, pos, len) = io_range(ctx.arg(0), ctx.arg(1));
    content(file, pos, len);
    0
}

#[btf_tracepoint(function = "xfs_file_direct_write")]
pub fn xfs_file_direct_write(ctx: BtfTracePointContext) -> i32 {
    let (file, pos, len) = io_range(ctx.arg(0), ctx.arg(1));
    direct(file, pos, len);
    0
}
