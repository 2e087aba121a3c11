//! What others pay for a pause at the least: a freezer's round trip, made as cheaply as user space can.
//!
//! A watchdog stands behind it as behind the engine's own freezer, armed and disarmed outside of the time: a container is not left frozen by
//! whoever measures it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Error;
use super::series::{Done, Rival};
use crate::container::Freezer;
use crate::demo::ticks::now_ns;
use crate::kernel::watchdog::Watchdog;
use crate::model::nanos::Nanos;

const PATIENCE: Duration = Duration::from_secs(1);

/// A cgroup's freezer, its files opened beforehand.
#[derive(Debug)]
pub struct RoundTrip {
    dir: PathBuf,
    control: File,
    /// Of version 2. Version 1 tells its state in `control`.
    events: Option<File>,
    watchdog: Watchdog,
}

/// How long one round trip took.
#[derive(Debug, Clone, Copy)]
pub struct Trip {
    /// When it began, on `CLOCK_MONOTONIC`.
    pub from: Nanos,
    /// From the first write until all tasks stood still.
    pub freeze: Duration,
    /// From the second write until the kernel said that they go on.
    pub thaw: Duration,
}

impl RoundTrip {
    /// Opens its files.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn open(freezer: &Freezer) -> Result<RoundTrip, Error> {
        let (dir, control, events) = match freezer {
            Freezer::V2(dir) => (dir, "cgroup.freeze", Some("cgroup.events")),
            Freezer::V1(dir) => (dir, "freezer.state", None),
        };
        let path = dir.join(control);
        let control =
            OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        let open = |name| File::open(dir.join(name)).map_err(Error::io("open", &dir.join(name)));
        let events = events.map(open).transpose()?;
        let watchdog = Watchdog::start(control.as_fd(), text(events.is_some(), false), PATIENCE * 2, None)
            .map_err(Error::io("start a watchdog for", dir))?;
        Ok(RoundTrip { dir: dir.clone(), control, events, watchdog })
    }

    /// Freezes and thaws once. The cgroup is thawed on return, whatever happened.
    ///
    /// # Errors
    /// When it does not freeze or thaw within a second, and when its owner has paused it: then it stays so.
    pub fn once(&self) -> Result<Trip, Error> {
        let guard = Error::io("reach the watchdog of", &self.dir);
        if self.is_frozen().map_err(Error::io("read the state of", &self.dir))? {
            return Err(Error::Paused);
        }
        self.watchdog.arm().map_err(guard)?;
        let trip = self.timed();
        self.watchdog.disarm().map_err(Error::io("reach the watchdog of", &self.dir))?;
        trip
    }

    fn timed(&self) -> Result<Trip, Error> {
        let (from, began) = (Nanos(now_ns()), Instant::now());
        self.set(true)?;
        let frozen = self.reached(true);
        let freeze = began.elapsed();
        let began = Instant::now();
        self.set(false)?;
        frozen?;
        self.reached(false)?;
        Ok(Trip { from, freeze, thaw: began.elapsed() })
    }

    fn set(&self, frozen: bool) -> Result<(), Error> {
        let text = text(self.events.is_some(), frozen);
        self.control.write_all_at(text, 0).map_err(Error::io("freeze or thaw", &self.dir))
    }

    /// Waits by yielding: see `freeze/freezer.rs` for why that is the quickest way, and why not `poll(2)`, which would tell late.
    fn reached(&self, frozen: bool) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_frozen().map_err(Error::io("read the state of", &self.dir))? != frozen {
            if Instant::now() > deadline {
                let what = if frozen { "freeze" } else { "thaw" };
                return Err(Error::NotFrozen { what, path: self.dir.clone() });
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// A look at version 1's state also finds out whether the last task has stopped (`freezer_read`, kernel/cgroup/legacy_freezer.c).
    fn is_frozen(&self) -> std::io::Result<bool> {
        let mut buffer = [0; 256];
        let len = self.events.as_ref().unwrap_or(&self.control).read_at(&mut buffer, 0)?;
        Ok(buffer[..len].split(|b| *b == b'\n').any(|line| line == b"frozen 1" || line == b"FROZEN"))
    }
}

/// What freezes or thaws when written to the freezer of this version.
fn text(v2: bool, frozen: bool) -> &'static [u8] {
    match (v2, frozen) {
        (true, true) => b"1",
        (true, false) => b"0",
        (false, true) => b"FROZEN",
        (false, false) => b"THAWED",
    }
}

impl Rival for RoundTrip {
    fn name(&self) -> String {
        if self.events.is_some() { "cgroup.freeze" } else { "freezer.state" }.into()
    }

    fn perform(&mut self) -> Result<Done, Error> {
        let trip = self.once()?;
        Ok(Done { from: trip.from, to: Nanos(trip.from.0 + Nanos::from(trip.freeze + trip.thaw).0) })
    }
}
