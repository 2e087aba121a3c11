//! Turns: what batches do one after the other, in their order, whichever worker has them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::convert::lock;

/// As many batches as may be ahead of the turn meet at different beds; if more do, some are woken for nothing.
const BEDS: usize = 16;

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Turn {
    batch: AtomicU64,
    /// Who waits for batch `n` sleeps at the `n`th of these, counted round, so that a turn wakes nobody else.
    beds: [(Mutex<()>, Condvar); BEDS],
}

impl Turn {
    /// Whether every batch before this one has had its turn.
    pub(super) fn is(&self, batch: u64) -> bool {
        self.batch.load(Ordering::Acquire) == batch
    }

    fn bed(&self, batch: u64) -> &(Mutex<()>, Condvar) {
        &self.beds[(batch % BEDS as u64) as usize]
    }

    /// Waits for the turn of `batch`; `false` if `stopped` was set first, after which [`Turn::wake`] is called.
    pub(super) fn wait(&self, batch: u64, stopped: &AtomicBool) -> bool {
        let (bed, woken) = self.bed(batch);
        let waits = |_: &mut ()| !self.is(batch) && !stopped.load(Ordering::Acquire);
        drop(woken.wait_while(lock(bed), waits).unwrap_or_else(PoisonError::into_inner));
        !stopped.load(Ordering::Acquire)
    }

    /// Ends the turn. Only who has it may.
    pub(super) fn pass(&self) {
        let next = self.batch.load(Ordering::Relaxed) + 1;
        self.batch.store(next, Ordering::Release);
        let (bed, woken) = self.bed(next);
        // Whoever has looked before the store holds the lock until he sleeps; whoever looks later sees it.
        drop(lock(bed));
        woken.notify_all();
    }

    /// Wakes all who wait, so that they see that it has stopped.
    pub(super) fn wake(&self) {
        for (bed, woken) in &self.beds {
            // As in `pass`.
            drop(lock(bed));
            woken.notify_all();
        }
    }
}
