//! The freezer gate: the container's cgroup, version 2 (`cgroup.freeze`) or 1 (`freezer.state`).
//!
//! Everything is opened before: freezing and thawing are one write each. How it waits in between decides how long the freeze takes, because
//! tasks need a core to reach the freezer, and perhaps this one:
//!
//! ```text
//!   write ─► step aside (no real-time priority), yield between looks ─┬─ everybody frozen
//!                │ somebody else ran for long, or 0.5 ms are over      │
//!                └─► real-time again, sleep 10 us between looks ───────┘
//! ```
//!
//! Measured on 2 cores, freeze and thaw of 1, 10 and 100 tasks (median): yielding 15, 65 and 500 us; sleeping, which leaves an idle core that
//! first has to be woken up, 73, 320 and 730 us. Yielding gives whoever else runs on this core up to a tick of it, though: so it is asked before
//! ([`Freezer::arm`]) whether anybody does. Not a spin: a spinning real-time thread kept tasks from reaching the freezer for 950 ms. And not
//! `poll(2)` on `cgroup.events`: its wake-ups are held back to one in 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV, kernel/cgroup/cgroup.c), so that a
//! freeze soon after a thaw is told late: 1.1 ms where it took 30 us. Version 1 wakes nobody at all.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::everybody;
use crate::kernel::held::Note;
use crate::kernel::scheduling::Aside;
use crate::kernel::watchdog::Watchdog;

/// Which freezer, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A version 2 cgroup's directory.
    V2(PathBuf),
    /// A version 1 freezer cgroup's directory.
    V1(PathBuf),
}

impl Place {
    /// The cgroup's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Place::V2(path) | Place::V1(path) => path,
        }
    }
}

/// An opened freezer with its watchdog.
#[derive(Debug)]
pub struct Freezer {
    // The watchdog goes last: as long as the freezer can freeze, somebody watches.
    control: OwnedFd,
    v2: Option<Version2>,
    limit: Duration,
    /// Somebody else had something to do on our core a moment ago.
    crowded: Cell<bool>,
    watchdog: RefCell<Watchdog>,
    /// For the next engine, should this one and the watchdog be killed together.
    note: Note,
}

/// What tells the state of a version 2 cgroup.
#[derive(Debug)]
struct Version2 {
    path: PathBuf,
    events: OwnedFd,
    stat: OwnedFd,
}

/// The container is frozen as long as this lives. Thaws on drop, whatever happens.
#[derive(Debug)]
pub struct Frozen<'a> {
    freezer: &'a Freezer,
    thawed: bool,
}

/// A yield that takes longer gave the core to somebody who computes. A task on its way into the freezer needs some 5 us.
const LONG: Duration = Duration::from_micros(60);
/// Who is not frozen after this long waits for something else than a core.
const YIELDING: Duration = Duration::from_micros(500);
/// Between two looks whether everybody is frozen, from then on.
const LOOK: Duration = Duration::from_micros(10);
const FREEZE_V2: &[u8] = b"1";
const THAW_V2: &[u8] = b"0";
const FREEZE_V1: &[u8] = b"FROZEN";
const THAW_V1: &[u8] = b"THAWED";

fn thaw(v2: bool) -> &'static [u8] {
    if v2 { THAW_V2 } else { THAW_V1 }
}

impl Freezer {
    /// Opens a freezer and starts its watchdog. `limit` is the longest freeze it stands for; `notes` the directory that takes its note
    /// ([`crate::kernel::held`]).
    ///
    /// # Errors
    /// When the files cannot be opened for writing, or the watchdog cannot be started.
    pub fn open(place: &Place, limit: Duration, notes: &Path) -> io::Result<Freezer> {
        let open = |name: &str, flags: OFlags| {
            rustix::fs::open(place.path().join(name), flags | OFlags::CLOEXEC, Mode::empty())
        };
        let (name, v2) = match place {
            Place::V2(path) => {
                let (events, stat) =
                    (open("cgroup.events", OFlags::RDONLY)?, open("cgroup.stat", OFlags::RDONLY)?);
                ("cgroup.freeze", Some(Version2 { path: path.clone(), events, stat }))
            }
            Place::V1(_) => ("freezer.state", None),
        };
        let control = open(name, OFlags::RDWR)?;
        let word = thaw(v2.is_some());
        let note = Note::write(notes, &place.path().join(name), word)?;
        let watchdog = Watchdog::start(control.as_fd(), word, limit, Some(&note))?;
        let crowded = Cell::new(false);
        Ok(Freezer { control, v2, limit, crowded, watchdog: RefCell::new(watchdog), note })
    }

