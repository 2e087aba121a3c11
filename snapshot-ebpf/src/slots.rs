//! Finding and marking the slot of a watched inode.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use snapshot_ebpf::{
    BLOCK_SHIFT, Control, DIRECT, FAULT_DROP_EVENTS, INLINE_BLOCKS, INLINE_WORDS, MAPPED, MAX_PROBES, META,
    QUEUED, SLOT_EMPTY, Slot, TAIL, WHOLE, home,
};

use crate::atomics::{fetch_add, fetch_or, opaque};
use crate::kernel::{Ref, constant, device};

const MMAPABLE: u32 = 1 << 10;
/// The engine polls the ring; waking it up would cost the writer (BPF_RB_NO_WAKEUP).
const NO_WAKEUP: u64 = 1;

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
// The engine sets the real sizes before loading.
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(1, MMAPABLE);
#[map]
static BLOCKS: Array<u64> = Array::with_max_entries(1, MMAPABLE);
#[map]
static RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// A range of blocks, first and last.
#[derive(Clone, Copy)]
pub struct Blocks {
    first: u64,
    last: u64,
}

impl Blocks {
    /// The blocks that `len` bytes from `pos` on touch.
    #[inline(always)]
    pub fn of(pos: u64, len: u64) -> Blocks {
        let end = pos.wrapping_add(if len == 0 { 0 } else { len - 1 });
        Blocks { first: pos >> BLOCK_SHIFT, last: if end < pos { u64::MAX } else { end } >> BLOCK_SHIFT }
    }
}

/// Marks content of an inode of the upper's file system.
#[inline(always)]
pub fn content(inode: Ref, pos: u64, len: u64) {
    let Some((slot, index)) = watched(inode) else { return };
    let blocks = Blocks::of(pos, len);
    let flags = bits(slot, blocks);
    queue(inode, slot, index, flags);
}

/// Marks an inode of the upper's file system with state bits.
#[inline(always)]
pub fn mark(inode: Ref, flags: u64) {
    let Some((slot, index)) = watched(inode) else { return };
    queue(inode, slot, index, flags);
}

/// Marks the metadata.
#[inline(always)]
pub fn meta(inode: Ref) {
    mark(inode, META);
}

/// Marks everything about it.
#[inline(always)]
pub fn whole(inode: Ref) {
    mark(inode, META | WHOLE);
}

/// Notes that direct I/O was begun on it.
#[inline(always)]
pub fn direct(inode: Ref, pos: u64, len: u64) {
    content(inode, pos, len);
    mark(inode, DIRECT);
}

#[inline(always)]
fn watched(inode: Ref) -> Option<(*mut Slot, u32)> {
    if device(inode) != constant!(SETTINGS.upper_device) {
        return None;
    }
    let Some(ino) = inode.get::<u64>(constant!(OFFSETS.inode_ino)) else {
        // T1: an event on the upper's file system that names nobody may be anybody's.
        if let Some(control) = CONTROL.get_ptr_mut(0) {
            // SAFETY: a map value.
            unsafe { fetch_add(&raw mut (*control).unknown, 1) };
        }
        return None;
    };
    find(ino)
}

#[inline(always)]
fn find(ino: u64) -> Option<(*mut Slot, u32)> {
    let mask = constant!(SETTINGS.slot_mask);
    let start = home(ino, mask);
    let mut i = 0;
    while i < MAX_PROBES {
        let index = start.wrapping_add(i) & mask;
        let slot = SLOTS.get_ptr_mut(index)?;
        // SAFETY: a map value; the engine stores the number last when it adds a slot.
        let there = unsafe { core::ptr::read_volatile(&raw const (*slot).ino) };
        if there == ino {
            return Some((slot, index));
        }
        if there == SLOT_EMPTY {
            return None;
        }
        i += 1;
    }
    None
}

/// Sets the bits of a range that spans at most two words; says with a state bit what the bits could not hold.
#[inline(always)]
fn bits(slot: *mut Slot, blocks: Blocks) -> u64 {
    let (w0, w1) = (blocks.first >> 6, blocks.last >> 6);
    if w1 > w0 + 1 {
        return WHOLE;
    }
    let (low, high) = (!0u64 << (blocks.first & 63), !0u64 >> (63 - (blocks.last & 63)));
    if w0 == w1 {
        return word(slot, w0, low & high);
    }
    word(slot, w0, low) | word(slot, w1, high)
}

#[inline(always)]
fn word(slot: *mut Slot, w: u64, mask: u64) -> u64 {
    let w = opaque(w);
    if w < INLINE_WORDS as u64 {
        // SAFETY: in bounds of the slot's array.
        unsafe { fetch_or((&raw mut (*slot).blocks).cast::<u64>().add(w as usize), mask) };
        return 0;
    }
    // SAFETY: a map value.
    let more = unsafe { core::ptr::read_volatile(&raw const (*slot).more) };
    let (first, words) = (more >> 32, more & 0xffff_ffff);
    let w = w - INLINE_BLOCKS / 64;
    if w >= words {
        return TAIL;
    }
    match BLOCKS.get_ptr_mut((first + w) as u32) {
        Some(p) => {
            // SAFETY: a map value.
            unsafe { fetch_or(p, mask) };
            0
        }
        None => WHOLE,
    }
}

#[inline(always)]
fn queue(inode: Ref, slot: *mut Slot, index: u32, flags: u64) {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return };
    // SAFETY: a map value.
    let count = unsafe { fetch_add(&raw mut (*control).events.value, 1) };
    if constant!(SETTINGS.fault) == FAULT_DROP_EVENTS && count & 15 == 0 {
        return;
    }
    let mut flags = flags | QUEUED;
    // T4: the first event after a file was mapped covers what stores to already dirty pages may have changed; from then
    // on MAPPED tells the engine to clean the pages before it copies them, so that every later store is an event.
    let writable: i32 =
        inode.follow(constant!(OFFSETS.inode_mapping)).get(constant!(OFFSETS.mapping_writable)).unwrap_or(0);
    // SAFETY: a map value.
    let before = unsafe { core::ptr::read_volatile(&raw const (*slot).state) };
    if writable > 0 && before & MAPPED == 0 {
        flags |= MAPPED | WHOLE;
    }
    // SAFETY: a map value.
    let old = unsafe { fetch_or(&raw mut (*slot).state, flags) };
    if old & QUEUED == 0 && RING.output::<u32>(index, NO_WAKEUP).is_err() {
        // T1: the slot keeps its dirt; the engine looks at all of them.
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).ring_lost, 1) };
    }
}
