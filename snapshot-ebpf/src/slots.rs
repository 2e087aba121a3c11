//! Finding and marking the slot of a watched inode.
//!
//! What is set already is not set again: one look instead of four atomic operations. Why no event is lost by that (T1). The engine clears the state, then takes the
//! bits, then waits for the calls under way (T2), then reads. Who finds a bit set has looked before the engine took it. If his call is counted, it was counted before he
//! looked, by a full barrier, so the engine waits for its end before it reads what the bit stands for. If it is not, he has passed a full barrier
//! between what he changed and his look ([`ordered`]), so whoever reads after taking the bit reads the change.
//!
//! And why no window overlooks it (G2). A change in the window is a counted call, which shows in the counts of calls; or it finds its dirt taken, and is
//! counted as an event; or its dirt is still to be taken by this window, and then read with it.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use snapshot_ebpf::{
    BLOCK_SHIFT, DIRECT, FAULT_DROP_EVENTS, FAULT_DROP_FEW, FAULT_IGNORE_MMAP, FINE_SHIFT, Fine,
    INLINE_WORDS, MAPPED, MAX_PROBES, MAX_SPAN, META, QUEUED, SLOT_EMPTY, Slot, TAIL, WHOLE, home,
};

use crate::atomics::{fetch_add, fetch_or, opaque, set};
use crate::count::{CONTROL, cpu, join, ordered, told};
use crate::kernel::{Structure, constant};
use crate::target::of_upper;

const MMAPABLE: u32 = 1 << 10;
/// The engine polls the ring; waking it up would cost the writer (BPF_RB_NO_WAKEUP).
const NO_WAKEUP: u64 = 1;

// The engine sets the real sizes before loading.
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(1, MMAPABLE);
#[map]
static BLOCKS: Array<u64> = Array::with_max_entries(1, MMAPABLE);
#[map]
static RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// The slot of a watched inode that something happens to.
struct Found<K> {
    slot: *mut Slot,
    index: u32,
    mapping: K,
}

/// Marks content of an inode of the upper's file system.
#[inline(always)]
pub fn content<K: Structure>(inode: K, pos: u64, len: u64) {
    let Some(found) = watched(inode) else { return };
    ordered();
    let flags = bits(found.slot, pos, len);
    queue(found, flags);
}

/// Marks content that a call is about to change, and counts that call in if nobody has: no later event may tell of this content.
#[inline(always)]
pub fn content_begins<K: Structure>(inode: K, pos: u64, len: u64) {
    let Some(found) = watched(inode) else { return };
    join();
    let flags = bits(found.slot, pos, len);
    queue(found, flags);
}

/// Marks content that has changed, unless [`content_begins`] has told of it within the same counted call: the dirt that was taken in the middle of a call is read
/// after its end (T2), and there is no window in between (G1).
#[inline(always)]
pub fn content_ends<K: Structure>(inode: K, pos: u64, len: u64) {
    if !told() {
        content(inode, pos, len);
    }
}

/// The same of everything about an inode.
#[inline(always)]
pub fn whole_begins<K: Structure>(inode: K) {
    let Some(found) = watched(inode) else { return };
    join();
    queue(found, META | WHOLE);
}

/// Marks an inode of the upper's file system with state bits.
#[inline(always)]
pub fn mark<K: Structure>(inode: K, flags: u64) {
    let Some(found) = watched(inode) else { return };
    ordered();
    queue(found, flags);
}

/// Marks the metadata.
#[inline(always)]
pub fn meta<K: Structure>(inode: K) {
    mark(inode, META);
}

/// Marks everything about it.
#[inline(always)]
pub fn whole<K: Structure>(inode: K) {
    mark(inode, META | WHOLE);
}

/// Notes that direct I/O was begun on it.
#[inline(always)]
pub fn direct<K: Structure>(inode: K, pos: u64, len: u64) {
    let Some(found) = watched(inode) else { return };
    join();
    let flags = bits(found.slot, pos, len) | DIRECT;
    queue(found, flags);
}

