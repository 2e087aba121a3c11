//! What a demo container does all day: a list of jobs, each a process of its own (or several).
//!
//! As text, for command lines: `log,database:medium,tick,flatout=2,sleepers=100`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How often a job acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rate {
    /// About 100 operations a second.
    #[default]
    Light,
    /// About 1000 operations a second.
    Medium,
    /// One operation after the other.
    Flat,
}

/// How a ticker waits for its next tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TickMode {
    /// Sleeps 100 us: sees what a task that waits for timers sees.
    #[default]
    Sleep,
    /// Reads the clock without pause: sees every loss of the processor.
    Spin,
    /// Sleeps 100 us, then overwrites 8 bytes of a file of the container: sees what a writer sees.
    Write,
    /// Makes one call after the other that counts as modifying and that the kernel refuses: sees what a writer sees who never
    /// rests, and changes nothing.
    Call,
}

impl TickMode {
    /// The mode as one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            TickMode::Sleep => "sleep",
            TickMode::Spin => "spin",
            TickMode::Write => "write",
            TickMode::Call => "call",
        }
    }
}

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Job {
    /// Appends numbered lines of 200 bytes, in turn to each of `files` files.
    Log {
        /// How many log files.
        files: u32,
        /// How often.
        rate: Rate,
    },
    /// Rewrites a file of `mib` MiB page by page in place, with an `fdatasync` now and then.
    Database {
        /// Size of the file.
        mib: u32,
        /// How often.
        rate: Rate,
    },
    /// Creates, renames, links, unlinks, copies up, whites out, changes modes and attributes.
    Churn {
        /// How often.
        rate: Rate,
    },
    /// Measures its own stops; see [`super::ticks`].
    Tick {
        /// How it waits.
        mode: TickMode,
    },
    /// Sleeps.
    Idle,
    /// Stores through a shared mapping of a file of `kib` KiB.
    Mmap {
        /// Size of the mapping.
        kib: u32,
        /// How often.
        rate: Rate,
    },
    /// Processes that overwrite 4 KiB at random places of one file of 64 MiB.
    Random {
        /// How many.
        writers: u32,
        /// How often each of them.
        rate: Rate,
    },
    /// Appends pages to a journal with an `fdatasync` after each, and writes them to their place in a file of `mib` MiB afterwards, as a
    /// database does.
    Syncing {
        /// Size of the file.
        mib: u32,
        /// How often.
        rate: Rate,
    },
    /// Processes that do nothing but create, rename and delete small files and change their modes.
    Storm {
        /// How many.
        writers: u32,
    },
    /// Processes that do nothing but write.
    Flatout {
        /// How many.
        writers: u32,
    },
    /// Processes that sleep, to make a freezer walk.
    Sleepers {
        /// How many.
        count: u32,
    },
}

/// The jobs of a demo container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Started in this order.
    pub jobs: Vec<Job>,
}

impl Default for Workload {
    /// A little of everything a service does, and a ticker.
    fn default() -> Workload {
        let rate = Rate::Light;
        Workload {
            jobs: vec![
                Job::Log { files: 2, rate },
                Job::Database { mib: 4, rate },
                Job::Churn { rate },
                Job::Tick { mode: TickMode::Sleep },
            ],
        }
    }
}

impl Workload {
    /// No jobs: only the init, which sleeps.
    #[must_use]
    pub fn idle() -> Workload {
        Workload { jobs: vec![Job::Idle] }
    }

    /// The tickers' modes; a ticker's place in this list is its slot.
    #[must_use]
    pub fn tickers(&self) -> Vec<TickMode> {
        let mode = |job: &Job| if let Job::Tick { mode } = job { Some(*mode) } else { None };
        self.jobs.iter().filter_map(mode).collect()
    }
}

/// A workload's text that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{job:?} is no job; use a comma-separated list of log, database, churn, tick, spin, write-tick, call-tick, idle, mmap, flatout, random, syncing, storm, sleepers, \
     each with =N (files, MiB, KiB, processes) and :light, :medium or :flat where it has them"
)]
pub struct BadWorkload {
    job: String,
}

