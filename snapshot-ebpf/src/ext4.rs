//! Events of ext4, and of ext2 and ext3 through it. Which operation raises which: measured, docs/events.md.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::kernel::Ref;
use crate::slots::{content, meta, whole};

/// A program on a tracepoint whose first argument is the inode.
macro_rules! on_inode {
    ($($name:literal $function:ident => $mark:ident;)*) => {$(
        #[btf_tracepoint(function = $name)]
        pub fn $function(ctx: BtfTracePointContext) -> i32 {
            $mark(Ref(ctx.arg(0)));
            0
        }
    )*};
}

/// A program on a tracepoint whose arguments are (inode, offset, length, ...).
macro_rules! on_range {
    ($($name:literal $function:ident $len:ty;)*) => {$(
        #[btf_tracepoint(function = $name)]
        pub fn $function(ctx: BtfTracePointContext) -> i32 {
            let (pos, len): (i64, $len) = (ctx.arg(1), ctx.arg(2));
            content(Ref(ctx.arg(0)), pos as u64, len as u64);
            0
        }
    )*};
}

on_inode! {
    "ext4_mark_inode_dirty" ext4_mark_inode_dirty => meta;
    // The only sign of a changed attribute or flag.
    "ext4_journal_start_inode" ext4_journal_start_inode => meta;
    "ext4_unlink_enter" ext4_unlink_enter => meta;
    "ext4_truncate_enter" ext4_truncate_enter => whole;
    "ext4_truncate_exit" ext4_truncate_exit => whole;
    "ext4_collapse_range" ext4_collapse_range => whole;
    "ext4_insert_range" ext4_insert_range => whole;
}

// Begin and end: who looks between the two is told again once the bytes have landed, also for writers that are not counted.
on_range! {
    "ext4_da_write_begin" ext4_da_write_begin u32;
    "ext4_da_write_end" ext4_da_write_end u32;
    "ext4_write_begin" ext4_write_begin u32;
    "ext4_write_end" ext4_write_end u32;
    "ext4_journalled_write_end" ext4_journalled_write_end u32;
    "ext4_fallocate_enter" ext4_fallocate_enter i64;
    "ext4_punch_hole" ext4_punch_hole i64;
    "ext4_zero_range" ext4_zero_range i64;
}
