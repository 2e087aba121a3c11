//! How fast a container makes its tree dirty: what a round of pre-copy would have to copy again for each second it takes.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Error;
use super::attach::{scope, upper};
use super::progress::Stage;
use super::session::io_of;
use super::survey::survey;
use crate::container::Target;
use crate::model::dirty::{Dirty, Ino, Watch as _};
use crate::model::fault::Class;
use crate::track::Tracker;

/// Bytes a second that became dirty, measured by the tracker for so long: of files it knew, the blocks that were written, once each (a page, or 64 KiB in files
/// that were small); of files made meanwhile, all. Nobody is held, and nothing is copied.
///
/// # Errors
/// When the tracker cannot be attached, or the tree has more files than it can watch.
pub(super) fn measure(target: &Target, time: Duration) -> Result<u64, Error> {
    let io = |e| io_of(Stage::Track, e);
    let track = |e: crate::track::Error| Error::stage(Stage::Track, Class::General, None, e);
    let full = |e| Error::stage(Stage::Track, Class::General, None, e);
    let root = upper(target).map_err(io)?;
    let found = survey(&root, |_, _| {}).map_err(io)?;
    let mut tracker = Tracker::start(&scope(target, found.inodes, found.large_bytes, 0)?).map_err(track)?;
    tracker.watch(Ino(target.overlay.upper_identity.1), 0).map_err(full)?;
    let mut known = HashSet::new();
    let mut watched = Ok(());
    survey(&root, |ino, size| {
        if known.insert(ino) {
            watched = watched.and_then(|()| tracker.watch(ino, size));
        }
    })
    .map_err(io)?;
    watched.map_err(full)?;
    tracker.take();
    let began = Instant::now();
    std::thread::sleep(time);
    let dirty = tracker.take();
    let took = began.elapsed();
    drop(tracker);
    let written: HashSet<Ino> = dirty.iter().map(|d| d.ino).collect();
    let mut bytes: u64 = dirty.iter().map(ranges).sum();
    // What is dirty as a whole, or from somewhere on, is as long as it is now.
    let wholes = |ino: &Ino| dirty.iter().find(|d| d.ino == *ino);
    let mut counted = HashSet::new();
    survey(&root, |ino, size| {
        if !counted.insert(ino) {
            return;
        }
        if !known.contains(&ino) {
            bytes += size;
        } else if written.contains(&ino)
            && let Some(d) = wholes(&ino)
        {
            bytes += if d.whole { size } else { d.tail.map_or(0, |from| size.saturating_sub(from)) };
        }
    })
    .map_err(io)?;
    Ok(u64::try_from(u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1)).unwrap_or(u64::MAX))
}

fn ranges(dirty: &Dirty) -> u64 {
    if dirty.whole {
        return 0;
    }
    dirty.ranges.iter().map(|range| range.end - range.start).sum()
}