impl FromStr for Workload {
    type Err = BadWorkload;

    fn from_str(text: &str) -> Result<Workload, BadWorkload> {
        let job = |text: &str| parse_job(text.trim()).ok_or_else(|| BadWorkload { job: text.to_owned() });
        Ok(Workload { jobs: text.split(',').map(job).collect::<Result<_, _>>()? })
    }
}

fn parse_job(text: &str) -> Option<Job> {
    let (text, rate) = match text.split_once(':') {
        Some((job, "light")) => (job, Some(Rate::Light)),
        Some((job, "medium")) => (job, Some(Rate::Medium)),
        Some((job, "flat")) => (job, Some(Rate::Flat)),
        Some(_) => return None,
        None => (text, None),
    };
    let (name, number) = match text.split_once('=') {
        // Bounds: 4096 processes, files or MiB are more than any test needs, and not yet a fork bomb.
        Some((name, n)) => (name, Some(n.parse::<u32>().ok().filter(|n| (1..=4096).contains(n))?)),
        None => (text, None),
    };
    let or = |default| number.unwrap_or(default);
    let paced = rate.unwrap_or_default();
    let job = match name {
        "log" => Job::Log { files: or(2), rate: paced },
        "database" => Job::Database { mib: or(4), rate: paced },
        "churn" if number.is_none() => Job::Churn { rate: paced },
        "mmap" => Job::Mmap { kib: or(64), rate: paced },
        "random" => Job::Random { writers: or(4), rate: paced },
        "syncing" => Job::Syncing { mib: or(16), rate: paced },
        _ if rate.is_some() => return None,
        "flatout" => Job::Flatout { writers: or(1) },
        "storm" => Job::Storm { writers: or(1) },
        "sleepers" => Job::Sleepers { count: or(100) },
        _ if number.is_some() => return None,
        "tick" => Job::Tick { mode: TickMode::Sleep },
        "spin" => Job::Tick { mode: TickMode::Spin },
        "write-tick" => Job::Tick { mode: TickMode::Write },
        "call-tick" => Job::Tick { mode: TickMode::Call },
        "idle" => Job::Idle,
        _ => return None,
    };
    Some(job)
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, job) in self.jobs.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match job {
                Job::Log { files, rate } => write!(f, "log={files}:{rate}")?,
                Job::Database { mib, rate } => write!(f, "database={mib}:{rate}")?,
                Job::Churn { rate } => write!(f, "churn:{rate}")?,
                Job::Tick { mode: TickMode::Sleep } => f.write_str("tick")?,
                Job::Tick { mode: TickMode::Spin } => f.write_str("spin")?,
                Job::Tick { mode: TickMode::Write } => f.write_str("write-tick")?,
                Job::Tick { mode: TickMode::Call } => f.write_str("call-tick")?,
                Job::Idle => f.write_str("idle")?,
                Job::Mmap { kib, rate } => write!(f, "mmap={kib}:{rate}")?,
                Job::Random { writers, rate } => write!(f, "random={writers}:{rate}")?,
                Job::Syncing { mib, rate } => write!(f, "syncing={mib}:{rate}")?,
                Job::Storm { writers } => write!(f, "storm={writers}")?,
                Job::Flatout { writers } => write!(f, "flatout={writers}")?,
                Job::Sleepers { count } => write!(f, "sleepers={count}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rate::Light => "light",
            Rate::Medium => "medium",
            Rate::Flat => "flat",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let text = "log=3:medium,database=4:light,churn:flat,tick,spin,write-tick,call-tick,idle,mmap=64:light,random=4:flat,syncing=16:medium,storm=1,flatout=2,sleepers=100";
        let workload: Workload = text.parse().unwrap();
        assert_eq!(workload.to_string(), text);
        assert_eq!(workload.tickers(), [TickMode::Sleep, TickMode::Spin, TickMode::Write, TickMode::Call]);
        let default = Workload::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        for bad in ["", "log:fast", "tick:light", "churn=1", "sleepers=0", "sleepers=99999", "log,,tick"] {
            assert!(bad.parse::<Workload>().is_err(), "{bad}");
        }
    }
}
