//! Events every file system on the page cache or on iomap raises.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_loop};
use snapshot_ebpf::{FAULT_SLOW_FAULTS, NONE};

use crate::count::told;
use crate::kernel::{Structure, constant, tracepoint};
use crate::slots::{content, direct, meta};

pub const PAGE_SHIFT: u64 = 12;
/// I_DIRTY_SYNC | I_DIRTY_DATASYNC (linux/fs.h); I_DIRTY_PAGES alone is told by the folio.
const DIRTY_INODE: u32 = 3;
/// IOMAP_WRITE | IOMAP_ZERO | IOMAP_UNSHARE (linux/iomap.h).
const IOMAP_CHANGES: u32 = IOMAP_WRITE | 1 << 1 | 1 << 7;
const IOMAP_WRITE: u32 = 1;
/// All of these, with IOMAP_FAULT, IOMAP_DIRECT and IOMAP_DAX.
const IOMAP_KINDS: u32 = IOMAP_CHANGES | 1 << 3 | IOMAP_DIRECT | 1 << 8;
const IOMAP_DIRECT: u32 = 1 << 4;
/// How long a slow page fault is slow: longer than a round takes from what it is told to the file. A turn takes some 20 ns.
const SLOW_NS: u64 = 1_000_000;
const SLOW_TURNS: u32 = 1 << 18;
/// The largest folio the page cache makes: a huge page.
const HUGE: u64 = 2 << 20;

/// Inode, offset and length of what a (kiocb, iov_iter) asks for.
#[inline(always)]
pub fn io_range<K: Structure>(kiocb: K, iter: K) -> (K, u64, u64) {
    let inode = kiocb.follow(constant!(OFFSETS.kiocb_file)).follow(constant!(OFFSETS.file_inode));
    // What cannot be read is everything.
    let pos = kiocb.get(constant!(OFFSETS.kiocb_pos)).unwrap_or(0);
    let len = iter.get(constant!(OFFSETS.iter_count)).unwrap_or(u64::MAX);
    (inode, pos, len)
}

/// The bytes of a folio that begins at `pos`, as far as that can be told.
#[inline(always)]
pub fn folio_range<K: Structure>(folio: K, pos: u64) -> (u64, u64) {
    let head = constant!(OFFSETS.folio_head_bit);
    if head == NONE {
        return (pos & !(HUGE - 1), HUGE);
    }
    let flags: u64 = folio.get(constant!(OFFSETS.folio_flags)).unwrap_or(!0);
    let order = if flags >> (head & 63) & 1 == 0 {
        0
    } else {
        u64::from(folio.get::<u8>(constant!(OFFSETS.folio_order)).unwrap_or(9) & 15)
    };
    (pos, 1 << (PAGE_SHIFT + order))
}

tracepoint! { "writeback_dirty_folio" writeback_dirty_folio writeback_dirty_folio_typed (ctx, Kind) {
    let (folio, mapping) = (Kind::at(ctx.arg(0)), Kind::at(ctx.arg(1)));
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
    let (pos, len) = folio_range(folio, pos);
    content(inode, pos, len);
    if constant!(SETTINGS.fault) >= FAULT_SLOW_FAULTS {
        dawdle();
    }
} }

/// For tests: lets time go by.
#[inline(always)]
fn dawdle() {
    // SAFETY: the helpers have no preconditions but the callback's, whose context is this stack slot.
    unsafe {
        let mut until = bpf_ktime_get_ns() + SLOW_NS;
        bpf_loop(SLOW_TURNS, early as *mut c_void, (&raw mut until).cast::<c_void>(), 0);
    }
}

/// Whether the time in the context has not come.
unsafe extern "C" fn early(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the caller's stack slot.
    unsafe { i64::from(bpf_ktime_get_ns() >= core::ptr::read_volatile(context.cast::<u64>())) }
}

tracepoint! { "writeback_mark_inode_dirty" writeback_mark_inode_dirty writeback_mark_inode_dirty_typed (ctx, Kind) {
    if ctx.arg::<u32>(1) & DIRTY_INODE != 0 {
        meta(Kind::at(ctx.arg(0)));
    }
} }

tracepoint! { "iomap_iter" iomap_iter iomap_iter_typed (ctx, Kind) {
    let iter = Kind::at(ctx.arg(0));
    let flags: u32 = iter.get(constant!(OFFSETS.iomap_flags)).unwrap_or(!0);
    if flags & IOMAP_CHANGES == 0 {
        return 0;
    }
    // What a call writes into the page cache XFS has told of in one piece (`xfs_file_buffered_write`) before it goes through it.
    if constant!(OFFSETS.xfs_vnode) != NONE && flags & IOMAP_KINDS == IOMAP_WRITE && told() {
        return 0;
    }
    let inode = iter.follow(constant!(OFFSETS.iomap_inode));
    let pos = iter.get(constant!(OFFSETS.iomap_pos)).unwrap_or(0);
    let len = iter.get(constant!(OFFSETS.iomap_len)).unwrap_or(u64::MAX);
    if flags & IOMAP_DIRECT == 0 {
        content(inode, pos, len);
    } else {
        // On 6.1 this is the only sign of direct I/O on ext4. The file system counts it in i_dio_count before it comes here.
        direct(inode, pos, len);
    }
} }

tracepoint! { "iomap_dio_rw_begin" iomap_dio_rw_begin iomap_dio_rw_begin_typed (ctx, Kind) {
    if Kind::at(ctx.arg(1)).get::<u8>(constant!(OFFSETS.iter_source)).unwrap_or(1) == 0 {
        return 0;
    }
    let (file, pos, len) = io_range(Kind::at(ctx.arg(0)), Kind::at(ctx.arg(1)));
    direct(file, pos, len);
} }
