//! What holds writers back, and how a window can end.

use std::time::Duration;

use crate::model::nanos::Nanos;

pub use crate::model::snapshot::Gate;

/// Why an attempt came to nothing. What it had taken is dirty again (T3) and nobody is held any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abandoned {
    /// A call that was under way did not end within the drain's time.
    NotDrained,
    /// Somebody entered a call or changed an inode before the end (G2).
    Disturbed,
    /// The fence let somebody through (G2, G3).
    Expired,
    /// Capturing what is dirty was expected to take longer than the budget (G5).
    Estimate,
    /// The budget was used up (G5).
    Deadline,
    /// The arena or its lists are full.
    TooMuch,
    /// An inode had changed that was not made ready: a pre-copy round opens it.
    Cold,
    /// A file with a shared writable mapping had changed: only the freezer will do (T4).
    Mapped,
    /// Somebody has mapped a file shared, or used io_uring, since it was asked which gates can hold everybody.
    Asked,
    /// Direct I/O was still landing.
    DirectIo,
    /// A directory or file changed under the reader, or could not be read.
    Unreadable,
    /// The freezer did not report all tasks frozen in time.
    NotFrozen,
}

impl std::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Abandoned::NotDrained => "a call that was under way did not end in time",
            Abandoned::Disturbed => "a writer got in before the copy was complete",
            Abandoned::Expired => "the fence's deadline passed",
            Abandoned::Estimate => "capturing what was dirty would have taken longer than the budget",
            Abandoned::Deadline => "the budget was used up",
            Abandoned::TooMuch => "more was dirty than the arena holds",
            Abandoned::Cold => "an inode had changed that was not made ready",
            Abandoned::Mapped => "a mapped file had changed; only the freezer can hold its writers",
            Abandoned::Asked => "a file was mapped shared, or io_uring used, while the gate was chosen",
            Abandoned::DirectIo => "direct I/O was still landing",
            Abandoned::Unreadable => "something could not be read",
            Abandoned::NotFrozen => "the tasks did not freeze in time",
        })
    }
}

/// The stop of one window, measured (G6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// What held the writers.
    pub gate: Gate,
    /// From the gate going up to the gate coming down, on the engine's monotonic clock; for gate none the time of the copy, during which
    /// nobody was held.
    pub window: Duration,
    /// The longest stop a task really had: the longest spin, or freeze to thaw; 0 for gate none.
    pub longest_stop: Duration,
    /// From the gate going up until no call was under way.
    pub drain: Duration,
    /// Calls that were held.
    pub held: u64,
    /// Between these moments lies the cut.
    pub between: Between,
}

/// Two moments of the monotonic clock (`CLOCK_MONOTONIC`, nanoseconds) between which nothing changed: at the first no call was under way, and until
/// the second none had begun. So the copy shows the tree at every instant between them (G1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Between {
    /// Nothing was under way.
    pub from: Nanos,
    /// Nothing had begun.
    pub to: Nanos,
}

impl Pause {
    /// How long the container was held: nothing for gate none.
    #[must_use]
    pub fn pause(&self) -> Duration {
        if self.gate == Gate::None { Duration::ZERO } else { self.window }
    }
}
