//! A writer inside the container that counts its own writes: what tracking costs the container's own work.
//!
//! Overwrites 4 KiB at random places of a new file of 16 MiB in the container's root, one write after the other. It changes the container, so it is
//! for containers made to be measured.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::time::ClockId;

use super::Error;
use super::inmate::{self, Inmate, Job};
use crate::container::Target;
use crate::demo::content::{PAGE, mix, page};

pub(super) const WORDS: usize = 8;
/// Of the container's root.
const FILE: &str = "/bench-load";
/// Writes between two looks at its clock.
const BATCH: u64 = 64;
const PAGES: u64 = (16 << 20) / PAGE as u64;

/// The writer's own work; returns only with an error.
pub(super) fn run(words: &[AtomicU64], ready: impl FnOnce()) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(FILE)?;
    let data = page(1);
    for n in 0..PAGES {
        file.write_all_at(&data, n * PAGE as u64)?;
    }
    ready();
    let (mut at, mut batches) = (1, 0u64);
    loop {
        for _ in 0..BATCH {
            at = mix(at);
            file.write_all_at(&data, at % PAGES * PAGE as u64)?;
        }
        let cpu = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        let cpu = cpu.tv_sec.unsigned_abs() * 1_000_000_000 + cpu.tv_nsec.unsigned_abs();
        // In one word, so that the two belong together: an hour of microseconds, and four billion batches.
        batches += 1;
        words[0].store((cpu / 1000) << 32 | batches & 0xffff_ffff, Relaxed);
    }
}

/// The writer seen from outside. Ends on drop; its file stays until [`Load::clear`].
#[derive(Debug)]
pub struct Load(Inmate);

impl Load {
    /// Starts one inside a container.
    ///
    /// # Errors
    /// [`Error::NotInside`].
    pub fn start(program: Option<&Path>, target: &Target) -> Result<Load, Error> {
        Ok(Load(Inmate::start(program, target, Job::Write, inmate::size(Job::Write))?))
    }

    /// Its writes so far, and the processor time they took: others on a busy machine take from its speed, not from this.
    #[must_use]
    pub fn count(&self) -> (u64, Duration) {
        let word = self.0.words.as_slice()[0].load(Relaxed);
        ((word & 0xffff_ffff) * BATCH, Duration::from_micros(word >> 32))
    }

    /// Ends it and removes its file through the container's root.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn clear(self, target: &Target) -> Result<(), Error> {
        drop(self);
        let file = crate::container::process::root(target.init).join(&FILE[1..]);
        fs::remove_file(&file).map_err(Error::io("remove", &file))
    }
}
