//! Tickers: processes of the demo that measure how long they were stopped, in memory shared with the engine.
//!
//! ```text
//! memfd of the demo's init:  slot 0 | slot 1 | ...   one slot a ticker
//! slot, 64-bit words:        0 requests to reset   1 resets done   2 started   3 last tick   4 ticks   5 largest gap   6 when it ended   7 -
//!                            8.. histogram of gaps, 8 buckets a power of two
//! ```
//!
//! One writer a slot, so plain loads and stores suffice. A memfd, not a file of the container: the ticker must neither dirty
//! the upperdir nor wait for its file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::time::ClockId;

use super::workload::TickMode;
use crate::kernel::words::Words;

const BUCKETS: usize = 512;
/// Words of a slot.
pub(crate) const SLOT: usize = 8 + BUCKETS;
/// Between two ticks of a ticker that sleeps.
pub(crate) const INTERVAL: Duration = Duration::from_micros(100);

const RESET_ASKED: usize = 0;
const RESET_DONE: usize = 1;
const STARTED: usize = 2;
const LAST: usize = 3;
const COUNT: usize = 4;
const MAX: usize = 5;
const MAX_AT: usize = 6;
const HISTOGRAM: usize = 8;

/// What a ticker saw since it started or was reset. Times are `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TickReport {
    /// How it waits between ticks.
    pub mode: TickMode,
    /// Gaps seen.
    pub count: u64,
    /// The largest time between two consecutive ticks (the interval of 100 us included, unless it spins).
    pub max_gap_ns: u64,
    /// When that gap ended; 0 before the first.
    pub max_at_ns: u64,
    /// When the ticker started or was reset.
    pub started_ns: u64,
    /// Its last tick.
    pub last_ns: u64,
    /// Lower bound of a bucket and the gaps in it, ascending, empty ones left out. A bucket is at most an eighth wide.
    pub histogram: Vec<(u64, u64)>,
}

impl TickReport {
    /// The gap that a part `q` (0 to 1) of all gaps does not exceed, to an eighth; 0 without ticks.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let total: u64 = self.histogram.iter().map(|(_, n)| n).sum();
        let want = (q.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (gap, n) in &self.histogram {
            seen += n;
            if seen >= want {
                return *gap;
            }
        }
        self.max_gap_ns
    }
}

/// Now, as tickers count.
#[must_use]
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

fn bucket(gap: u64) -> usize {
    if gap < 8 {
        return gap as usize;
    }
    let log = gap.ilog2();
    (log as usize - 2) * 8 + ((gap >> (log - 3)) & 7) as usize
}

fn lower_bound(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    (8 + bucket as u64 % 8) << (bucket / 8 - 1)
}

/// Shared memory for this many tickers.
pub(super) fn create(slots: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("demo-ticks", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, (slots.max(1) * SLOT * 8) as u64)?;
    Ok(fd)
}

/// Ticks for ever.
pub(super) fn run(memory: &OwnedFd, slot: usize, slots: usize, mode: TickMode) -> io::Result<()> {
    let words = Words::map(memory, slots * SLOT)?;
    let slot = &words.as_slice()[slot * SLOT..][..SLOT];
    let file = match mode {
        TickMode::Write => {
            let file = OpenOptions::new().create(true).truncate(true).write(true).open("/var/tick")?;
            file.set_len(4096)?;
            Some(file)
        }
        TickMode::Call => Some(File::open("/")?),
        TickMode::Sleep | TickMode::Spin => None,
    };
    // The default slack of 50 us would be measured as a gap.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let mut last = restart(slot);
    loop {
        if matches!(mode, TickMode::Sleep | TickMode::Write) {
            std::thread::sleep(INTERVAL);
        }
        match &file {
            Some(file) if mode == TickMode::Call => knock(file)?,
            Some(file) => file.write_all_at(&last.to_le_bytes(), 0)?,
            None => {}
        }
        let now = now_ns();
        record(slot, last, now);
        last = now;
        if slot[RESET_ASKED].load(Acquire) != slot[RESET_DONE].load(Relaxed) {
            last = restart(slot);
        }
    }
}

/// A call that counts as modifying, by its number and by the file system of its descriptor, and that the kernel refuses: the
/// descriptor is for reading only (`EBADF`, ksys_pwrite64 in fs/read_write.c). It waits at the fence like a write and changes nothing.
///
/// # Errors
/// When the kernel did not refuse it: the descriptor was no such one.
pub(crate) fn knock(read_only: &File) -> io::Result<()> {
    match rustix::io::pwrite(read_only, &[0], 0) {
        Err(rustix::io::Errno::BADF) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(_) => Err(io::Error::other("a read-only descriptor took a write")),
    }
}