#[inline(always)]
fn watched<K: Structure>(inode: K) -> Option<Found<K>> {
    let control = CONTROL.get_ptr_mut(0)?;
    if inode.address().is_null() {
        return None;
    }
    let Some(head) = inode.head() else {
        // T1: an event that names nobody may be anybody's.
        // SAFETY: a map value.
        unsafe { fetch_add(&raw mut (*control).unknown, 1) };
        return None;
    };
    if !of_upper(control, head.sb) {
        return None;
    }
    let (slot, index) = find(head.ino)?;
    Some(Found { slot, index, mapping: head.mapping })
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

/// Sets the bits of a range; says with a state bit what the bits could not hold.
#[inline(always)]
fn bits(slot: *mut Slot, pos: u64, len: u64) -> u64 {
    // SAFETY: a map value.
    let fine = Fine(unsafe { core::ptr::read_volatile(&raw const (*slot).more) });
    let shift = if fine.words() == 0 { BLOCK_SHIFT } else { FINE_SHIFT };
    let end = pos.wrapping_add(if len == 0 { 0 } else { len - 1 });
    let (first, last) = (pos >> shift, if end < pos { u64::MAX } else { end } >> shift);
    let (w0, w1) = (first >> 6, last >> 6);
    if w1 - w0 >= MAX_SPAN {
        return WHOLE;
    }
    let (low, high) = (!0u64 << (first & 63), !0u64 >> (63 - (last & 63)));
    if w0 == w1 {
        return some(slot, fine, w0, low & high);
    }
    let mut flags = some(slot, fine, w0, low) | some(slot, fine, w1, high);
    if w1 > w0 + 1 {
        let mut between = Between { slot, fine, first: w0 + 1, flags: 0 };
        // SAFETY: this stack frame and a map value; the callback keeps to them. A loop of our own would be verified turn by turn, in every
        // program that marks content: loading took 1.9 s instead of 26 ms.
        unsafe {
            bpf_loop(
                (w1 - w0 - 1) as u32,
                each_between as *mut c_void,
                (&raw mut between).cast::<c_void>(),
                0,
            );
            flags |= core::ptr::read_volatile(&raw const between.flags);
        }
    }
    flags
}

/// The words of a range that lie between its first and its last.
#[repr(C)]
struct Between {
    slot: *mut Slot,
    fine: Fine,
    first: u64,
    flags: u64,
}

unsafe extern "C" fn each_between(turn: u32, context: *mut c_void) -> i64 {
    let between = context.cast::<Between>();
    // SAFETY: `context` is the caller's stack slot.
    unsafe {
        // Not counted up in the context: to the verifier each turn would be another state.
        let word = (*between).first + u64::from(turn);
        (*between).flags |= some((*between).slot, (*between).fine, word, !0);
    }
    0
}

/// Sets bits of a word, wherever the file has its words.
#[inline(always)]
fn some(slot: *mut Slot, fine: Fine, w: u64, mask: u64) -> u64 {
    if fine.words() == 0 { inline(slot, w, mask) } else { word(slot, fine, w, mask) }
}

/// Sets bits of a word inside the slot.
#[inline(always)]
fn inline(slot: *mut Slot, w: u64, mask: u64) -> u64 {
    let w = opaque(w);
    if w >= INLINE_WORDS as u64 {
        return TAIL;
    }
    // SAFETY: in bounds of the slot's array.
    unsafe { set((&raw mut (*slot).blocks).cast::<u64>().add(w as usize), mask) };
    0
}

/// Sets bits of a word of BLOCKS, and then its summary bit.
#[inline(always)]
fn word(slot: *mut Slot, fine: Fine, w: u64, mask: u64) -> u64 {
    if w >= fine.words() {
        return TAIL;
    }
    let Some(p) = BLOCKS.get_ptr_mut((fine.first() + w) as u32) else { return WHOLE };
    // SAFETY: a map value.
    unsafe { set(p, mask) };
    let group = w >> fine.shift();
    // Behind the last summary bit lies nothing: `Fine::new` sees to it.
    inline(slot, group >> 6, 1 << (group & 63))
}

/// Sets the state, and puts the slot into the ring if it was not there.
///
/// Most events have nothing new to say: a file that is written again and again is dirty already, and so are the blocks. They end with a look (the head of
/// this file says why that is enough) and are not counted.
#[inline(always)]
fn queue<K: Structure>(found: Found<K>, flags: u64) {
    let Found { slot, index, mapping } = found;
    let fault = constant!(SETTINGS.fault);
    let mut flags = flags | QUEUED;
    // SAFETY: a map value.
    let before = unsafe { core::ptr::read_volatile(&raw const (*slot).state) };
    // T4: the first event after a file was mapped covers what stores to already dirty pages may have changed; from then
    // on MAPPED tells the engine to clean the pages before it copies them, so that every later store is an event.
    if before & MAPPED == 0 && fault != FAULT_IGNORE_MMAP {
        let writable: i32 = mapping.get(constant!(OFFSETS.mapping_writable)).unwrap_or(0);
        if writable > 0 {
            flags |= MAPPED | WHOLE;
        }
    }
    if before & flags == flags {
        return;
    }
    let (Some(control), Some(cpu)) = (CONTROL.get_ptr_mut(0), cpu()) else { return };
    // SAFETY: map values.
    unsafe {
        let count = fetch_add(&raw mut (*cpu).events, 1);
        let dropped =
            fault == FAULT_DROP_EVENTS && count & 15 == 0 || fault == FAULT_DROP_FEW && count % 1000 == 0;
        if !dropped
            && fetch_or(&raw mut (*slot).state, flags) & QUEUED == 0
            && RING.output::<u32>(index, NO_WAKEUP).is_err()
        {
            // T1: the slot keeps its dirt; the engine looks at all of them.
            fetch_add(&raw mut (*control).ring_lost, 1);
        }
        // Last: who finds the slot queued relies on the ring naming it, so until then nobody may look there and find nothing.
        fetch_add(&raw mut (*cpu).recorded, 1);
    }
}
