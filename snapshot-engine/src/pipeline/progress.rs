//! How far a commit is, and whether it should stop.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Error;
use crate::kernel::signals;
use crate::store::Claimed;

/// The stages as a user sees them, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Finding the container and its overlay.
    Resolve,
    /// Loading and attaching the tracker.
    Track,
    /// Bringing the shadow up to date.
    PreCopy,
    /// The window.
    Window,
    /// Making the frozen upperdir durable.
    Freeze,
    /// Chunking, digesting, compressing.
    Chunk,
    /// Writing the bootstrap.
    Bootstrap,
    /// Writing the image to the target's layout.
    Publish,
    /// Bringing it from there to a target that is no layout.
    Deliver,
}

impl Stage {
    /// The name in records and reports.
    #[must_use]
    pub fn key(self) -> &'static str {
        self.words().0
    }

    /// The name, what it does ("could not ..."), and how much of its half lies behind it when it ends.
    fn words(self) -> (&'static str, &'static str, f64) {
        match self {
            Stage::Resolve => ("resolve", "find the container", 0.02),
            Stage::Track => ("track", "track the container's writes", 0.05),
            Stage::PreCopy => ("pre_copy", "copy the upperdir", 0.85),
            Stage::Window => ("window", "make the cut", 0.90),
            Stage::Freeze => ("freeze", "make the frozen upperdir durable", 1.0),
            Stage::Chunk => ("chunk", "write the blobs", 0.60),
            Stage::Bootstrap => ("bootstrap", "write the bootstrap", 0.65),
            Stage::Publish => ("publish", "write the image", 0.70),
            Stage::Deliver => ("deliver", "deliver the image", 1.0),
        }
    }

    fn begins_at(self) -> f64 {
        match self {
            Stage::Resolve | Stage::Chunk => 0.0,
            Stage::Track => Stage::Resolve.words().2,
            Stage::PreCopy => Stage::Track.words().2,
            Stage::Window => Stage::PreCopy.words().2,
            Stage::Freeze => Stage::Window.words().2,
            Stage::Bootstrap => Stage::Chunk.words().2,
            Stage::Publish => Stage::Bootstrap.words().2,
            Stage::Deliver => Stage::Publish.words().2,
        }
    }

    /// How much of its half (cut or image) is done: 0 to 1.
    #[must_use]
    pub fn fraction(self, done: u64, total: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a progress bar")]
        let inside = if total == 0 { 0.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
        let (from, to) = (self.begins_at(), self.words().2);
        from + (to - from) * inside
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.words().1)
    }
}

/// Whoever wants to know how far a commit is, and may stop it. Never called inside the window.
pub trait Progress: Send + Sync {
    /// A stage has done so much of so much (bytes, entries: its own unit; `total` 0 while unknown).
    fn report(&self, stage: Stage, done: u64, total: u64);

    /// Whether to go on; called between steps.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when somebody wants it to stop.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Nobody wants to know.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn report(&self, _: Stage, _: u64, _: u64) {}
}

/// Stops at the first SIGINT, SIGTERM or SIGHUP ([`signals::install`]), and passes everything on.
pub struct UntilSignal<'a>(pub &'a dyn Progress);

impl Progress for UntilSignal<'_> {
    fn report(&self, stage: Stage, done: u64, total: u64) {
        self.0.report(stage, done, total);
    }

    fn check(&self) -> Result<(), Error> {
        match signals::caught() {
            Some(signal) => Err(Error::Interrupted { signal }),
            None => self.0.check(),
        }
    }
}

/// Writes the progress of the image where `status` finds it, a few times a second, and passes everything on.
pub(super) struct Recorded<'a> {
    claimed: &'a Claimed,
    next: &'a dyn Progress,
    written: Mutex<Option<Instant>>,
}

impl<'a> Recorded<'a> {
    const INTERVAL: Duration = Duration::from_millis(200);

    pub(super) fn new(claimed: &'a Claimed, next: &'a dyn Progress) -> Self {
        Recorded { claimed, next, written: Mutex::new(None) }
    }
}

impl Progress for Recorded<'_> {
    fn report(&self, stage: Stage, done: u64, total: u64) {
        // Somebody else is writing: they are as up to date as we are.
        if let Ok(mut written) = self.written.try_lock()
            && written.is_none_or(|at| at.elapsed() >= Self::INTERVAL)
        {
            *written = Some(Instant::now());
            self.claimed.set_progress(stage.fraction(done, total));
        }
        self.next.report(stage, done, total);
    }

    fn check(&self) -> Result<(), Error> {
        self.next.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_only_grows() {
        for half in [
            &[Stage::Resolve, Stage::Track, Stage::PreCopy, Stage::Window, Stage::Freeze][..],
            &[Stage::Chunk, Stage::Bootstrap, Stage::Publish, Stage::Deliver][..],
        ] {
            let mut last = 0.0;
            for stage in half {
                for done in 0..=4 {
                    let now = stage.fraction(done, 4);
                    assert!(now >= last, "{stage:?} {done}");
                    last = now;
                }
            }
            assert!((last - 1.0).abs() < 1e-9);
        }
        assert!((Stage::Chunk.fraction(9, 0)).abs() < 1e-9);
        assert!((Stage::Deliver.fraction(9, 3) - 1.0).abs() < 1e-9);
    }
}
