//! What a session says of a cut: the stop, what was done for it, and where the time went.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::freeze::gate::{Gate, Pause};

/// A cut that stands.
#[derive(Debug, Clone)]
pub struct Made {
    /// The stop.
    pub pause: Pause,
    /// Windows attempted for it, this one included.
    pub attempts: u32,
    /// Pre-copy rounds made for it.
    pub rounds: u32,
    /// Inodes captured inside the window.
    pub inodes: u64,
    /// Bytes captured inside the window.
    pub bytes: u64,
    /// The stops of attempts that came to nothing: the container felt them too.
    pub other_stops: Vec<(Gate, Duration)>,
    /// Why attempts were abandoned: gate and reason, with how often.
    pub abandoned: BTreeMap<(Gate, String), u32>,
    /// Changes that were found by a sweep and not by the tracker (T6).
    pub misses: u64,
    /// What the rounds did together.
    pub copied: Copied,
    /// Where the time went. What opening the session took counts for its first cut.
    pub spent: Spent,
}

/// Where the time to a cut went; what is missing to the whole is small things in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Attaching the tracker, and waiting for calls that began before it.
    pub track: Duration,
    /// The base copy.
    pub base: Duration,
    /// Getting the arena, and the freezer with its watchdog.
    pub prepare: Duration,
    /// The rounds.
    pub rounds: Duration,
    /// The attempts: opening what is dirty, reading early, and the windows.
    pub attempts: Duration,
    /// Taking in what the window read.
    pub apply: Duration,
    /// The sweeps before and after the window.
    pub sweeps: Duration,
}

/// Adds how long something takes.
pub(super) fn timed<T>(to: &mut Duration, what: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let value = what();
    *to += began.elapsed();
    value
}

/// What the rounds before a cut did together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Bytes that the tracker held for dirty, in its blocks: a page, or 64 KiB in files that were small.
    pub dirty: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes cloned.
    pub cloned: u64,
}
