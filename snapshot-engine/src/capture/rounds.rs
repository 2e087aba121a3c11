//! The pre-copy rounds: what is read when, and what is put back.
//!
//! ```text
//!   take() -> (i) list what is dirty, watch what is new -> settle() -> (iii) list again, read, copy -> drop what is gone
//!                                                                        |
//!                          met only now, vanished, direct I/O: put back <+
//! ```
//!
//! * An inode that is met in (i) was watched before `settle`: every call that may have passed its events before has ended when it is
//!   read, and every later one leaves an event (T2). One that is met only in (iii) has no such promise; it is put back, hence
//!   read in the next round, or by the window, which sees it as dirty.
//! * The base is a round in which everything is new and nothing was taken: (i) is then the first pass over the tree and (iii) the second.
//! * Whatever was taken and did not end in the index is put back (T3): on an error and without a settled tracker that is all of it.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rustix::time::{ClockId, clock_gettime};

use super::copy::{Done, Fault, Job, Plan, data_name};
use super::index::{Body, Known};
use super::walk::moved;
use super::{Error, Round, Shadow};
use crate::kernel::beneath::{self, Dir, Stat};
use crate::model::dirty::{Dirty, Ino, Watch};
use crate::model::progress::Progress;

/// Time stamps are as coarse as the timer tick (`ktime_get_coarse_real_ts64`), which is 10 ms at `CONFIG_HZ=100`: what happens again so shortly after
/// may have the same one. With a margin for a stepped clock.
const TICK: i128 = 100_000_000;

/// How often the progress is told while waiting for the copiers.
const TELL: Duration = Duration::from_millis(50);

impl Known {
    /// Whether `stat` is of this very inode: number and birth time (T: identity), and the same kind of file.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        self.stat.ino == stat.ino
            && self.stat.btime == stat.btime
            && self.stat.file_type() == stat.file_type()
            && !(self.young && stat.is_file())
    }
}

/// Whether an inode with this birth time, read now, cannot be told from a successor with the same number.
pub(super) fn young(stat: &Stat) -> bool {
    stat.btime == (0, 0) || just_now(stat.btime)
}

/// Whether something that changes now might get this time stamp once more.
pub(super) fn just_now(time: (i64, u32)) -> bool {
    let now = clock_gettime(ClockId::Realtime);
    let age = (i128::from(now.tv_sec) - i128::from(time.0)) * 1_000_000_000
        + (i128::from(now.tv_nsec) - i128::from(time.1));
    age < TICK
}

/// Everything there is to an inode.
fn all_of(ino: Ino) -> Dirty {
    Dirty { ino, meta: true, whole: true, direct: false, tail: None, ranges: Vec::new() }
}

/// Between two inodes: a large tree takes minutes, and who wants us to stop does not wait for that.
fn go_on(progress: &dyn Progress) -> Result<(), Error> {
    if progress.stopped() { Err(Error::Stopped) } else { Ok(()) }
}

/// The state of one round.
#[derive(Default)]
struct Work {
    /// What this round answers for (T3), and the order it is done in: as it was met, directory by directory.
    wanted: HashMap<Ino, Dirty>,
    order: Vec<Ino>,
    /// The directories listed in (i).
    listed: HashSet<Ino>,
    lists: Vec<Ino>,
    /// The directories that were to be listed and could not be found. Should one turn up again, its names are still to be read.
    unlisted: HashSet<Ino>,
    /// What waits for the next round.
    late: HashMap<Ino, Dirty>,
    /// Jobs handed to the copiers and not back yet.
    outstanding: usize,
    base: bool,
    round: Round,
}

impl Work {
    fn want(&mut self, dirty: Dirty) {
        let ino = dirty.ino;
        match self.wanted.entry(ino) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(dirty);
                self.order.push(ino);
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let had = entry.get_mut();
                had.meta |= dirty.meta;
                had.whole |= dirty.whole;
                had.direct |= dirty.direct;
                had.tail = had.tail.into_iter().chain(dirty.tail).min();
                had.ranges.extend(dirty.ranges);
            }
        }
    }
}