/// Starts a slot's count anew.
pub(crate) fn restart(slot: &[AtomicU64]) -> u64 {
    let asked = slot[RESET_ASKED].load(Acquire);
    for word in &slot[STARTED..] {
        word.store(0, Relaxed);
    }
    let now = now_ns();
    slot[STARTED].store(now, Relaxed);
    slot[LAST].store(now, Relaxed);
    slot[RESET_DONE].store(asked, Release);
    now
}

/// Counts the time between two ticks.
pub(crate) fn record(slot: &[AtomicU64], last: u64, now: u64) {
    let gap = now.saturating_sub(last);
    let add = |word: &AtomicU64| word.store(word.load(Relaxed) + 1, Relaxed);
    add(&slot[HISTOGRAM + bucket(gap)]);
    if gap > slot[MAX].load(Relaxed) {
        slot[MAX].store(gap, Relaxed);
        slot[MAX_AT].store(now, Relaxed);
    }
    slot[LAST].store(now, Relaxed);
    slot[COUNT].store(slot[COUNT].load(Relaxed) + 1, Release);
}

/// What a slot holds now.
pub(crate) fn report(slot: &[AtomicU64], mode: TickMode) -> TickReport {
    let word = |i: usize| slot[i].load(Relaxed);
    let bar = |b: usize| (lower_bound(b), word(HISTOGRAM + b));
    TickReport {
        mode,
        count: slot[COUNT].load(Acquire),
        max_gap_ns: word(MAX),
        max_at_ns: word(MAX_AT),
        started_ns: word(STARTED),
        last_ns: word(LAST),
        histogram: (0..BUCKETS).map(bar).filter(|(_, n)| *n > 0).collect(),
    }
}

/// The tickers of a demo, seen from outside.
#[derive(Debug)]
pub struct Tickers {
    words: Words,
    modes: Vec<TickMode>,
}

impl Tickers {
    /// Maps the memory behind `path` (`/proc/INIT/fd/N`).
    pub(super) fn open(path: &Path, modes: Vec<TickMode>) -> io::Result<Tickers> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let words = Words::map(&file, modes.len().max(1) * SLOT)?;
        Ok(Tickers { words, modes })
    }

    fn slot(&self, index: usize) -> &[AtomicU64] {
        &self.words.as_slice()[index * SLOT..][..SLOT]
    }

    /// What each ticker saw, in the order of the workload.
    #[must_use]
    pub fn reports(&self) -> Vec<TickReport> {
        self.modes.iter().enumerate().map(|(index, mode)| report(self.slot(index), *mode)).collect()
    }

    /// Starts every ticker's count anew and waits until it has.
    ///
    /// # Errors
    /// `TimedOut` when a ticker does not answer within two seconds: it is frozen or dead.
    pub fn reset(&self) -> io::Result<()> {
        for index in 0..self.modes.len() {
            self.slot(index)[RESET_ASKED].fetch_add(1, Release);
        }
        let deadline = now_ns() + 2_000_000_000;
        for index in 0..self.modes.len() {
            let slot = self.slot(index);
            while slot[RESET_DONE].load(Acquire) != slot[RESET_ASKED].load(Relaxed) {
                if now_ns() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(INTERVAL);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        let mut last = 0;
        for gap in (0..5000).chain([1 << 20, (1 << 33) + 12345, u64::MAX]) {
            let b = bucket(gap);
            assert!(b < BUCKETS && b >= last, "{gap}");
            assert!(lower_bound(b) <= gap && (b == bucket(u64::MAX) || gap < lower_bound(b + 1)), "{gap}");
            last = b;
        }
    }

    #[test]
    fn records_the_largest_gap() {
        let slot: Vec<AtomicU64> = (0..SLOT).map(|_| AtomicU64::new(0)).collect();
        record(&slot, 100, 200);
        record(&slot, 200, 1200);
        record(&slot, 1200, 1300);
        assert_eq!(slot[COUNT].load(Relaxed), 3);
        assert_eq!((slot[MAX].load(Relaxed), slot[MAX_AT].load(Relaxed)), (1000, 1200));
        assert!(restart(&slot) > 0);
        assert_eq!((slot[COUNT].load(Relaxed), slot[MAX].load(Relaxed)), (0, 0));
    }
}
