//! How long capturing a residual will take (G5).

use std::time::Duration;

/// What lies ahead of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Inodes to stat.
    pub inodes: u64,
    /// Runs of blocks to read.
    pub reads: u64,
    /// Bytes to read.
    pub bytes: u64,
    /// Directory entries to list.
    pub entries: u64,
}

/// A linear model, corrected by what captures really took.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// What the last captures took, relative to the model.
    factor: f64,
}

// Measured on a 2-core machine (statx + flistxattr; pread from the page cache; getdents64 + look-up), rounded up.
const BASE_NS: f64 = 1_000.0;
const INODE_NS: f64 = 1_200.0;
const READ_NS: f64 = 200.0;
const BYTE_NS: f64 = 0.15;
const ENTRY_NS: f64 = 60.0;

impl Default for Estimate {
    fn default() -> Self {
        Estimate { factor: 1.0 }
    }
}

impl Estimate {
    fn model(work: Work) -> f64 {
        BASE_NS
            + work.inodes as f64 * INODE_NS
            + work.reads as f64 * READ_NS
            + work.bytes as f64 * BYTE_NS
            + work.entries as f64 * ENTRY_NS
    }

    /// The expected time of a capture.
    #[must_use]
    pub fn of(&self, work: Work) -> Duration {
        Duration::from_nanos((Self::model(work) * self.factor) as u64)
    }

    /// Learns from a capture: half of the error each time, within a factor of 8 of the model.
    pub fn learn(&mut self, work: Work, took: Duration) {
        let seen = took.as_nanos() as f64 / Self::model(work);
        self.factor = (self.factor * 0.5 + seen * 0.5).clamp(0.125, 8.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_work_and_learns_from_what_it_took() {
        let mut e = Estimate::default();
        let small = Work { inodes: 1, reads: 1, bytes: 65536, entries: 0 };
        let large = Work { inodes: 100, reads: 100, bytes: 10 << 20, entries: 1000 };
        assert!(e.of(large) > e.of(small) * 10);
        let before = e.of(large);
        e.learn(large, before * 4);
        assert!(e.of(large) > before * 2);
        for _ in 0..20 {
            e.learn(large, Duration::ZERO);
        }
        assert!(e.of(large) >= before / 8);
    }
}