impl Shadow {
    /// The first round: the whole tree.
    ///
    /// # Errors
    /// As [`round`](Shadow::round). After [`Error::TrackerFull`] the caller starts over with a new shadow.
    pub fn base(&mut self, watch: &mut dyn Watch, progress: &dyn Progress) -> Result<Round, Error> {
        progress.stage("base copy");
        for root in self.index.roots() {
            self.watch(watch, root, 0)?;
        }
        let work = Work { base: true, ..Work::default() };
        self.run(work, self.index.roots().map(all_of).collect(), watch, progress)
    }

    /// Brings the shadow up to date with what was dirtied since the last round.
    ///
    /// # Errors
    /// When the upperdir cannot be read or the shadow not be written. Everything that was taken from the tracker is dirty again then, and
    /// the round may be repeated.
    pub fn round(&mut self, watch: &mut dyn Watch, progress: &dyn Progress) -> Result<Round, Error> {
        progress.stage("pre-copy round");
        let taken = watch.take();
        self.run(Work::default(), taken, watch, progress)
    }

    fn run(
        &mut self,
        mut work: Work,
        taken: Vec<Dirty>,
        watch: &mut dyn Watch,
        progress: &dyn Progress,
    ) -> Result<Round, Error> {
        let started = Instant::now();
        for dirty in taken {
            work.round.dirty += self.dirty_bytes(&dirty);
            work.want(dirty);
        }
        let result = self.steps(&mut work, watch, progress);
        // Also after an error: a job that comes back later would be taken for one of the next round.
        let drained = self.drain(&mut work, progress);
        let result = result.and(drained).and_then(|()| self.drop_gone(watch, false));
        let mut back: Vec<Dirty> = work.late.into_values().collect();
        if result.is_err() || !work.round.settled {
            back.extend(work.wanted.into_values());
        }
        // What was dropped is not watched any more; should it turn up again, a listing brings it as new.
        back.retain(|dirty| self.index.get(dirty.ino).is_some());
        work.round.late = back.len() as u64;
        watch.put_back(&back);
        result?;
        work.round.took = started.elapsed();
        Ok(work.round)
    }

    /// How many bytes of content a taken inode may have changed, as far as its size is known.
    fn dirty_bytes(&self, dirty: &Dirty) -> u64 {
        let size = self.index.known(dirty.ino).map_or(0, |known| known.stat.size);
        if dirty.whole {
            return size;
        }
        let tail = dirty.tail.map_or(0, |from| size.saturating_sub(from));
        tail + dirty.ranges.iter().map(|r| r.end - r.start).sum::<u64>()
    }

    fn steps(
        &mut self,
        work: &mut Work,
        watch: &mut dyn Watch,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        // (i) An inode the index does not have was dropped with the directory that held it; a listing brings it back.
        work.order.retain(|ino| self.index.get(*ino).is_some());
        let known = &self.index;
        work.wanted.retain(|ino, _| known.get(*ino).is_some());
        let mut stack: Vec<Ino> = work
            .order
            .iter()
            .copied()
            .filter(|ino| self.index.get(*ino).is_some_and(|n| n.known.is_none() || n.entries.is_some()))
            .collect();
        stack.reverse();
        let mut bytes = 0u64;
        while let Some(ino) = stack.pop() {
            if work.listed.contains(&ino) {
                continue;
            }
            go_on(progress)?;
            let Some((dir, linked)) = self.list(ino)? else {
                work.unlisted.insert(ino);
                continue;
            };
            work.listed.insert(ino);
            work.lists.push(ino);
            for (ino, kind) in linked {
                let (new, size, kind) = self.meet(&dir, ino, kind, watch)?;
                bytes = bytes.saturating_add(size);
                work.want(if new { all_of(ino) } else { Dirty { whole: false, ..all_of(ino) } });
                if new && kind == libc::DT_DIR {
                    stack.push(ino);
                }
            }
        }
        progress.total(bytes);
        work.round.directories = work.lists.len() as u64;

        work.round.settled = watch.settle();

        // (iii)
        for ino in std::mem::take(&mut work.lists) {
            let Some((dir, linked)) = self.list(ino)? else {
                // Gone, moved, or no directory any more.
                work.listed.remove(&ino);
                work.unlisted.insert(ino);
                continue;
            };
            for (ino, kind) in linked {
                let (new, _, _) = self.meet(&dir, ino, kind, watch)?;
                if new && !work.wanted.contains_key(&ino) {
                    work.late.insert(ino, all_of(ino));
                } else if !new {
                    // It has a new name: its change time and link count are others, but it was watched all along.
                    work.want(Dirty { whole: false, ..all_of(ino) });
                }
            }
        }
        for ino in std::mem::take(&mut work.order) {
            if !work.late.contains_key(&ino) {
                self.read(work, ino, watch)?;
            }
            while let Ok(done) = self.copier.done().try_recv() {
                self.commit(work, done)?;
            }
            progress.advance(self.copier.moved());
            go_on(progress)?;
        }
        Ok(())
    }

