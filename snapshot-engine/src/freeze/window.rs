//! The window: from the gate going up to the gate coming down.
//!
//! What may run between `raise` and `lower` is in this file and in [`super::reader`], nothing else: no allocation, no lock, no log, no sleep, and
//! memory that was touched before ([`super::arena`]). Whatever happens in between, the gate comes down: `Raised` lowers on drop, the fence
//! also falls by itself at its deadline (G3), and the freezer has its watchdog (G4).
//!
//! Why the copy is one instant (G1). Let `s` be the stamp read before the look that found nothing in flight, and `e` the one read at the end, equal to it.
//! * A call that ended before the drain is whole: its events were recorded before it was counted out, so its dirt was taken before or is taken now,
//!   and the bytes are read after it ended.
//! * No call was under way after `s` (in flight = 0) and none had begun by `e` (`entered` is counted before a call does anything): so no call is half in.
//! * A call that begins after `e` is absent: everything was read before `e`.
//! * What was read before the gate went up ([`super::early`]) has had no event since it was taken, or it is read again: it is as good as read now.
//! * Changes by others (outside writers, direct I/O, write-back) raise events: equal event counts mean that none happened, but for such as found their dirt
//!   recorded and not yet taken, and were read with it.

use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};

use super::arena::Arena;
use super::freezer::{Freezer, Frozen};
use super::gate::{Abandoned, Between, Gate, Pause};
use super::reader::{Hot, Reader, now, take};
use crate::model::nanos::Nanos;
use crate::track::Live;
use crate::track::live::Stamp;
use crate::track::slots::{SlotIndex, Slots};

/// What holds the writers in this attempt.
#[derive(Debug, Clone, Copy)]
pub enum Hold<'a> {
    /// Nothing.
    None,
    /// Nothing of ours: its owner has paused the container, everybody stands still already.
    Paused,
    /// The fence.
    Fence,
    /// The freezer, opened and armed.
    Freezer(&'a Freezer),
}

impl Hold<'_> {
    /// The gate it is.
    #[must_use]
    pub fn gate(&self) -> Gate {
        match self {
            Hold::None | Hold::Paused => Gate::None,
            Hold::Fence => Gate::Fence,
            Hold::Freezer(_) => Gate::Freezer,
        }
    }
}

/// Everything an attempt works on, made ready before.
pub struct Window<'a, 'h> {
    /// The slots that became dirty.
    pub ring: &'a mut RingBuf<MapData>,
    /// The control page.
    pub live: &'a Live,
    /// The watched inodes.
    pub slots: Slots<'a>,
    /// The inodes made ready.
    pub hot: &'a Hot<'h>,
    /// Where the residual goes. What it holds already was taken for this attempt and is captured with the rest.
    pub arena: &'a mut Arena,
    /// The longest window (G5).
    pub budget: Duration,
    /// How long calls under way may take to end.
    pub drain: Duration,
    /// The counters when it was asked whether somebody can change the tree without a counted call.
    pub asked: Stamp,
    /// [`Live::losses`] when every slot was looked at last.
    pub losses_seen: u64,
    /// How long the capture alone took, once there was one.
    pub captured_in: Option<Duration>,
    /// A planted fault, for tests: the residual is read before the gate is up (a broken G1).
    pub early_read: bool,
    /// Called once the gate is up and once before it comes down; for tests, which kill or stop the engine there.
    pub probe: Option<fn(Moment)>,
}

/// Moments of a window, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The gate is up.
    Raised,
    /// Nothing is under way.
    Drained,
    /// The residual is in the arena.
    Captured,
    /// The gate is still up; next it comes down.
    Validated,
}

/// A gate that is up; comes down on drop.
struct Raised<'a> {
    live: &'a Live,
    fence: bool,
    frozen: Option<Frozen<'a>>,
}

impl<'a> Raised<'a> {
    fn raise(
        hold: Hold<'a>,
        live: &'a Live,
        deadline: u64,
        budget: Duration,
    ) -> Result<Raised<'a>, Abandoned> {
        let mut raised = Raised { live, fence: false, frozen: None };
        match hold {
            Hold::None | Hold::Paused => {}
            Hold::Fence => {
                raised.fence = true;
                live.raise_fence(deadline);
            }
            Hold::Freezer(freezer) => {
                raised.frozen =
                    Some(freezer.freeze(Instant::now() + budget).map_err(|_| Abandoned::NotFrozen)?);
            }
        }
        Ok(raised)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        if self.fence {
            self.live.lower_fence();
        }
        // Thaws; an error is logged there, and the watchdog stands behind it.
        self.frozen = None;
    }
}

