//! Which gate is tried, how often, and when another pre-copy round is the better idea.
//!
//! ```text
//!   look ahead: take and read what is dirty now (`early`), estimate the rest ── too long ──► another round (G5)
//!        │
//!        ├─ none:    at most `none_tries` looks, nobody is held
//!        ├─ fence:   at most `fence_tries`, `pause` apart: a writer that was descheduled inside its call needs a core to leave it
//!        └─ freezer: once more with everybody stopped
//!   Cold, TooMuch, Estimate, Asked end the attempts at once: a round makes them succeed. So does Deadline, but for the freezer:
//!   there it was mostly the tasks' way into it that took so long, and the next one may be quicker
//! ```

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use snapshot_ebpf::MAPPED;

use super::arena::{Arena, Kin, TakenSlot};
use super::early;
use super::estimate::{Estimate, Work};
use super::freezer::Freezer;
use super::gate::{Abandoned, Gate, Pause};
use super::reader::{Hot, take};
use super::window::{Hold, Moment, Window};
use crate::kernel::scheduling::RealTime;
use crate::model::dirty::Ino;
use crate::model::options::GateChoice;
use crate::track::Tracker;
use crate::track::live::Stamp;
use crate::track::slots::Slots;

/// How windows are attempted.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Which gates may be used.
    pub choice: GateChoice,
    /// The longest window.
    pub budget: Duration,
    /// The longest window of the fence, whatever the budget.
    pub fence_max: Duration,
    /// How long calls under way may take to end under the fence.
    pub drain: Duration,
    /// Looks without a gate.
    pub none_tries: u32,
    /// Attempts with the fence.
    pub fence_tries: u32,
    /// Between two attempts.
    pub pause: Duration,
    /// Bytes the arena has; `None`: what can be read within the budget.
    pub arena: Option<usize>,
    /// For tests: see [`Window::probe`].
    pub probe: Option<fn(Moment)>,
    /// For tests: see [`Window::early_read`].
    pub early_read: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            choice: GateChoice::Auto,
            budget: Duration::from_millis(1),
            fence_max: FENCE_MAX,
            drain: Duration::from_micros(15),
            none_tries: 3,
            fence_tries: 20,
            pause: Duration::from_micros(50),
            arena: None,
            probe: None,
            early_read: false,
        }
    }
}

/// A held writer spins with preemption off: no longer than this. Only tests on emulated processors allow more.
pub const FENCE_MAX: Duration = Duration::from_millis(2);

/// What the target allows right now.
#[derive(Clone, Copy)]
pub struct Allowed<'a> {
    /// Somebody could store without a call (a shared mapping, io_uring), or could not be counted: none and fence cannot hold him.
    pub freezer_only: bool,
    /// Its owner has paused the container: it needs no gate, whatever was chosen, and must not be thawed.
    pub paused: bool,
    /// The counters when `freezer_only` was found out.
    pub asked: Stamp,
    /// The directories that named an inode when the last round ended.
    pub kin: &'a dyn Fn(Ino) -> Vec<Ino>,
    /// The container's freezer, if it has one of its own.
    pub freezer: Option<&'a Freezer>,
}

/// How attempts ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There is a cut: the residual is in the arena.
    Cut(Pause),
    /// Not now: another pre-copy round, then again.
    Round(Abandoned),
    /// No gate that may be used could do it.
    NoGate(Abandoned),
}

/// The attempts for one snapshot.
#[derive(Debug)]
pub struct Attempts {
    policy: Policy,
    arena: Arena,
    estimate: Estimate,
    /// Windows attempted so far.
    pub count: u32,
    /// Why attempts were abandoned, by gate.
    pub abandoned: BTreeMap<(Gate, String), u32>,
    /// The stops of abandoned attempts: the container felt them too (G6).
    pub stops: Vec<(Gate, Duration)>,
}

/// Bytes the arena has for a budget: what can be read in it, and no less than 4 MiB.
fn arena_size(budget: Duration) -> usize {
    usize::try_from(budget.as_micros().saturating_mul(16 << 10))
        .unwrap_or(usize::MAX)
        .clamp(4 << 20, 256 << 20)
}

