//! What has been done of a delivery, and whether it shall stop: counted by those who do it, read by the one who tells.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How far a delivery is. All counters are independent of each other and only told: relaxed.
#[derive(Debug, Default)]
pub(super) struct Meter {
    done: AtomicU64,
    sent: AtomicU64,
    retries: AtomicU32,
    stopped: AtomicBool,
}

impl Meter {
    /// So many bytes more are where they belong.
    pub(super) fn count(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are where they belong.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// So many bytes were put on the wire.
    pub(super) fn count_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes put on the wire, in vain or not.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// A request is made again.
    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests made again.
    pub(super) fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Asks for an end.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether somebody wants an end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends this long after somebody wanted an end.
    pub(super) async fn overdue(&self, grace: Duration) {
        while !self.is_stopped() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(grace).await;
    }
}