    /// Lists a directory into the index: it, and the inodes that were not under their name before. `None`: it is not there, or not a
    /// directory.
    #[expect(clippy::type_complexity, reason = "used twice, right above")]
    fn list(&mut self, ino: Ino) -> Result<Option<(Arc<Dir>, Vec<(Ino, u8)>)>, Error> {
        let room = self.options.max_entries;
        let entries = self.walker.dir(&self.index, ino).and_then(|dir| {
            let entries = dir.entries_at_most(room)?;
            Ok((dir, entries))
        });
        let (dir, entries) = match entries {
            Ok(listed) => listed,
            Err(e) if moved(&e) => return Ok(None),
            Err(e) => return Err(Error::upper("list", self.index.path(ino), e)),
        };
        if entries.len() > room {
            return Err(Error::TooManyEntries { limit: room });
        }
        let linked = self.index.set_entries(ino, entries.into_iter().map(|e| (e.name, Ino(e.ino), e.kind)));
        if self.index.len() > room {
            return Err(Error::TooManyEntries { limit: room });
        }
        Ok(Some((dir, linked)))
    }

    /// A name that was not there before: watches its inode if it is new. Returns whether it is, its size and its `DT_*`.
    fn meet(
        &mut self,
        dir: &Dir,
        ino: Ino,
        mut kind: u8,
        watch: &mut dyn Watch,
    ) -> Result<(bool, u64, u8), Error> {
        let Some(node) = self.index.get(ino) else { return Ok((false, 0, kind)) };
        self.must_be_apart(ino)?;
        // A listing gives a btrfs subvolume the number of its tree, which any inode here may have.
        let device = self.identity.0;
        let elsewhere = |name: &std::ffi::CStr| dir.stat(name).is_ok_and(|stat| stat.dev != device);
        if kind == libc::DT_DIR && node.links.iter().any(|(_, name)| elsewhere(name)) {
            return Err(Error::Subvolume { path: self.index.path(ino) });
        }
        let mut size = 0;
        if (kind == libc::DT_UNKNOWN || (kind == libc::DT_REG && node.known.is_none()))
            && let Some((_, name)) = node.links.last()
            // The size is a hint; if the name is gone already, the read will tell.
            && let Ok(stat) = dir.stat(name)
        {
            size = stat.size;
            kind = u8::try_from(stat.file_type() >> 12).unwrap_or(libc::DT_UNKNOWN);
        }
        if let Some(known) = &node.known
            && (known.body == Body::Directory) != (kind == libc::DT_DIR)
            && kind != libc::DT_UNKNOWN
        {
            // Another inode under a number that was used before.
            self.forget(ino)?;
        }
        let new = self.index.known(ino).is_none();
        if new {
            self.watch(watch, ino, size)?;
        }
        Ok((new, size, kind))
    }

    fn watch(&self, watch: &mut dyn Watch, ino: Ino, size: u64) -> Result<(), Error> {
        watch.watch(ino, size).map_err(|_full| Error::TrackerFull { watched: self.index.len() })
    }

