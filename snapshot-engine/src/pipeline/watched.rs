//! The capture's progress, as the pipeline reports it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::progress::{Progress, Stage};

/// Passes on what a part of the capture reports, as one stage.
pub(super) struct Watched<'a> {
    to: &'a dyn Progress,
    stage: Stage,
    done: AtomicU64,
    total: AtomicU64,
}

impl<'a> Watched<'a> {
    pub(super) fn new(to: &'a dyn Progress, stage: Stage) -> Watched<'a> {
        Watched { to, stage, done: AtomicU64::new(0), total: AtomicU64::new(0) }
    }
}

impl crate::model::progress::Progress for Watched<'_> {
    fn stage(&self, _: &'static str) {}

    fn total(&self, bytes: u64) {
        self.total.store(bytes, Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Relaxed) + bytes;
        self.to.report(self.stage, done, self.total.load(Relaxed));
    }

    fn stopped(&self) -> bool {
        self.to.check().is_err()
    }
}
