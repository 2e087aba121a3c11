//! The freezer gate: the container's cgroup, version 2 (`cgroup.freeze`) or 1 (`freezer.state`).
//!
//! Everything is opened before: freezing and thawing are one write each. Waiting is a short sleep between looks. Not a spin: a spinning real-time thread
//! kept tasks from reaching the freezer for 950 ms. And not `poll(2)` on `cgroup.events`: its wake-ups are held back to one in 10 ms
//! (CGROUP_FILE_NOTIFY_MIN_INTV, kernel/cgroup/cgroup.c), so that a freeze soon after a thaw is told late: 1.1 ms where it took 30 us. Version 1 wakes nobody at all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

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
    events: Option<OwnedFd>,
    v2: bool,
    watchdog: Watchdog,
}

/// The container is frozen as long as this lives. Thaws on drop, whatever happens.
#[derive(Debug)]
pub struct Frozen<'a> {
    freezer: &'a Freezer,
    thawed: bool,
}

/// Between two looks whether everybody is frozen.
const LOOK: Duration = Duration::from_micros(10);
const FREEZE_V2: &[u8] = b"1";
const THAW_V2: &[u8] = b"0";
const FREEZE_V1: &[u8] = b"FROZEN";
const THAW_V1: &[u8] = b"THAWED";

impl Freezer {
    /// Opens a freezer and starts its watchdog. `limit` is the longest freeze it stands for.
    ///
    /// # Errors
    /// When the files cannot be opened for writing, or the watchdog cannot be started.
    pub fn open(place: &Place, limit: Duration) -> io::Result<Freezer> {
        let open = |name: &str, flags: OFlags| {
            rustix::fs::open(place.path().join(name), flags | OFlags::CLOEXEC, Mode::empty())
        };
        let (control, events, v2, thaw) = match place {
            Place::V2(_) => (
                open("cgroup.freeze", OFlags::RDWR)?,
                Some(open("cgroup.events", OFlags::RDONLY)?),
                true,
                THAW_V2,
            ),
            Place::V1(_) => (open("freezer.state", OFlags::RDWR)?, None, false, THAW_V1),
        };
        let watchdog = Watchdog::start(control.as_fd(), thaw, limit)?;
        Ok(Freezer { control, events, v2, watchdog })
    }

    /// Whether every task is frozen.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let mut buffer = [0; 256];
        let file = self.events.as_ref().unwrap_or(&self.control);
        let len = rustix::io::pread(file, &mut buffer, 0)?;
        let text = &buffer[..len];
        Ok(if self.v2 {
            text.split(|b| *b == b'\n').any(|line| line == b"frozen 1")
        } else {
            text.trim_ascii_end() == FREEZE_V1
        })
    }

    /// Arms the watchdog. Before [`Freezer::freeze`], outside the window.
    ///
    /// # Errors
    /// When the watchdog is gone: then nothing is frozen.
    pub fn arm(&self) -> io::Result<()> {
        self.watchdog.arm()
    }

    /// Disarms the watchdog, outside the window.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn disarm(&self) -> io::Result<()> {
        self.watchdog.disarm()
    }

    /// Freezes and waits until every task is. On an error, and when the deadline passes first, the container is thawed again.
    ///
    /// # Errors
    /// `TimedOut` at the deadline.
    pub fn freeze(&self, deadline: Instant) -> io::Result<Frozen<'_>> {
        let frozen = Frozen { freezer: self, thawed: false };
        rustix::io::pwrite(&self.control, if self.v2 { FREEZE_V2 } else { FREEZE_V1 }, 0)?;
        while !self.is_frozen()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK.min(left));
        }
        Ok(frozen)
    }

    fn thaw(&self) -> io::Result<()> {
        let state = if self.v2 { THAW_V2 } else { THAW_V1 };
        loop {
            match rustix::io::pwrite(&self.control, state, 0) {
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
