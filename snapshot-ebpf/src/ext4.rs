//! Events of ext4, and of ext2 and ext3 through it. Which operation raises which: measured, docs/events.md.

use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;

use crate::kernel::{Probed, tracepoint};
use crate::slots::{content_begins, content_ends, meta, whole, whole_begins};

/// Programs on a tracepoint whose first argument is the inode.
macro_rules! on_inode {
    ($($name:literal $probed:ident $typed:ident => $mark:ident;)*) => {$(
        tracepoint! { $name $probed $typed (ctx, Kind) { $mark(Kind::at(ctx.arg(0))); } }
    )*};
}

/// Programs on a tracepoint whose arguments are (inode, offset, length, ...).
macro_rules! on_range {
    ($($name:literal $probed:ident $typed:ident $len:ty => $mark:ident;)*) => {$(
        tracepoint! { $name $probed $typed (ctx, Kind) {
            let (pos, len): (i64, $len) = (ctx.arg(1), ctx.arg(2));
            $mark(Kind::at(ctx.arg(0)), pos as u64, len as u64);
        } }
    )*};
}

on_inode! {
    "ext4_mark_inode_dirty" ext4_mark_inode_dirty ext4_mark_inode_dirty_typed => meta;
    // The only sign of a changed attribute or flag.
    "ext4_journal_start_inode" ext4_journal_start_inode ext4_journal_start_inode_typed => meta;
    "ext4_unlink_enter" ext4_unlink_enter ext4_unlink_enter_typed => meta;
    "ext4_truncate_enter" ext4_truncate_enter ext4_truncate_enter_typed => whole;
    "ext4_truncate_exit" ext4_truncate_exit ext4_truncate_exit_typed => whole;
    // What follows them tells of metadata only.
    "ext4_collapse_range" ext4_collapse_range ext4_collapse_range_typed => whole_begins;
    "ext4_insert_range" ext4_insert_range ext4_insert_range_typed => whole_begins;
}

// Begin and end: who looks between the two is told again once the bytes have landed, for writers that cannot be counted.
on_range! {
    "ext4_da_write_begin" ext4_da_write_begin ext4_da_write_begin_typed u32 => content_begins;
    "ext4_da_write_end" ext4_da_write_end ext4_da_write_end_typed u32 => content_ends;
    "ext4_write_begin" ext4_write_begin ext4_write_begin_typed u32 => content_begins;
    "ext4_write_end" ext4_write_end ext4_write_end_typed u32 => content_ends;
    "ext4_journalled_write_end" ext4_journalled_write_end ext4_journalled_write_end_typed u32 => content_ends;
    "ext4_fallocate_enter" ext4_fallocate_enter ext4_fallocate_enter_typed i64 => content_begins;
    "ext4_punch_hole" ext4_punch_hole ext4_punch_hole_typed i64 => content_begins;
    "ext4_zero_range" ext4_zero_range ext4_zero_range_typed i64 => content_begins;
}

/// Where `ext4_journal_start_inode` is missing: every change of an inode on the disk passes through this function
/// (handle, inode, location), those of attributes and flags included.
#[kprobe]
pub fn ext4_mark_iloc_dirty(ctx: ProbeContext) -> u32 {
    meta(Probed(ctx.arg(1).unwrap_or(core::ptr::null())));
    0
}
