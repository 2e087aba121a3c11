//! Reading before the gate goes up, so that hardly anything is left for the window.
//!
//! ```text
//!   take ─► settle ─► read ─┬─ became dirty meanwhile? once more, three turns at most ─► gate up: take, read what is left
//!                           └─ cannot be read early: waits for the window
//! ```
//!
//! Why what was read early is as good as read inside the window (G1). It is what a round does: its dirt was taken, then every call that was
//! under way ended (T2), then it was read. So a change that was not read has an event behind the taking. That event queued the inode again, and
//! the window, which has seen all events of the calls that ended before it, reads it again. What this does not hold for waits for the window:
//! * names of inodes nobody watches yet, and so the directories that have such names: there would be no event;
//! * files that are mapped shared and writable (T4), and those under direct I/O;
//! * everything, while somebody may change the tree without a counted call (`Allowed::freezer_only`).
//!
//! A failed attempt forgets what was read and makes all of it dirty again (T3).
//!
//! It helps twice: the residual that writers wait for is what was dirtied in the last microseconds instead of since the last round, and
//! what the window does read it reads with warm caches, by code that ran a moment ago. If nothing is dirty one file is read for that
//! alone and forgotten: with cold caches its calls take five times as long.

use std::time::Duration;

use super::arena::Arena;
use super::gate::Abandoned;
use super::reader::{Hot, Reader, now, take};
use crate::track::Tracker;
use crate::track::slots::SlotIndex;

/// Who writes without a pause makes things dirty as fast as they are read.
const TURNS: u32 = 3;
/// Who stays inside a call for longer would only hold up the attempt.
const SETTLE: Duration = Duration::from_micros(500);
/// We run at real-time priority: no longer than this at a time.
const AT_MOST: Duration = Duration::from_millis(2);

/// Takes what the ring names.
///
/// # Errors
/// When the arena is full; the slot that did not fit is noted there.
pub(super) fn take_ring(tracker: &mut Tracker, arena: &mut Arena) -> Result<(), Abandoned> {
    let (ring, _, slots) = tracker.window_parts();
    while let Some(record) = ring.next() {
        if let Some(index) = record.first_chunk::<4>() {
            take(arena, slots, SlotIndex(u32::from_ne_bytes(*index)))?;
        }
    }
    Ok(())
}

/// Reads of what was taken all that can be read early, and of what becomes dirty meanwhile. What cannot, and what there was no time for, waits.
///
/// # Errors
/// As [`take_ring`].
pub(super) fn read(
    tracker: &mut Tracker,
    arena: &mut Arena,
    hot: &Hot<'_>,
    budget: Duration,
) -> Result<(), Abandoned> {
    let time = u64::try_from(budget.min(AT_MOST).as_nanos()).unwrap_or(0);
    let deadline = now() + time;
    if arena.todo.is_empty() {
        let (_, live, slots) = tracker.window_parts();
        Reader { arena, slots, hot, live, nobody_stores: false, deadline, early: true }.rehearse();
    }
    for _ in 0..TURNS {
        if arena.todo.is_empty() || now() >= deadline || !tracker.settle_within(SETTLE) {
            break;
        }
        let (_, live, slots) = tracker.window_parts();
        let mut reader = Reader { arena, slots, hot, live, nobody_stores: false, deadline, early: true };
        reader.capture_early();
        arena.turn += 1;
        take_ring(tracker, arena)?;
    }
    arena.early = arena.mark();
    Ok(())
}
