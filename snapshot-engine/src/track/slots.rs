//! The table of watched inodes, shared with the programs.
//!
//! ```text
//!   add:  block words and state first, the inode number last     a program never finds a half-made slot
//!   take: state first, block words afterwards                    a bit is taken now, or its slot is queued again (T1)
//!   put:  block words first, state with QUEUED afterwards        as the programs do (T3)
//! ```
//!
//! The table is open-addressed with linear probing and at most [`MAX_PROBES`] steps, so that a program's look-up is bounded.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use snapshot_ebpf::{
    BLOCK_SHIFT, DIRECT, DIRT, INLINE_BLOCKS, INLINE_WORDS, MAPPED, MAX_PROBES, META, QUEUED, SLOT_EMPTY,
    SLOT_GONE, Slot, TAIL, WHOLE, home,
};

use crate::model::dirty::{Dirty, Full, Ino};

const SLOT_WORDS: usize = size_of::<Slot>() / 8;
const INO: usize = offset_of!(Slot, ino) / 8;
const STATE: usize = offset_of!(Slot, state) / 8;
const MORE: usize = offset_of!(Slot, more) / 8;
const BITS: usize = offset_of!(Slot, blocks) / 8;
const BLOCK: u64 = 1 << BLOCK_SHIFT;

/// A slot's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotIndex(pub u32);

/// A view of the table; `words` are the slots, `blocks` the words that continue the bits of large files.
#[derive(Debug, Clone, Copy)]
pub struct Slots<'a> {
    words: &'a [AtomicU64],
    blocks: &'a [AtomicU64],
    mask: u32,
}