    /// Reads one inode: metadata at once, content by a job for the copiers.
    fn read(&mut self, work: &mut Work, ino: Ino, watch: &mut dyn Watch) -> Result<(), Error> {
        let Some(dirty) = work.wanted.get(&ino).cloned() else { return Ok(()) };
        let fail = |shadow: &Shadow, op, e| Error::upper(op, shadow.index.path(ino), e);
        // It is in no directory just now, gone or being renamed: if it turns up again in the next round, this is still dirty.
        let (place, stat) = match self.walker.locate(&self.index, ino) {
            Ok(found) => found,
            Err(e) if moved(&e) => {
                work.late.insert(ino, dirty);
                return Ok(());
            }
            Err(e) => return Err(fail(self, "open", e)),
        };
        if stat.dev != self.identity.0 {
            return Err(Error::Subvolume { path: self.index.path(ino) });
        }
        let known = self.index.known(ino);
        let same = known.is_some_and(|known| known.is(&stat));
        let fresh = !same || dirty.whole;
        let unread = !same || self.index.get(ino).is_none_or(|n| n.entries.is_none());
        if stat.is_dir() && !work.listed.contains(&ino) && (unread || work.unlisted.contains(&ino)) {
            // It became one after (i), is another one, or one above it was renamed so that it was not found: its entries are still to be listed
            // and watched.
            if known.is_some_and(|known| known.body != Body::Directory) {
                // A directory with the number and the name that a file had before: no listing brings it as new, and only a placeholder or a directory
                // is listed.
                self.forget(ino)?;
            }
            work.late.insert(ino, all_of(ino));
            return Ok(());
        }
        let young = young(&stat);
        if !stat.is_file() {
            let xattrs =
                beneath::xattrs_path(place.as_fd()).map_err(|e| fail(self, "read the attributes of", e))?;
            let body = if stat.is_dir() {
                if !work.base {
                    let fd = beneath::reopen(place.as_fd()).map_err(|e| fail(self, "open", e))?;
                    self.hot.keep(ino, fd);
                }
                Body::Directory
            } else if stat.is_symlink() {
                let link = beneath::read_link_fd(place.as_fd());
                Body::Symlink(link.map_err(|e| fail(self, "read the link", e))?)
            } else {
                Body::Special
            };
            work.round.inodes += 1;
            return self.know(ino, Known { stat, xattrs, body, young, steady: false });
        }
        // It was a regular file when `place` was opened, and an inode never changes its type.
        let source = beneath::reopen(place.as_fd()).map_err(|e| fail(self, "open", e))?;
        let xattrs = match self.index.known(ino) {
            Some(known) if !fresh && !dirty.meta => known.xattrs.clone(),
            _ => beneath::xattrs_fd(source.as_fd()).map_err(|e| fail(self, "read the attributes of", e))?,
        };
        let (plan, serial) = match (fresh, self.index.serial(ino)) {
            (false, Some(serial)) => {
                let had = self.index.known(ino).map_or(0, |known| known.stat.size);
                (Plan::Ranges(ranges(&dirty, had, stat.size)), serial)
            }
            _ => (Plan::Whole, self.next_serial()),
        };
        if let Plan::Ranges(ranges) = &plan
            && ranges.is_empty()
            && !dirty.direct
            && self.index.known(ino).is_some_and(|known| known.stat.size == stat.size)
        {
            self.hot.keep(ino, source);
            work.round.inodes += 1;
            let steady = self.index.known(ino).is_some_and(|known| known.steady);
            return self.know(ino, Known { stat, xattrs, body: Body::File { serial }, young, steady });
        }
        // T4: take -> settle -> probe -> sync -> read. The copier syncs.
        let probe = watch.probe(source.as_fd(), matches!(plan, Plan::Whole));
        // The container can set its modification time, and not this one. Asked after the probe: what is mapped later changes it later.
        if !probe.mapped && just_now(stat.ctime) {
            self.hasty.insert(ino);
        } else {
            self.hasty.remove(&ino);
        }
        if probe.direct_io {
            // Its bytes may land after we have read; the event is behind us already.
            work.late.insert(ino, Dirty { direct: true, ..dirty });
        }
        let steady = self.index.known(ino).is_none() && !probe.mapped && !probe.direct_io;
        let job = Job { ino, source, stat, xattrs, plan, serial, sync: probe.mapped, young, steady };
        if !self.copier.push(job) {
            return Err(Error::Threads { source: std::io::ErrorKind::BrokenPipe.into() });
        }
        work.outstanding += 1;
        Ok(())
    }