impl Window<'_, '_> {
    /// One attempt. When it returns the gate is down, with either result; the arena holds what was taken.
    ///
    /// # Errors
    /// Why it was abandoned: the caller puts back what the arena took (T3).
    pub fn attempt(&mut self, hold: Hold<'_>) -> Result<Pause, Abandoned> {
        self.live.warm();
        let began = now();
        let deadline = began + u64::try_from(self.budget.as_nanos()).unwrap_or(u64::MAX / 2);
        if self.early_read {
            self.read(hold, deadline)?;
        }
        let raised = Raised::raise(hold, self.live, deadline, self.budget)?;
        self.at(Moment::Raised);
        let inside = self.inside(hold, began, deadline);
        drop(raised);
        let ended = now();
        let between = inside?;
        let window = Duration::from_nanos(ended - began);
        // Over all the same, in a descheduled moment at the very end: the copy is right, but the promise was not kept.
        if hold.gate() != Gate::None && window > self.budget {
            return Err(Abandoned::Deadline);
        }
        Ok(Pause {
            gate: hold.gate(),
            window,
            longest_stop: if hold.gate() == Gate::Freezer { window } else { Duration::ZERO },
            drain: Duration::from_nanos(between.from.0 - began),
            held: 0,
            between,
        })
    }

    #[inline]
    fn at(&self, moment: Moment) {
        if let Some(probe) = self.probe {
            probe(moment);
        }
    }

    fn inside(&mut self, hold: Hold<'_>, began: u64, deadline: u64) -> Result<Between, Abandoned> {
        let gate = hold.gate();
        let (drained, stamp) = self.drained(gate, began)?;
        self.at(Moment::Drained);
        // T4: whether somebody can change the tree without a counted call was asked before; the answer must still hold.
        let counted = !matches!(hold, Hold::Freezer(_) | Hold::Paused);
        if stamp.mappings != self.asked.mappings || counted && stamp.uring != self.asked.uring {
            return Err(Abandoned::Asked);
        }
        // T1: dirt that the ring does not name: a round looks at every slot.
        if self.live.losses() != self.losses_seen {
            return Err(Abandoned::TooMuch);
        }
        if !self.early_read {
            self.read(hold, deadline)?;
        }
        self.captured_in = Some(Duration::from_nanos(now() - drained));
        self.at(Moment::Captured);
        let captured = now();
        // G2: still nobody under way, nothing begun, nothing changed, nobody let through.
        if self.live.in_flight() != 0 || self.live.stamp() != stamp {
            return Err(Abandoned::Disturbed);
        }
        if gate == Gate::Fence && self.live.expired() != 0 {
            return Err(Abandoned::Expired);
        }
        self.at(Moment::Validated);
        Ok(Between { from: Nanos(drained), to: Nanos(captured) })
    }

    /// Takes what is dirty now, and reads it with what was taken before.
    fn read(&mut self, hold: Hold<'_>, deadline: u64) -> Result<(), Abandoned> {
        while let Some(record) = self.ring.next() {
            if let Some(index) = record.first_chunk::<4>() {
                take(self.arena, self.slots, SlotIndex(u32::from_ne_bytes(*index)))?;
            }
        }
        let nobody_stores = !matches!(hold, Hold::None | Hold::Fence);
        let (slots, hot, live) = (self.slots, self.hot, self.live);
        Reader { arena: self.arena, slots, hot, live, nobody_stores, deadline, early: false }.capture()
    }

    /// Waits until no call is under way; spins, as the wait is shorter than any sleep. When that was, and the stamp of before: a call that began after
    /// the stamp shows in it later, one that began before it was under way or over, so none slips in between.
    fn drained(&self, gate: Gate, began: u64) -> Result<(u64, Stamp), Abandoned> {
        let frozen = now();
        // The frozen have left their calls; only tasks outside the cgroup may still be inside one.
        let from = if gate == Gate::Freezer { frozen } else { began };
        let patience =
            if gate == Gate::None { 0 } else { u64::try_from(self.drain.as_nanos()).unwrap_or(u64::MAX) };
        loop {
            let stamp = self.live.stamp();
            if self.live.in_flight() == 0 {
                return Ok((now(), stamp));
            }
            if now() - from > patience {
                return Err(Abandoned::NotDrained);
            }
            std::hint::spin_loop();
        }
    }
}