impl<'a> Slots<'a> {
    /// A table over shared memory; the number of slots is a power of two.
    #[must_use]
    pub fn new(words: &'a [AtomicU64], blocks: &'a [AtomicU64]) -> Slots<'a> {
        let slots = words.len() / SLOT_WORDS;
        assert!(slots.is_power_of_two(), "the number of slots is a power of two");
        Slots { words, blocks, mask: u32::try_from(slots - 1).unwrap_or(u32::MAX) }
    }

    /// How many slots there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.mask + 1
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    #[inline]
    fn word(&self, slot: SlotIndex, word: usize) -> &'a AtomicU64 {
        &self.words[slot.0 as usize * SLOT_WORDS + word]
    }

    /// The slot of an inode.
    #[inline]
    #[must_use]
    pub fn find(&self, ino: u64) -> Option<SlotIndex> {
        let start = home(ino, self.mask);
        for i in 0..MAX_PROBES {
            let slot = SlotIndex(start.wrapping_add(i) & self.mask);
            match self.word(slot, INO).load(Acquire) {
                there if there == ino => return Some(slot),
                SLOT_EMPTY => return None,
                _ => {}
            }
        }
        None
    }

    /// Adds an inode, clean, with bits for `size` bytes of content taken from `blocks` by `room`.
    ///
    /// # Errors
    /// [`Full`] when no slot near its home is free.
    pub fn add(&self, ino: u64, more: u64) -> Result<SlotIndex, Full> {
        assert!(ino != SLOT_EMPTY && ino != SLOT_GONE, "no inode has this number");
        if let Some(slot) = self.find(ino) {
            return Ok(slot);
        }
        let start = home(ino, self.mask);
        for i in 0..MAX_PROBES {
            let slot = SlotIndex(start.wrapping_add(i) & self.mask);
            if matches!(self.word(slot, INO).load(Acquire), SLOT_EMPTY | SLOT_GONE) {
                self.word(slot, STATE).store(0, Relaxed);
                self.word(slot, MORE).store(more, Relaxed);
                for w in 0..INLINE_WORDS {
                    self.word(slot, BITS + w).store(0, Relaxed);
                }
                self.word(slot, INO).store(ino, Release);
                return Ok(slot);
            }
        }
        Err(Full)
    }

    /// Forgets an inode. A program that has just found the slot may still set a bit in it; if the slot is given to another inode
    /// meanwhile, that one is dirty once too often, which is harmless.
    pub fn remove(&self, ino: u64) {
        if let Some(slot) = self.find(ino) {
            self.word(slot, INO).store(SLOT_GONE, Release);
        }
    }

    /// The inode in a slot, if there is one.
    #[inline]
    #[must_use]
    pub fn ino(&self, slot: SlotIndex) -> Option<Ino> {
        match self.word(slot, INO).load(Acquire) {
            SLOT_EMPTY | SLOT_GONE => None,
            ino => Some(Ino(ino)),
        }
    }

    /// The state bits of a slot.
    #[inline]
    #[must_use]
    pub fn state(&self, slot: SlotIndex) -> u64 {
        self.word(slot, STATE).load(SeqCst)
    }

    /// Sets or clears MAPPED (T4).
    pub fn set_mapped(&self, slot: SlotIndex, mapped: bool) {
        if mapped {
            self.word(slot, STATE).fetch_or(MAPPED, AcqRel);
        } else {
            self.word(slot, STATE).fetch_and(!MAPPED, AcqRel);
        }
    }

    /// The extension of a slot: first word and number of words.
    fn more(&self, slot: SlotIndex) -> Range<usize> {
        let more = self.word(slot, MORE).load(Acquire);
        let (first, words) = ((more >> 32) as usize, (more & 0xffff_ffff) as usize);
        first..first + words
    }

    /// The first word of a slot's extension.
    #[must_use]
    pub fn extension_start(&self, slot: SlotIndex) -> usize {
        self.more(slot).start
    }

    /// First byte behind the blocks a slot has bits for.
    #[must_use]
    pub fn covered(&self, slot: SlotIndex) -> u64 {
        (INLINE_BLOCKS + self.more(slot).len() as u64 * 64) << BLOCK_SHIFT
    }

    /// Takes the state bits; what was dirty is clean afterwards and the caller answers for it. No allocation, no lock:
    /// the window uses it too. The block bits follow with [`Slots::take_word`].
    #[inline]
    #[must_use]
    pub fn take_state(&self, slot: SlotIndex) -> u64 {
        self.word(slot, STATE).fetch_and(!DIRT, SeqCst)
    }

    /// How many words of block bits a slot has.
    #[inline]
    #[must_use]
    pub fn bit_words(&self, slot: SlotIndex) -> usize {
        INLINE_WORDS + self.more(slot).len()
    }

    #[inline]
    fn bit_word(&self, slot: SlotIndex, w: usize) -> &'a AtomicU64 {
        if w < INLINE_WORDS {
            self.word(slot, BITS + w)
        } else {
            &self.blocks[self.more(slot).start + w - INLINE_WORDS]
        }
    }

    /// Takes the bits of one word of 64 blocks.
    #[inline]
    #[must_use]
    pub fn take_word(&self, slot: SlotIndex, w: usize) -> u64 {
        let word = self.bit_word(slot, w);
        // Mostly clean: a plain load spares the locked exchange. Not a lost bit: one that is set after this
        // load comes with a state that is set after our taking it, and queues the slot again.
        if word.load(SeqCst) == 0 { 0 } else { word.swap(0, SeqCst) }
    }

    /// Makes bits dirty again without queueing the slot; see [`Slots::put_state`].
    #[inline]
    pub fn put_word(&self, slot: SlotIndex, w: usize, bits: u64) {
        self.bit_word(slot, w).fetch_or(bits, SeqCst);
    }

    /// Makes state bits dirty again. True if the caller has to see to it that the slot is looked at: it was not queued.
    #[inline]
    #[must_use]
    pub fn put_state(&self, slot: SlotIndex, state: u64) -> bool {
        self.word(slot, STATE).fetch_or(state & DIRT | QUEUED, SeqCst) & QUEUED == 0
    }

    /// Takes everything dirty of a slot, as a value.
    #[must_use]
    pub fn take(&self, slot: SlotIndex) -> Option<Dirty> {
        let state = self.take_state(slot);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for w in 0..self.bit_words(slot) {
            let mut bits = self.take_word(slot, w);
            while bits != 0 {
                let first = bits.trailing_zeros();
                let run = (bits >> first).trailing_ones();
                let start = (w as u64 * 64 + u64::from(first)) * BLOCK;
                let end = start + u64::from(run) * BLOCK;
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
                bits &= if first + run == 64 { 0 } else { !0 << (first + run) };
            }
        }
        let ino = self.ino(slot)?;
        let dirty = Dirty {
            ino,
            meta: state & META != 0,
            whole: state & WHOLE != 0,
            direct: state & DIRECT != 0,
            tail: (state & TAIL != 0).then(|| self.covered(slot)),
            ranges,
        };
        (dirty.meta || dirty.whole || dirty.direct || dirty.tail.is_some() || !dirty.ranges.is_empty())
            .then_some(dirty)
    }

    /// Makes what was taken dirty again (T3). True if the slot has to be remembered by the caller.
    #[must_use]
    pub fn put(&self, slot: SlotIndex, dirty: &Dirty) -> bool {
        let mut state = 0;
        for range in &dirty.ranges {
            for block in range.start >> BLOCK_SHIFT..range.end.div_ceil(BLOCK) {
                let w = usize::try_from(block / 64).unwrap_or(usize::MAX);
                if w < self.bit_words(slot) {
                    self.put_word(slot, w, 1 << (block % 64));
                } else {
                    state |= TAIL;
                }
            }
        }
        for (flag, bit) in
            [(dirty.meta, META), (dirty.whole, WHOLE), (dirty.direct, DIRECT), (dirty.tail.is_some(), TAIL)]
        {
            if flag {
                state |= bit;
            }
        }
        self.put_state(slot, state)
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is what is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn memory(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn large_files_have_bits_in_the_extension_and_a_tail_behind() -> Result<(), Full> {
        let (words, blocks) = (memory(64 * SLOT_WORDS), memory(10));
        let slots = Slots::new(&words, &blocks);
        let slot = slots.add(7, 3 << 32 | 2)?;
        assert_eq!(slots.covered(slot), (INLINE_BLOCKS + 128) * BLOCK);
        let far = (INLINE_BLOCKS + 65) * BLOCK;
        let dirty = Dirty {
            ino: Ino(7),
            meta: false,
            whole: false,
            direct: false,
            tail: None,
            ranges: vec![far..far + BLOCK],
        };
        assert!(slots.put(slot, &dirty));
        assert_eq!(blocks[4].load(SeqCst), 2);
        assert_eq!(slots.take(slot), Some(dirty));
        assert_eq!(slots.take(slot), None);
        let behind = Dirty {
            ino: Ino(7),
            meta: true,
            whole: false,
            direct: false,
            tail: None,
            ranges: vec![1 << 40..(1 << 40) + 1],
        };
        assert!(slots.put(slot, &behind));
        assert_eq!(slots.take(slot).and_then(|d| d.tail), Some(slots.covered(slot)));
        Ok(())
    }

    proptest! {
        /// The table against a map: whatever is added, removed and marked is found as it should be, or `Full` is said.
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((0u8..4, 1u64..400, 0u64..INLINE_BLOCKS), 1..400)) {
            let (words, blocks) = (memory(256 * SLOT_WORDS), memory(1));
            let slots = Slots::new(&words, &blocks);
            let mut model: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
            for (op, ino, block) in ops {
                match op {
                    0 | 1 => if slots.add(ino, 0).is_ok() { model.entry(ino).or_default(); } else { prop_assert!(!model.contains_key(&ino)); },
                    2 => { slots.remove(ino); model.remove(&ino); }
                    _ => if let Some(slot) = slots.find(ino) {
                        let range = vec![block * BLOCK..(block + 1) * BLOCK];
                        let _ = slots.put(slot, &Dirty { ino: Ino(ino), meta: false, whole: false, direct: false, tail: None, ranges: range });
                        model.entry(ino).or_default().insert(block);
                    },
                }
            }
            for (ino, blocks) in model {
                let slot = slots.find(ino).expect("an added inode is found");
                let got: BTreeSet<u64> = slots.take(slot).map(|d| d.ranges).unwrap_or_default().into_iter()
                    .flat_map(|r| r.start / BLOCK..r.end / BLOCK).collect();
                prop_assert_eq!(got, blocks);
            }
        }
    }
}
