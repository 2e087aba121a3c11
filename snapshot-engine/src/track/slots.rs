//! The table of watched inodes, shared with the programs.
//!
//! ```text
//!   add:  block words and state first, the inode number last     a program never finds a half-made slot
//!   take: state first, then the slot's words, then those of      a bit is taken now, or its slot is queued again (T1)
//!         `blocks` they stand for
//!   put:  the other way round, state with QUEUED last            as the programs do (T3)
//! ```
//!
//! The table is open-addressed with linear probing and at most [`MAX_PROBES`] steps, so that a program's look-up is bounded.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use snapshot_ebpf::{
    BLOCK_SHIFT, DIRECT, DIRT, FINE_SHIFT, Fine, INLINE_WORDS, MAPPED, MAX_PROBES, META, QUEUED, SLOT_EMPTY,
    SLOT_GONE, Slot, TAIL, WHOLE, home,
};

use crate::model::dirty::{Dirty, Full, Ino};

const SLOT_WORDS: usize = size_of::<Slot>() / 8;
const INO: usize = offset_of!(Slot, ino) / 8;
const STATE: usize = offset_of!(Slot, state) / 8;
const MORE: usize = offset_of!(Slot, more) / 8;
const BITS: usize = offset_of!(Slot, blocks) / 8;

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

    /// Adds an inode, clean; `more` is its [`Fine`], whose words are 0, or 0.
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

    /// Sets MAPPED (T4).
    pub fn set_mapped(&self, slot: SlotIndex) {
        self.word(slot, STATE).fetch_or(MAPPED, SeqCst);
    }

    /// Clears MAPPED (T4). True if it was set.
    #[must_use]
    pub fn clear_mapped(&self, slot: SlotIndex) -> bool {
        self.word(slot, STATE).fetch_and(!MAPPED, SeqCst) & MAPPED != 0
    }

    #[inline]
    fn fine(&self, slot: SlotIndex) -> Fine {
        Fine(self.word(slot, MORE).load(Acquire))
    }

    /// First and number of the words of BLOCKS a slot has.
    #[must_use]
    pub fn extension(&self, slot: SlotIndex) -> (usize, usize) {
        let fine = self.fine(slot);
        (fine.first() as usize, fine.words() as usize)
    }

    /// Bytes a slot's bits stand for, as a shift.
    #[inline]
    #[must_use]
    pub fn block_shift(&self, slot: SlotIndex) -> u32 {
        if self.fine(slot).words() == 0 { BLOCK_SHIFT } else { FINE_SHIFT }
    }

    /// How many words of block bits a slot has.
    #[must_use]
    fn bit_words(&self, slot: SlotIndex) -> usize {
        match self.fine(slot).words() {
            0 => INLINE_WORDS,
            words => words as usize,
        }
    }

    /// First byte behind the blocks a slot has bits for.
    #[must_use]
    pub fn covered(&self, slot: SlotIndex) -> u64 {
        (self.bit_words(slot) as u64 * 64) << self.block_shift(slot)
    }

    /// Takes the state bits; what was dirty is clean afterwards and the caller answers for it. No allocation, no lock:
    /// the window uses it too. The block bits follow with [`Slots::take_word`].
    #[inline]
    #[must_use]
    pub fn take_state(&self, slot: SlotIndex) -> u64 {
        self.word(slot, STATE).fetch_and(!DIRT, SeqCst)
    }

    /// Takes the bits of a slot, a word of 64 blocks at a time and in order, but for words without any. No allocation, no lock.
    #[inline]
    pub fn take_bits(&self, slot: SlotIndex, mut each: impl FnMut(usize, u64)) {
        let fine = self.fine(slot);
        for w in 0..INLINE_WORDS {
            let mut inside = take_word(self.word(slot, BITS + w));
            if fine.words() == 0 {
                if inside != 0 {
                    each(w, inside);
                }
                continue;
            }
            while inside != 0 {
                let group = w * 64 + inside.trailing_zeros() as usize;
                inside &= inside - 1;
                let last = ((group + 1) << fine.shift()).min(fine.words() as usize);
                for word in group << fine.shift()..last {
                    let bits = take_word(&self.blocks[fine.first() as usize + word]);
                    if bits != 0 {
                        each(word, bits);
                    }
                }
            }
        }
    }

    /// Makes bits dirty again without queueing the slot; see [`Slots::put_state`].
    #[inline]
    pub fn put_word(&self, slot: SlotIndex, w: usize, bits: u64) {
        let fine = self.fine(slot);
        if fine.words() == 0 {
            self.word(slot, BITS + w).fetch_or(bits, SeqCst);
            return;
        }
        self.blocks[fine.first() as usize + w].fetch_or(bits, SeqCst);
        let group = w >> fine.shift();
        self.word(slot, BITS + group / 64).fetch_or(1 << (group % 64), SeqCst);
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
        let shift = self.block_shift(slot);
        self.take_bits(slot, |w, mut bits| {
            while bits != 0 {
                let first = bits.trailing_zeros();
                let run = (bits >> first).trailing_ones();
                let start = (w as u64 * 64 + u64::from(first)) << shift;
                let end = start + (u64::from(run) << shift);
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
                bits &= if first + run == 64 { 0 } else { !0 << (first + run) };
            }
        });
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
        let shift = self.block_shift(slot);
        for range in &dirty.ranges {
            for block in range.start >> shift..range.end.div_ceil(1 << shift) {
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

/// Mostly clean: a plain load spares the locked exchange. Not a lost bit: one that is set after this load comes with a state that is set after
/// our taking it, and queues the slot again.
#[inline]
fn take_word(word: &AtomicU64) -> u64 {
    if word.load(SeqCst) == 0 { 0 } else { word.swap(0, SeqCst) }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is what is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use snapshot_ebpf::INLINE_BLOCKS;
    use std::collections::{BTreeMap, BTreeSet};

    fn memory(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn large_files_have_a_bit_a_page_and_a_tail_behind() -> Result<(), Full> {
        let (words, blocks) = (memory(64 * SLOT_WORDS), memory(2000));
        let slots = Slots::new(&words, &blocks);
        let slot = slots.add(7, Fine::new(3, 1000).0)?;
        assert_eq!((slots.covered(slot), slots.extension(slot)), (1000 << 18, (3, 1000)));
        let dirty =
            |ranges, meta| Dirty { ino: Ino(7), meta, whole: false, direct: false, tail: None, ranges };
        let far = 999 << 18;
        let written = dirty(vec![0..8192, far..far + 4096], false);
        assert!(slots.put(slot, &written));
        assert_eq!((blocks[3].load(SeqCst), blocks[3 + 999].load(SeqCst)), (3, 1));
        assert_eq!(slots.take(slot), Some(written));
        assert_eq!(slots.take(slot), None);
        assert!(slots.put(slot, &dirty(vec![1 << 40..(1 << 40) + 1], true)));
        assert_eq!(slots.take(slot).and_then(|d| d.tail), Some(slots.covered(slot)));
        Ok(())
    }

    #[test]
    fn every_word_has_a_summary_bit_inside_the_slot() {
        for words in [1, 2, 319, 320, 321, 640, 641, 20_000, Fine::MAX_WORDS] {
            let fine = Fine::new(9, words);
            assert_eq!((fine.first(), fine.words()), (9, words));
            assert!((words - 1) >> fine.shift() < INLINE_BLOCKS, "{words}");
            assert!(fine.shift() == 0 || (words - 1) >> (fine.shift() - 1) >= INLINE_BLOCKS, "{words}");
        }
    }

    const BLOCK: u64 = 1 << BLOCK_SHIFT;

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