impl Attempts {
    /// Makes everything ready for windows on a tracker.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(policy: Policy, tracker: &Tracker) -> io::Result<Attempts> {
        Ok(Attempts {
            policy,
            arena: Arena::new(
                policy.arena.unwrap_or_else(|| arena_size(policy.budget)),
                tracker.slots().len(),
            )?,
            estimate: Estimate::default(),
            count: 0,
            abandoned: BTreeMap::new(),
            stops: Vec::new(),
        })
    }

    /// Which gates may be used, and for how long, from the next attempt on. The arena stays as large as it is.
    pub fn choose(&mut self, choice: GateChoice, budget: Duration) {
        self.policy = Policy { choice, budget, ..self.policy };
    }

    /// What was captured.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Tries for a cut. On return no gate is up, with every outcome; unless it is `Cut`, everything that was dirty still is (T3).
    ///
    /// # Errors
    /// When the freezer cannot be armed.
    pub fn run(&mut self, tracker: &mut Tracker, hot: &Hot<'_>, allowed: Allowed<'_>) -> io::Result<Outcome> {
        // Best effort; see RealTime::raise.
        let _priority = RealTime::raise();
        let one_cpu = std::thread::available_parallelism().map_or(1, usize::from) < 2;
        let mut last = Abandoned::Mapped;
        let mut gates: Vec<(Hold<'_>, u32)> = Vec::new();
        if allowed.paused {
            gates.push((Hold::Paused, self.policy.none_tries));
        } else if !allowed.freezer_only {
            gates.push((Hold::None, self.policy.none_tries));
            // A spinning writer would keep the engine off a single CPU.
            if !one_cpu {
                gates.push((Hold::Fence, self.policy.fence_tries));
            }
        }
        if let (Some(freezer), false) = (allowed.freezer, allowed.paused) {
            gates.push((Hold::Freezer(freezer), 3));
        }
        gates.retain(|(hold, _)| allowed.paused || self.policy.choice.allows(hold.gate()));
        for (hold, tries) in gates {
            for _ in 0..tries {
                match self.attempt(tracker, hot, hold, &allowed)? {
                    Ok(pause) => return Ok(Outcome::Cut(pause)),
                    Err(
                        why @ (Abandoned::Cold | Abandoned::TooMuch | Abandoned::Estimate | Abandoned::Asked),
                    ) => {
                        return Ok(Outcome::Round(why));
                    }
                    Err(why @ Abandoned::Deadline) if !matches!(hold, Hold::Freezer(_)) => {
                        return Ok(Outcome::Round(why));
                    }
                    Err(why) => {
                        last = why;
                        if why == Abandoned::Mapped {
                            break;
                        }
                        if !matches!(hold, Hold::None | Hold::Paused) {
                            std::thread::sleep(self.policy.pause);
                        }
                    }
                }
            }
        }
        Ok(Outcome::NoGate(last))
    }

    fn attempt(
        &mut self,
        tracker: &mut Tracker,
        hot: &Hot<'_>,
        hold: Hold<'_>,
        allowed: &Allowed<'_>,
    ) -> io::Result<Result<Pause, Abandoned>> {
        let Policy { budget, fence_max, .. } = self.policy;
        let budget = if matches!(hold, Hold::Fence) { budget.min(fence_max) } else { budget };
        let result = match self.look_ahead(tracker, hot, budget, allowed) {
            Ok(()) => {
                self.find_kin(tracker, hot, allowed.kin);
                let armed = if let Hold::Freezer(freezer) = hold {
                    if let Err(e) = freezer.arm() {
                        self.put_back(tracker);
                        return Err(e);
                    }
                    Some(freezer)
                } else {
                    None
                };
                self.count += 1;
                tracker.live().clear_felt();
                let losses_seen = tracker.losses_seen();
                let (ring, live, slots) = tracker.window_parts();
                let mut window = Window {
                    ring,
                    live,
                    slots,
                    hot,
                    arena: &mut self.arena,
                    budget,
                    drain: if matches!(hold, Hold::Freezer(_)) {
                        self.policy.drain * 10
                    } else {
                        self.policy.drain
                    },
                    asked: allowed.asked,
                    losses_seen,
                    captured_in: None,
                    early_read: self.policy.early_read,
                    probe: self.policy.probe,
                };
                let began = super::reader::now();
                let result = window.attempt(hold);
                let captured_in = window.captured_in;
                let took = Duration::from_nanos(super::reader::now() - began);
                if let Some(freezer) = armed {
                    freezer.disarm();
                }
                if let Some(took) = captured_in {
                    self.learn(took);
                }
                self.measure(tracker, hold, took, result)
            }
            Err(why) => Err(why),
        };
        if let Err(why) = result {
            *self.abandoned.entry((hold.gate(), why.to_string())).or_default() += 1;
            self.put_back(tracker);
        }
        Ok(result)
    }

    /// Takes what is dirty already, outside the window, reads what of it can be read early, and asks whether the rest can be captured within
    /// the budget (G5).
    fn look_ahead(
        &mut self,
        tracker: &mut Tracker,
        hot: &Hot<'_>,
        budget: Duration,
        allowed: &Allowed<'_>,
    ) -> Result<(), Abandoned> {
        self.arena.reset();
        let again = tracker.take_again();
        let (_, _, slots) = tracker.window_parts();
        let mut result = Ok(());
        for &slot in &again {
            result = result.and_then(|()| take(&mut self.arena, slots, slot));
        }
        result = result.and_then(|()| early::take_ring(tracker, &mut self.arena));
        // Early reading relies on events and on calls being counted, and a container that stands still needs none.
        if result.is_ok() && !allowed.freezer_only && !allowed.paused && !self.policy.early_read {
            result = early::read(tracker, &mut self.arena, hot, budget);
        }
        if result.is_err() {
            // Those that did not fit keep their dirt and have to be remembered.
            for slot in again {
                tracker.look_again(slot);
            }
            return result;
        }
        let work = self.work(tracker.slots());
        // Headroom: the drain, and what becomes dirty until the gate is up.
        if self.estimate.of(work) + self.policy.drain > budget { Err(Abandoned::Estimate) } else { Ok(()) }
    }

    /// Notes, for what is dirty and has no descriptor, where it was named last: the window can then tell that it is gone.
    fn find_kin(&mut self, tracker: &Tracker, hot: &Hot<'_>, kin: &dyn Fn(Ino) -> Vec<Ino>) {
        let slots = tracker.slots();
        for taken in self.arena.dirty.iter_mut().filter(|t| !hot.has(t.slot)) {
            taken.kin = slots.ino(taken.slot).map(kin).and_then(|parents| {
                let mut found = Kin::default();
                if parents.len() > found.len() {
                    return None;
                }
                for (place, parent) in found.iter_mut().zip(parents) {
                    *place = Some(slots.find(parent.0)?);
                }
                Some(found)
            });
        }
    }

    /// What is left for the window.
    fn work(&self, slots: Slots<'_>) -> Work {
        let mut work = Work { inodes: self.arena.todo.len() as u64, ..Work::default() };
        for &index in self.arena.todo.iter() {
            let taken = &self.arena.dirty[index as usize];
            let mut at = taken.bits;
            while at != taken.read_to {
                let word = self.arena.bits[at as usize];
                work.bytes += u64::from(word.bits.count_ones()) << slots.block_shift(taken.slot);
                // Most runs are within one word, so this counts the reads.
                work.reads += 1;
                at = word.next;
            }
        }
        work
    }

    fn learn(&mut self, took: Duration) {
        let (inodes, bytes) = self.arena.captured();
        let work = Work {
            inodes,
            reads: self.arena.reads_captured(),
            bytes,
            entries: self.arena.entries_captured(),
        };
        self.estimate.learn(work, took);
    }

    /// Completes the measurement: what the held tasks felt is known once they have gone on.
    fn measure(
        &mut self,
        tracker: &Tracker,
        hold: Hold<'_>,
        took: Duration,
        result: Result<Pause, Abandoned>,
    ) -> Result<Pause, Abandoned> {
        let mut felt = crate::track::live::Felt::default();
        if matches!(hold, Hold::Fence) {
            // A spinner notices within a turn of its loop, some 20 ns, unless an interrupt came between.
            std::thread::sleep(Duration::from_micros(20));
            felt = tracker.live().felt();
        }
        match result {
            Ok(mut pause) => {
                if matches!(hold, Hold::Fence) {
                    pause.longest_stop = Duration::from_nanos(felt.longest);
                    pause.held = felt.spins;
                }
                Ok(pause)
            }
            Err(why) => {
                if !matches!(hold, Hold::None | Hold::Paused) {
                    self.stops.push((hold.gate(), took));
                }
                Err(why)
            }
        }
    }

    /// T4: makes dirty again, after a cut, what the window has read of mapped files. It cannot clean their pages, so stores to them after
    /// it leave no event, through this mapping or the next; the next round reads those pages once more, and cleans them first.
    pub fn keep_mapped(&self, tracker: &mut Tracker) {
        self.dirty_again(tracker, |taken| taken.state & MAPPED != 0);
    }

    /// T3: makes dirty again what a failed attempt had taken.
    fn put_back(&mut self, tracker: &mut Tracker) {
        self.dirty_again(tracker, |_| true);
        if let Some(slot) = self.arena.left_out.take() {
            tracker.look_again(slot);
        }
        self.arena.reset();
    }

    fn dirty_again(&self, tracker: &mut Tracker, which: impl Fn(&TakenSlot) -> bool) {
        let mut again = Vec::new();
        let slots = tracker.slots();
        for taken in self.arena.dirty.iter().filter(|taken| which(taken)) {
            let mut at = taken.bits;
            while at != super::arena::END {
                let word = self.arena.bits[at as usize];
                slots.put_word(taken.slot, word.word as usize, word.bits);
                at = word.next;
            }
            if slots.put_state(taken.slot, taken.state) {
                again.push(taken.slot);
            }
        }
        for slot in again {
            tracker.look_again(slot);
        }
    }
}