    /// Takes a finished copy into the index.
    fn commit(&mut self, work: &mut Work, done: Done) -> Result<(), Error> {
        work.outstanding -= 1;
        let Job { ino, source, stat, xattrs, plan, serial, young, steady, .. } = done.job;
        let (bytes, cloned) = match done.result {
            Ok(moved) => moved,
            Err(fault) => {
                if matches!(plan, Plan::Whole) {
                    self.discard(ino, serial)?;
                }
                return Err(match fault {
                    Fault::Upper(op, e) => Error::upper(op, self.index.path(ino), e),
                    Fault::Shadow(op, e) => {
                        let path = self.disk.shadow_path("data").join(data_name(ino, serial));
                        Error::shadow(op, path, e)
                    }
                });
            }
        };
        work.round.inodes += 1;
        work.round.bytes += bytes;
        work.round.cloned += cloned;
        if !work.base {
            self.hot.keep(ino, source);
        }
        self.know(ino, Known { stat, xattrs, body: Body::File { serial }, young, steady })
    }

    /// Waits for the copiers; returns the first error of those that were left.
    fn drain(&mut self, work: &mut Work, progress: &dyn Progress) -> Result<(), Error> {
        let mut result = Ok(());
        while work.outstanding > 0 {
            match self.copier.done().recv_timeout(TELL) {
                Ok(done) => {
                    let committed = self.commit(work, done);
                    result = result.and(committed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Threads { source: std::io::ErrorKind::BrokenPipe.into() });
                }
            }
            progress.advance(self.copier.moved());
        }
        result
    }

    /// Takes what was read of an inode into the index and removes the data file it replaces.
    pub(super) fn know(&mut self, ino: Ino, known: Known) -> Result<(), Error> {
        if let Some(serial) = self.index.set_known(ino, known) {
            self.discard(ino, serial)?;
        }
        let limit = self.options.max_attributes;
        if self.index.bytes() > limit { Err(Error::TooManyAttributes { limit }) } else { Ok(()) }
    }

    /// Makes an inode a placeholder again.
    pub(super) fn forget(&mut self, ino: Ino) -> Result<(), Error> {
        self.hot.close(ino);
        self.walker.close(ino);
        match self.index.forget(ino) {
            Some(serial) => self.discard(ino, serial),
            None => Ok(()),
        }
    }

    /// Drops the inodes that are in no directory any more.
    fn drop_gone(&mut self, watch: &mut dyn Watch, all: bool) -> Result<(), Error> {
        // Even in their round of grace: a descriptor keeps a deleted file's space from being freed.
        for ino in self.index.orphans() {
            self.hot.close(ino);
        }
        for (ino, serial) in self.index.drop_orphans(all) {
            watch.unwatch(ino);
            self.hot.close(ino);
            self.walker.close(ino);
            if let Some(serial) = serial {
                self.discard(ino, serial)?;
            }
        }
        Ok(())
    }
}

/// The ranges to copy of a file that had `had` bytes and now has `size`: sorted, disjoint, within the file.
fn ranges(dirty: &Dirty, had: u64, size: u64) -> Vec<std::ops::Range<u64>> {
    let mut all = dirty.ranges.clone();
    all.extend(dirty.tail.map(|tail| tail..size));
    // What was appended is dirty in any case.
    all.push(had..size);
    all.iter_mut().for_each(|range| range.end = range.end.min(size));
    all.retain(|range| range.start < range.end);
    all.sort_by_key(|range| range.start);
    let mut merged: Vec<std::ops::Range<u64>> = Vec::with_capacity(all.len());
    for range in all {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
