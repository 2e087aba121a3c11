//! Events every file system on the page cache or on iomap raises.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use snapshot_ebpf::NONE;

use crate::kernel::{Ref, constant};
use crate::slots::{content, direct, meta};

const PAGE_SHIFT: u64 = 12;
/// I_DIRTY_SYNC | I_DIRTY_DATASYNC (linux/fs.h); I_DIRTY_PAGES alone is told by the folio.
const DIRTY_INODE: u32 = 3;
/// IOMAP_WRITE | IOMAP_ZERO | IOMAP_UNSHARE (linux/iomap.h).
const IOMAP_CHANGES: u32 = 1 | 1 << 1 | 1 << 7;
/// The largest folio the page cache makes: a huge page.
const HUGE: u64 = 2 << 20;

/// Inode, offset and length of what a (kiocb, iov_iter) asks for.
#[inline(always)]
pub fn io_range(kiocb: *const u8, iter: *const u8) -> (Ref, u64, u64) {
    let kiocb = Ref(kiocb);
    let inode = kiocb.follow(constant!(OFFSETS.kiocb_file)).follow(constant!(OFFSETS.file_inode));
    // What cannot be read is everything.
    let pos = kiocb.get(constant!(OFFSETS.kiocb_pos)).unwrap_or(0);
    let len = Ref(iter).get(constant!(OFFSETS.iter_count)).unwrap_or(u64::MAX);
    (inode, pos, len)
}

#[btf_tracepoint(function = "writeback_dirty_folio")]
pub fn writeback_dirty_folio(ctx: BtfTracePointContext) -> i32 {
    let (folio, mapping) = (Ref(ctx.arg(0)), Ref(ctx.arg(1)));
    let inode = mapping.follow(constant!(OFFSETS.mapping_host));
    let Some(index) = folio.get::<u64>(constant!(OFFSETS.folio_index)) else { return 0 };
    let pos = index << PAGE_SHIFT;
    // Nobody can store without a call: the write's own events tell the range to the byte.
    if mapping.get::<i32>(constant!(OFFSETS.mapping_writable)).unwrap_or(1) <= 0 {
        content(inode, pos, 1);
        return 0;
    }
    // A store through one page of a large folio makes the whole folio dirty, and stores through its other pages are then
    // no events any more: all of it counts.
    let head = constant!(OFFSETS.folio_head_bit);
    if head == NONE {
        content(inode, pos & !(HUGE - 1), HUGE);
        return 0;
    }
    let flags: u64 = folio.get(constant!(OFFSETS.folio_flags)).unwrap_or(!0);
    let order = if flags >> (head & 63) & 1 == 0 {
        0
    } else {
        folio.get::<u64>(constant!(OFFSETS.folio_flags_1)).unwrap_or(9) & 15
    };
    content(inode, pos, 1 << (PAGE_SHIFT + order));
    0
}

#[btf_tracepoint(function = "writeback_mark_inode_dirty")]
pub fn writeback_mark_inode_dirty(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u32>(1) & DIRTY_INODE != 0 {
        meta(Ref(ctx.arg(0)));
    }
    0
}

#[btf_tracepoint(function = "iomap_iter")]
pub fn iomap_iter(ctx: BtfTracePointContext) -> i32 {
    let iter = Ref(ctx.arg(0));
    if iter.get::<u32>(constant!(OFFSETS.iomap_flags)).unwrap_or(!0) & IOMAP_CHANGES == 0 {
        return 0;
    }
    let inode = iter.follow(constant!(OFFSETS.iomap_inode));
    let pos = iter.get(constant!(OFFSETS.iomap_pos)).unwrap_or(0);
    let len = iter.get(constant!(OFFSETS.iomap_len)).unwrap_or(u64::MAX);
    content(inode, pos, len);
    0
}

#[btf_tracepoint(function = "iomap_dio_rw_begin")]
pub fn iomap_dio_rw_begin(ctx: BtfTracePointContext) -> i32 {
    if Ref(ctx.arg(1)).get::<u8>(constant!(OFFSETS.iter_source)).unwrap_or(1) == 0 {
        return 0;
    }
    let (file, pos, len) = io_range(ctx.arg(0), ctx.arg(1));
    direct(file, pos, len);
    0
}
