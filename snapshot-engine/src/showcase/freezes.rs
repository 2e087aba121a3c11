//! What others pay for a pause: a `cgroup.freeze` round trip, made as cheaply as user space can.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Error;
use super::report::{FreezeReport, percentiles};
use crate::container::cgroup::members;
use crate::demo::Demo;

const ROUND_TRIPS: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(1);

/// Freezes and thaws a container of sleepers, again and again. It is thawed on return.
///
/// # Errors
/// When it has no version 2 cgroup, or does not freeze.
pub(super) fn measure(crowd: &Demo) -> Result<FreezeReport, Error> {
    let dir = crowd.state.cgroup_v2.as_deref().ok_or(Error::NoCgroup)?;
    let control_path = dir.join("cgroup.freeze");
    let events_path = dir.join("cgroup.events");
    let control =
        OpenOptions::new().write(true).open(&control_path).map_err(Error::io("open", &control_path))?;
    let events = File::open(&events_path).map_err(Error::io("open", &events_path))?;
    let tasks = members(dir).map_err(Error::io("list", dir))?.len() as u64;
    let set = |state: &[u8]| control.write_all_at(state, 0).map_err(Error::io("write", &control_path));
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        set(b"1")?;
        let frozen = reached(&events, dir, true);
        set(b"0")?;
        frozen?;
        reached(&events, dir, false)?;
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(FreezeReport { tasks, round_trips: ROUND_TRIPS, round_trip: percentiles(&times) })
}

fn reached(events: &File, dir: &Path, frozen: bool) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 256];
    loop {
        let len = events.read_at(&mut buffer, 0).map_err(Error::io("read", &dir.join("cgroup.events")))?;
        if buffer[..len]
            .split(|b| *b == b'\n')
            .any(|line| line == if frozen { b"frozen 1" } else { b"frozen 0" })
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = if frozen { "freeze" } else { "thaw" };
            return Err(Error::NotFrozen { what, path: dir.to_owned() });
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos().max(1)) };
        // Woken by the kernel as soon as the state changes; an early or a late wake-up is only another look.
        let _ = poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout));
    }
}
