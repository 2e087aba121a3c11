//! The third clock: a process inside the container that does nothing but look at the clock, and logs how long it was kept from it.
//!
//! ```text
//! words:  slot of demo/ticks.rs (count, largest gap, histogram) | asked | doing | seen | written | ring of gaps
//! a gap:  begin   end   times the processor was lost since the last one logged
//! ```
//!
//! It runs with more weight than ordinary tasks (nice -10), so that it is stopped by what stops the container and rarely by other tasks; while it ticks it
//! takes a processor. Where it lost it all the same the gap says so.
//!
//! Only gaps above [`THRESHOLD`] are logged; shorter ones are in the histogram. What it does between two ticks can be changed while it runs, because
//! one that makes calls is in the way of gate none, and one that makes none does not feel the fence.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use serde::Serialize;

use super::Error;
use super::inmate::{self, Inmate, Job};
use crate::container::Target;
use crate::demo::ticks::{self, INTERVAL, SLOT, knock, now_ns};
use crate::demo::{TickMode, TickReport};
use crate::kernel::usage::involuntary_switches;
use crate::model::nanos::Nanos;
use crate::model::pid::Pid;

/// Gaps up to this are ordinary: a call, a missed cache, the clock itself.
pub const THRESHOLD: Nanos = Nanos(2_000);
/// Gaps the ring holds: seconds of a ticker that sleeps, hours of one that does not.
const RING: usize = 1 << 15;
const GAP: usize = 3;

const ASKED: usize = SLOT;
const DOING: usize = SLOT + 1;
const SEEN: usize = SLOT + 2;
const WRITTEN: usize = SLOT + 3;
const FIRST: usize = SLOT + 8;
pub(super) const WORDS: usize = FIRST + RING * GAP;

/// The modes by number; 0 is rest.
const MODES: [TickMode; 3] = [TickMode::Sleep, TickMode::Spin, TickMode::Call];
/// How long a ticker that rests sleeps between two looks whether it should not.
const REST: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// A time during which the ticker did not come to its clock, on `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Its last look before.
    pub begin: Nanos,
    /// Its first look after.
    pub end: Nanos,
    /// How often it lost its processor in it (`ru_nivcsw`).
    pub switches: u64,
}

impl Gap {
    /// How long.
    #[must_use]
    pub fn length(&self) -> Nanos {
        Nanos(self.end.0.saturating_sub(self.begin.0))
    }
}

/// The ticker's own work; returns only with an error.
pub(super) fn run(words: &[AtomicU64], ready: impl FnOnce()) -> io::Result<()> {
    let slot = &words[..SLOT];
    // For reading, which is what makes the call fail.
    let root = File::open("/")?;
    ready();
    let (mut doing, mut written) = (0, 0u64);
    let mut switches = involuntary_switches();
    let mut last = ticks::restart(slot);
    loop {
        let asked = words[ASKED].load(Acquire);
        if asked != doing {
            doing = asked;
            last = ticks::restart(slot);
            switches = involuntary_switches();
            words[DOING].store(doing, Release);
        }
        match (doing & 3).checked_sub(1).and_then(|n| MODES.get(n as usize)) {
            Some(TickMode::Sleep) => std::thread::sleep(INTERVAL),
            Some(TickMode::Call) => knock(&root)?,
            Some(_) => {}
            None => {
                std::thread::sleep(REST);
                words[SEEN].store(now_ns(), Release);
                continue;
            }
        }
        let now = now_ns();
        if now - last > THRESHOLD.0 {
            let total = involuntary_switches();
            let at = FIRST + (written as usize % RING) * GAP;
            words[at].store(last, Relaxed);
            words[at + 1].store(now, Relaxed);
            words[at + 2].store(total - switches, Relaxed);
            written += 1;
            words[WRITTEN].store(written, Release);
            switches = total;
        }
        ticks::record(slot, last, now);
        words[SEEN].store(now, Release);
        last = now;
    }
}

/// A ticker seen from outside.
#[derive(Debug)]
pub struct Ticker {
    inmate: Inmate,
    mode: Option<TickMode>,
    generation: u64,
    read: u64,
    gaps: VecDeque<Gap>,
    lost: u64,
}

impl Ticker {
    /// Starts one inside a container; it rests. `program`'s `main` calls [`super::run_if_asked`]; `None`: this program. It is gone when this is
    /// dropped, and when the thread that called this ends.
    ///
    /// # Errors
    /// [`Error::NotInside`].
    pub fn start(program: Option<&Path>, target: &Target) -> Result<Ticker, Error> {
        let inmate = Inmate::start(program, target, Job::Tick, inmate::size(Job::Tick))?;
        Ok(Ticker { inmate, mode: None, generation: 0, read: 0, gaps: VecDeque::new(), lost: 0 })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.inmate.pid()
    }

    /// What it does from now on; `None`: it rests. Its count starts anew, also if it is what it does already.
    ///
    /// # Errors
    /// [`Error::Silent`]. `TickMode::Write` is none of its modes: it changes the container.
    pub fn set(&mut self, mode: Option<TickMode>) -> Result<(), Error> {
        let number = match mode {
            None => 0,
            Some(mode) => MODES.iter().position(|m| *m == mode).ok_or(Error::Silent)? as u64 + 1,
        };
        self.mode = mode;
        self.generation += 1;
        let asked = self.generation << 2 | number;
        self.inmate.words.as_slice()[ASKED].store(asked, Release);
        self.wait(|words| words[DOING].load(Acquire) == asked)
    }

    /// Waits until it has ticked at or after `time` and takes in what it logged.
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub fn catch_up(&mut self, time: Nanos) -> Result<(), Error> {
        self.wait(|words| words[SEEN].load(Acquire) > time.0)?;
        let words = self.inmate.words.as_slice();
        let written = words[WRITTEN].load(Acquire);
        // The oldest may be overwritten while they are read.
        let oldest = written.saturating_sub(RING as u64 - 16);
        self.lost += oldest.saturating_sub(self.read);
        for n in self.read.max(oldest)..written {
            let at = FIRST + (n as usize % RING) * GAP;
            let word = |i: usize| words[at + i].load(Relaxed);
            self.gaps.push_back(Gap { begin: Nanos(word(0)), end: Nanos(word(1)), switches: word(2) });
        }
        self.read = written;
        Ok(())
    }

    /// The largest gap that overlaps this time; `None`: none above [`THRESHOLD`]. Forgets the gaps that ended before `forget`.
    pub fn felt(&mut self, from: Nanos, to: Nanos, forget: Nanos) -> Option<Gap> {
        while self.gaps.front().is_some_and(|g| g.end < forget) {
            self.gaps.pop_front();
        }
        self.gaps.iter().filter(|g| g.begin <= to && g.end >= from).max_by_key(|g| g.length()).copied()
    }

    /// Gaps that were overwritten before they were read.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What it saw since its mode was set; `None` while it rests.
    #[must_use]
    pub fn report(&self) -> Option<TickReport> {
        self.mode.map(|mode| ticks::report(&self.inmate.words.as_slice()[..SLOT], mode))
    }

    fn wait(&mut self, done: impl Fn(&[AtomicU64]) -> bool) -> Result<(), Error> {
        let deadline = now_ns() + PATIENCE.as_nanos() as u64;
        while !done(self.inmate.words.as_slice()) {
            if now_ns() > deadline || !self.inmate.runs() {
                return Err(Error::Silent);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}
