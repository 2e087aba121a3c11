//! Events of XFS. Which operation raises which: measured, docs/events.md.

use crate::any::io_range;
use crate::kernel::{Structure, constant, tracepoint};
use crate::slots::{content_begins, direct, meta, whole, whole_begins};

/// XFS_ILOCK_EXCL (fs/xfs/xfs_inode.h), which every transaction that changes an inode holds (xfs_trans_ijoin asserts it). The other lock, for input and output, is
/// held by who changes content, of which other events tell, and takes this one for the rest.
const EXCLUSIVE: u32 = 1 << 2;

#[inline(always)]
fn inode<K: Structure>(xfs: K) -> K {
    xfs.inside(constant!(OFFSETS.xfs_vnode))
}

macro_rules! on_inode {
    ($($name:literal $probed:ident $typed:ident $($arg:literal)+ => $mark:ident;)*) => {$(
        tracepoint! { $name $probed $typed (ctx, Kind) { $($mark(inode(Kind::at(ctx.arg($arg))));)+ } }
    )*};
}

on_inode! {
    "xfs_create" xfs_create xfs_create_typed 0 => meta;
    "xfs_remove" xfs_remove xfs_remove_typed 0 => meta;
    "xfs_link" xfs_link xfs_link_typed 0 => meta;
    "xfs_symlink" xfs_symlink xfs_symlink_typed 0 => meta;
    "xfs_rename" xfs_rename xfs_rename_typed 0 1 => meta;
    // A truncation among others; it does not say which.
    "xfs_setattr" xfs_setattr xfs_setattr_typed 0 => whole;
    // Those that begin: what follows tells of metadata only.
    "xfs_free_file_space" xfs_free_file_space xfs_free_file_space_typed 0 => whole_begins;
    "xfs_zero_file_space" xfs_zero_file_space xfs_zero_file_space_typed 0 => whole_begins;
    "xfs_collapse_file_space" xfs_collapse_file_space xfs_collapse_file_space_typed 0 => whole_begins;
    "xfs_insert_file_space" xfs_insert_file_space xfs_insert_file_space_typed 0 => whole_begins;
    // Extents that come without a write. The source's content stays what it is, and the source is what the engine clones: if that made it
    // dirty, no round would ever end.
    "xfs_reflink_remap_range" xfs_reflink_remap_range xfs_reflink_remap_range_typed 3 => whole_begins;
    "xfs_reflink_remap_extent_dest" xfs_reflink_remap_extent_dest xfs_reflink_remap_extent_dest_typed 0 => whole;
    "xfs_swap_extent_before" xfs_swap_extent_before xfs_swap_extent_before_typed 0 => whole_begins;
    // Of either file.
    "xfs_exchrange_before" xfs_exchrange_before xfs_exchrange_before_typed 0 => whole_begins;
}

macro_rules! on_lock {
    ($($name:literal $probed:ident $typed:ident;)*) => {$(
        tracepoint! { $name $probed $typed (ctx, Kind) {
            if ctx.arg::<u32>(1) & EXCLUSIVE != 0 {
                meta(inode(Kind::at(ctx.arg(0))));
            }
        } }
    )*};
}

// The catch-all: nothing changes an inode without holding this lock exclusively.
on_lock! {
    "xfs_ilock" xfs_ilock xfs_ilock_typed;
    "xfs_ilock_nowait" xfs_ilock_nowait xfs_ilock_nowait_typed;
}

tracepoint! { "xfs_file_buffered_write" xfs_file_buffered_write xfs_file_buffered_write_typed (ctx, Kind) {
    let (file, pos, len) = io_range(Kind::at(ctx.arg(0)), Kind::at(ctx.arg(1)));
    content_begins(file, pos, len);
} }

tracepoint! { "xfs_file_direct_write" xfs_file_direct_write xfs_file_direct_write_typed (ctx, Kind) {
    let (file, pos, len) = io_range(Kind::at(ctx.arg(0)), Kind::at(ctx.arg(1)));
    direct(file, pos, len);
} }