    /// Whether every task is frozen, of the cgroups below too (`freeze/everybody.rs` for version 2; version 1 asks each of them when its state is read).
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        let Some(v2) = &self.v2 else {
            let len = rustix::io::pread(&self.control, &mut buffer, 0)?;
            return Ok(buffer[..len].trim_ascii_end() == FREEZE_V1);
        };
        let len = rustix::io::pread(&v2.events, &mut buffer, 0)?;
        if !buffer[..len].split(|b| *b == b'\n').any(|line| line == b"frozen 1") {
            return Ok(false);
        }
        let len = rustix::io::pread(&v2.stat, &mut buffer, 0)?;
        match everybody::descendants(&buffer[..len]) {
            Some(0) => Ok(true),
            _ => everybody::frozen(&v2.path),
        }
    }

    /// Arms the watchdog. Before [`Freezer::freeze`], outside the window. One that was killed is replaced.
    ///
    /// # Errors
    /// When there is no watchdog and none can be started: nothing may be frozen then.
    pub fn arm(&self) -> io::Result<()> {
        self.note.set(true)?;
        let mut watchdog = self.watchdog.borrow_mut();
        if let Err(e) = watchdog.arm() {
            tracing::warn!(%e, "the watchdog is gone; another one is started");
            *watchdog =
                Watchdog::start(self.control.as_fd(), thaw(self.v2.is_some()), self.limit, Some(&self.note))?;
            watchdog.arm()?;
        }
        // Twice: the first may give the core to somebody who only wanted a moment of it.
        let aside = Aside::step();
        self.crowded.set(aside.yield_now() > LONG && aside.yield_now() > LONG);
        Ok(())
    }

    /// Disarms the watchdog, outside the window and after the thaw. One that was killed meanwhile has nothing left to do: the next
    /// [`Freezer::arm`] replaces it.
    pub fn disarm(&self) {
        if let Err(e) = self.watchdog.borrow().disarm() {
            tracing::warn!(%e, "the watchdog was killed while the container was frozen; the engine has thawed it");
        }
        if let Err(e) = self.note.set(false) {
            tracing::warn!(%e, "the note of the freeze cannot be corrected");
        }
    }

    /// Freezes and waits until every task is. On an error, and when the deadline passes first, the container is thawed again.
    ///
    /// # Errors
    /// `TimedOut` at the deadline.
    pub fn freeze(&self, deadline: Instant) -> io::Result<Frozen<'_>> {
        let frozen = Frozen { freezer: self, thawed: false };
        rustix::io::pwrite(&self.control, if self.v2.is_some() { FREEZE_V2 } else { FREEZE_V1 }, 0)?;
        if !self.crowded.get() && self.yielding(deadline)? {
            return Ok(frozen);
        }
        while !self.is_frozen()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK.min(left));
        }
        Ok(frozen)
    }

    /// Waits by yielding, as long as that is the quicker way; true once everybody is frozen.
    fn yielding(&self, deadline: Instant) -> io::Result<bool> {
        let aside = Aside::step();
        let until = deadline.min(Instant::now() + YIELDING);
        while !self.is_frozen()? {
            if aside.yield_now() > LONG || Instant::now() >= until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn thaw(&self) -> io::Result<()> {
        loop {
            match rustix::io::pwrite(&self.control, thaw(self.v2.is_some()), 0) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // The cgroup was removed: nobody is left to thaw.
                Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Frozen<'_> {
    /// Thaws.
    ///
    /// # Errors
    /// When the kernel refuses the write; it is tried once more on drop, and the watchdog stands behind that.
    pub fn thaw(mut self) -> io::Result<()> {
        self.freezer.thaw()?;
        self.thawed = true;
        Ok(())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.thawed
            && let Err(e) = self.freezer.thaw()
        {
            tracing::error!(%e, "the container could not be thawed; the watchdog will try when its time is up");
        }
    }
}
