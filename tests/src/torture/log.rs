//! What each writer did and when, in memory outside the container's tree.
//!
//! ```text
//!   a thread's part, in words:  began | done | seen | - | records[RECORDS] of (start, end, result)
//! ```
//!
//! The writer stores `start`, then `began`; makes the call; stores `end` and the result, then `done`. The reader takes what is done and stores `seen`; a
//! writer that is a whole ring ahead of its reader waits. Times are of CLOCK_MONOTONIC, like the engine's.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use snapshot_engine::freeze::reader::now;
use snapshot_engine::kernel::words::Words;

/// Records a thread's ring holds.
const RECORDS: u64 = 1 << 15;
const HEAD: u64 = 4;
const PART: u64 = HEAD + 3 * RECORDS;

/// How a call ended, as the log keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It gave this number.
    Done(u64),
    /// It failed with this error number.
    Failed(i32),
}

impl Ended {
    fn of(result: &io::Result<u64>) -> Ended {
        match result {
            Ok(n) => Ended::Done(*n),
            Err(e) => Ended::Failed(e.raw_os_error().unwrap_or(0)),
        }
    }

    fn word(self) -> u64 {
        match self {
            Ended::Done(n) => n,
            Ended::Failed(errno) => 1 << 63 | u64::from(errno.unsigned_abs()),
        }
    }

    fn from_word(word: u64) -> Ended {
        match word & (1 << 63) {
            0 => Ended::Done(word),
            _ => Ended::Failed(i32::try_from(word & 0xffff_ffff).unwrap_or(0)),
        }
    }
}

/// One operation: when it began and ended, and how.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Before the call.
    pub start: u64,
    /// After it.
    pub end: u64,
    /// Its result.
    pub ended: Ended,
}

/// The memory of all threads.
#[derive(Debug, Clone)]
pub struct Log(Arc<Words>);

/// The bytes a log for so many threads takes.
#[must_use]
pub fn bytes(threads: u64) -> u64 {
    threads * PART * 8
}

impl Log {
    /// Maps the log of `threads` threads.
    ///
    /// # Errors
    /// See [`Words::map`].
    pub fn map(file: impl AsFd, threads: u64) -> io::Result<Log> {
        Ok(Log(Arc::new(Words::map(file, usize::try_from(threads * PART).unwrap_or(usize::MAX))?)))
    }

    fn word(&self, thread: u64, at: u64) -> &std::sync::atomic::AtomicU64 {
        &self.0.as_slice()[usize::try_from(thread * PART + at).unwrap_or(usize::MAX)]
    }

    fn record(&self, thread: u64, n: u64, field: u64) -> &std::sync::atomic::AtomicU64 {
        self.word(thread, HEAD + n % RECORDS * 3 + field)
    }

    /// Writer: makes operation `n` and logs it.
    pub fn around(&self, thread: u64, n: u64, call: impl FnOnce() -> io::Result<u64>) -> Ended {
        while n - self.word(thread, 2).load(Acquire) >= RECORDS {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.record(thread, n, 0).store(now(), Relaxed);
        self.word(thread, 0).store(n + 1, Release);
        let ended = Ended::of(&call());
        self.record(thread, n, 1).store(now(), Relaxed);
        self.record(thread, n, 2).store(ended.word(), Relaxed);
        self.word(thread, 1).store(n + 1, Release);
        ended
    }

    /// Reader: operations of a thread that have begun.
    #[must_use]
    pub fn began(&self, thread: u64) -> u64 {
        self.word(thread, 0).load(Acquire)
    }

    /// Reader: operations of a thread that have ended.
    #[must_use]
    pub fn done(&self, thread: u64) -> u64 {
        self.word(thread, 1).load(Acquire)
    }

    /// Reader: when operation `n`, which has begun, did.
    #[must_use]
    pub fn start(&self, thread: u64, n: u64) -> u64 {
        self.record(thread, n, 0).load(Relaxed)
    }

    /// How operation `n`, which has ended not long ago, did.
    #[must_use]
    pub fn ended(&self, thread: u64, n: u64) -> Ended {
        Ended::from_word(self.record(thread, n, 2).load(Relaxed))
    }

    /// Reader: takes what has ended since the last look, `seen` operations having been taken before.
    pub fn take(&self, thread: u64, seen: u64, to: &mut Vec<Record>) -> u64 {
        let done = self.done(thread);
        for n in seen..done {
            let field = |field| self.record(thread, n, field).load(Relaxed);
            to.push(Record { start: field(0), end: field(1), ended: Ended::from_word(field(2)) });
        }
        self.word(thread, 2).store(done, Release);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes(2)).unwrap();
        let log = Log::map(&file, 2).unwrap();
        log.around(1, 0, || Ok(7));
        log.around(1, 1, || Err(io::Error::from_raw_os_error(18)));
        let mut records = Vec::new();
        assert_eq!((log.take(1, 0, &mut records), log.began(1), log.done(0)), (2, 2, 0));
        assert_eq!(records.iter().map(|r| r.ended).collect::<Vec<_>>(), [Ended::Done(7), Ended::Failed(18)]);
        assert!(records[0].start <= records[0].end && records[0].end <= records[1].start);
    }
}
