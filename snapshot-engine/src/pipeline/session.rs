//! A tracked container and its shadow: `track -> pre-copy (rounds) -> window`, as often as one likes.
//!
//! ```text
//!   open ─► rounds ─► attempts ─┬─ Cut ──► apply ─► sweep ─┬─ nothing missed ─► a cut
//!              ▲                │                          │
//!              └──── Round ◄────┘            a miss (T6) ──┴─► put back, void
//! ```
//!
//! One snapshot makes one cut and freezes the shadow; a measurement makes a hundred cuts on one session.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use snapshot_ebpf::{DIRT, FAULT_EARLY_READ, FAULT_IGNORE_MMAP, FAULT_KIND, FAULT_NO_SWEEP};

use super::Error;
pub use super::attach::Tracking;
use super::attach::{Attached, attach, upper};
use super::grafts::grafts;
use super::made::timed;
pub use super::made::{Copied, Made, Spent};
use super::outlook::{mapped_files, numbers, processes};
use super::progress::{Progress, Stage};
use super::turn;
use super::watched::Watched;
use crate::capture::{self, Difference, Shadow};
use crate::container::{self, Target};
use crate::freeze::attempt::{Allowed, Attempts, Outcome, Policy};
use crate::freeze::freezer::{Freezer, Place};
use crate::freeze::gate::Abandoned;
use crate::freeze::reader::{Hot, Kind};
use crate::kernel::beneath::stat_fd;
use crate::model::dirty::{Dirty, Ino, Watch};
use crate::model::fault::{Class, class_of_io, remedy_of_io};
use crate::model::nanos::Nanos;
use crate::model::options::{CommitOptions, GateChoice};
use crate::model::snapshot::Backend;
use crate::track::live::Stamp;
use crate::track::mappings::MappedFile;
use crate::track::{Tracker, evidence};

/// A tracked container and its shadow.
pub struct Session {
    // Dropped in this order: the freezer's watchdog may go once nothing can freeze any more; the tracker before the shadow.
    attempts: Attempts,
    freezer: Option<Freezer>,
    tracker: Tracker,
    shadow: Shadow,
    target: Target,
    options: CommitOptions,
    /// Tasks not yet seen outside a call that may have begun before the tracker.
    unproven: Vec<u32>,
    uring_before: bool,
    mappings_seen: Option<u64>,
    mapped: bool,
    budget: Duration,
    misses: u64,
    skipped_seen: u64,
    /// For the first cut.
    opened: Spent,
    /// Planted, for tests: `snapshot_ebpf::FAULT_*`.
    fault: u32,
}

impl Session {
    /// Attaches the tracker and makes the base copy. The container is not held.
    ///
    /// # Errors
    /// [`Error::Stage`]; nothing stays attached, and the shadow is removed.
    pub fn open(
        target: Target,
        options: &CommitOptions,
        directory: &Path,
        policy: Policy,
        fault: u32,
        progress: &dyn Progress,
    ) -> Result<Session, Error> {
        let tracking = Tracking { fault, ..Tracking::default() };
        Session::open_with(target, options, directory, policy, tracking, progress)
    }

    /// The same with a say in how it tracks.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_with(
        target: Target,
        options: &CommitOptions,
        directory: &Path,
        policy: Policy,
        tracking: Tracking,
        progress: &dyn Progress,
    ) -> Result<Session, Error> {
        let grafts = grafts(&target, options)?;
        progress.report(Stage::Track, 0, 0);
        if policy.choice == GateChoice::Freezer && place(&target).is_none() {
            let remedy = "use --gate auto or --gate fence, or give the container a cgroup of its own";
            let why = "the freezer needs a cgroup that holds the container and nobody else, and it has none";
            return Err(Error::stage(Stage::Window, Class::General, Some(remedy.to_owned()), why));
        }
        let mut opened = Spent::default();
        let Attached { tracker, shadow, unproven, uring_before, paused, base } =
            timed(&mut opened.track, || attach(&target, &grafts, directory, tracking, progress))?;
        opened.base = base;
        opened.track -= base;
        progress.check()?;
        let began = Instant::now();
        let freezer = match place(&target) {
            Some(place) if !paused => Some(
                Freezer::open(&place, policy.budget + Duration::from_millis(100), directory)
                    .map_err(|e| io_of(Stage::Window, e))?,
            ),
            _ => None,
        };
        let early_read = tracking.fault & FAULT_KIND == FAULT_EARLY_READ;
        let attempts =
            Attempts::new(Policy { early_read, ..policy }, &tracker).map_err(|e| io_of(Stage::Window, e))?;
        opened.prepare = began.elapsed();
        Ok(Session {
            attempts,
            freezer,
            tracker,
            shadow,
            target,
            options: options.clone(),
            unproven,
            uring_before,
            mappings_seen: None,
            mapped: false,
            budget: policy.budget,
            misses: 0,
            skipped_seen: 0,
            opened,
            fault: tracking.fault,
        })
    }

    /// The container.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The tracker's counters now.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.tracker.live().stamp()
    }

    /// What the tracker listens to.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.tracker.backend()
    }

    /// From the next cut on another gate, with another budget: for who compares them on one session. A freezer needs a session that was opened
    /// with no smaller budget, because its watchdog thaws soon after that.
    pub fn choose(&mut self, choice: GateChoice, budget: Duration) {
        self.attempts.choose(choice, budget);
        self.budget = budget;
    }

    /// Inodes in the shadow.
    #[must_use]
    pub fn inodes(&self) -> usize {
        self.shadow.len()
    }

    /// Rounds until an attempt succeeds: on return the shadow is the upperdir as it stood at one instant.
    ///
    /// # Errors
    /// When `--maximum-times` rounds did not do: what stood in the way, and what to do about it.
    pub fn cut(&mut self, progress: &dyn Progress) -> Result<Made, Error> {
        let stage = |e| stage_of(e, Stage::PreCopy, progress);
        let io = |e| io_of(Stage::Window, e);
        let (first, misses_before) = (self.attempts.count, self.misses);
        self.attempts.stops.clear();
        self.attempts.abandoned.clear();
        let mut last = Abandoned::NotDrained;
        let mut copied = Copied::default();
        let mut spent = std::mem::take(&mut self.opened);
        for round in 1..=self.options.maximum_times {
            progress.check()?;
            let made = self
                .shadow
                .round(&mut self.tracker, &Watched::new(progress, Stage::PreCopy))
                .map_err(stage)?;
            spent.rounds += made.took;
            copied.dirty += made.dirty;
            copied.bytes += made.bytes;
            copied.cloned += made.cloned;
            if round == 1 {
                timed(&mut spent.sweeps, || self.sweep_before())?;
            }
            progress.report(Stage::Window, 0, 0);
            let began = Instant::now();
            if !self.all_proven() {
                last = Abandoned::NotDrained;
                continue;
            }
            let asked = self.tracker.live().stamp();
            let freezer_only = self.freezer_only(asked).map_err(io)?;
            // What has become dirty since the round is opened now, while nobody is held.
            let dirty = self.tracker.take();
            if last == Abandoned::Cold {
                // Between this look and the window something else had become dirty: its working set is larger than the rounds have shown.
                self.shadow.warm_all();
            }
            for d in &dirty {
                self.shadow.warm(d.ino);
            }
            self.shadow.warm_roots();
            self.tracker.put_back(&dirty);
            let slots = self.tracker.slots();
            let hot = Hot::new(slots, self.shadow.hot().map(|(ino, fd, stat)| (ino, fd, Kind::of(stat))));
            // From here until the cut is known to stand: a freeze by another engine is no pause by the owner.
            let _turn = turn::take(&self.target, progress)?;
            // Looked at each time: its owner may pause it, or let it go on, while we are at work. Between this look and the freeze there is
            // an instant in which a pause would be taken for ours; no kernel interface closes it.
            let paused = self.target.cgroup.is_frozen().map_err(io)?;
            let kin = |ino| self.shadow.parents(ino);
            let allowed = Allowed { freezer_only, paused, asked, kin: &kin, freezer: self.freezer.as_ref() };
            let outcome = self.attempts.run(&mut self.tracker, &hot, allowed).map_err(io)?;
            spent.attempts += began.elapsed();
            match outcome {
                Outcome::Cut(pause) => {
                    drop(hot);
                    // Behind the cut: a change without an event may have been made until then, also after the attempts began.
                    let until = SystemTime::now();
                    let (inodes, bytes) = self.attempts.arena().captured();
                    timed(&mut spent.apply, || self.take_in())?;
                    if paused && !self.target.cgroup.is_frozen().map_err(io)? {
                        // Let go meanwhile: stores through mappings would have left no trace.
                        self.tracker.mark_everything();
                        last = Abandoned::Disturbed;
                        continue;
                    }
                    if self.skipped()? || timed(&mut spent.sweeps, || self.sweep_after(until))? {
                        last = Abandoned::Disturbed;
                        continue;
                    }
                    return Ok(Made {
                        pause,
                        attempts: self.attempts.count - first,
                        rounds: round,
                        inodes,
                        bytes,
                        other_stops: std::mem::take(&mut self.attempts.stops),
                        abandoned: std::mem::take(&mut self.attempts.abandoned),
                        misses: self.misses - misses_before,
                        copied,
                        spent,
                    });
                }
                Outcome::Round(why) => last = why,
                Outcome::NoGate(why) => {
                    last = why;
                    // Writers that were in the way need their turn.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Err(self.gave_up(last))
    }

    /// Takes the residual into the shadow.
    fn take_in(&mut self) -> Result<(), Error> {
        self.attempts.keep_mapped(&mut self.tracker);
        let residual = crate::freeze::arena::residual(self.attempts.arena());
        let gone =
            self.shadow.apply(&residual).map_err(|e| Error::stage(Stage::Window, Class::General, None, e))?;
        // Closing the last descriptor of a deleted file is an event of its own; nobody is to look for that inode any more.
        for ino in gone {
            self.tracker.unwatch(ino);
        }
        // What the window met first is watched from now on; what happened to it since the gate came down is unknown, so it
        // counts as dirty for the next cut.
        for inode in residual.inodes.iter().filter(|i| i.fresh) {
            let ino = Ino(inode.stat.ino);
            self.tracker
                .watch(ino, inode.stat.size)
                .map_err(|e| Error::stage(Stage::Window, Class::General, None, e))?;
            self.tracker.put_back(&[whole(ino)]);
        }
        Ok(())
    }

    /// Whether every call that began before the tracker was attached has ended. The last of them may have written behind the base copy without an
    /// event, so everything is copied once more when it has.
    fn all_proven(&mut self) -> bool {
        if self.unproven.is_empty() {
            return true;
        }
        self.unproven = evidence::wait(&self.tracker, &self.unproven, Duration::from_millis(100));
        if self.unproven.is_empty() {
            self.tracker.mark_everything();
        }
        false
    }

    /// Whether somebody could change the tree without entering a call that is counted: then only the freezer holds him.
    fn freezer_only(&mut self, stamp: Stamp) -> std::io::Result<bool> {
        let blind = self.fault & FAULT_KIND == FAULT_IGNORE_MMAP;
        if !blind && (self.mapped || self.mappings_seen != Some(stamp.mappings)) {
            // T4. Looked at again only when somebody has asked for a shared mapping since.
            let mapped = mapped_files(&self.target, &processes(&self.target)?)?;
            self.mapped = !mapped.is_empty();
            self.mark_mapped(&mapped);
            if self.mappings_seen.replace(stamp.mappings) != Some(stamp.mappings) {
                self.mark_hasty();
            }
        }
        let uncounted = self.tracker.live().tasks_lost() != 0;
        Ok(self.mapped || self.uring_before || stamp.uring != 0 || uncounted)
    }

    /// A file that is mapped after it was copied may be stored to through pages that were dirty already. The first event after the mapping makes all of it dirty,
    /// so that it is copied once more, with its pages cleaned first. If there was none, we do.
    fn mark_mapped(&mut self, files: &BTreeSet<MappedFile>) {
        let Ok(root) = upper(&self.target) else { return };
        let upper_device = numbers(self.target.overlay.upper_device);
        for MappedFile { path, device, ino } in files {
            // Not by way of the overlay: the number is the inode's own, in whichever tree it is. A path of an added tree leads nowhere in the upper.
            if *device == upper_device {
                self.tracker.mark_mapped(Ino(*ino));
            }
            let relative = path.strip_prefix(b"/").unwrap_or(path);
            let Ok(name) = CString::new(relative) else { continue };
            // Unlinked, or on a lower layer: not in the upper, nothing to copy.
            if let Ok(stat) = root.open_path(&name).and_then(|fd| stat_fd(fd.as_fd())) {
                self.tracker.mark_mapped(Ino(stat.ino));
            }
        }
    }

    /// Somebody has mapped a file since the last look, and may have let go of it again. The first store to a page changes the file's times, which is such an
    /// event, unless they were changed in the same tick of the clock before: what was copied so soon after its last change is copied once more.
    fn mark_hasty(&mut self) {
        let hasty: Vec<Dirty> = self.shadow.take_hasty().map(whole).collect();
        self.tracker.put_back(&hasty);
    }

    /// Whether the kernel has skipped one of the programs since the last look: then an event or a call may be missing, nobody knows which.
    fn skipped(&mut self) -> Result<bool, Error> {
        let skipped =
            self.tracker.skipped().map_err(|e| Error::stage(Stage::Window, class_of_io(&e), None, e))?;
        let more = skipped != self.skipped_seen;
        if more {
            tracing::warn!(
                skipped,
                "the kernel skipped a program of the tracker: everything counts as dirty"
            );
            self.skipped_seen = skipped;
            self.tracker.mark_everything();
        }
        Ok(more)
    }

    /// T6, before the window: what differs without an event is made dirty, counted, and reported.
    fn sweep_before(&mut self) -> Result<(), Error> {
        for d in self.missed()? {
            self.misses += 1;
            tracing::warn!(path = ?self.shadow.path(d.ino), what = ?d.what, "the tracker missed a change; please report this");
            self.tracker.put_back(&[whole(d.ino)]);
        }
        Ok(())
    }

    /// T6, after the window: true if something had changed before the cut without an event, so that the cut is void.
    fn sweep_after(&mut self, until: SystemTime) -> Result<bool, Error> {
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut void = false;
        for d in self.missed()? {
            self.misses += 1;
            let before = Duration::new(u64::try_from(d.ctime.0).unwrap_or(0), d.ctime.1) <= until;
            tracing::warn!(path = ?self.shadow.path(d.ino), what = ?d.what, before, "the tracker missed a change; please report this");
            self.tracker.put_back(&[whole(d.ino)]);
            void |= before;
        }
        Ok(void)
    }

    /// Differences between the shadow and the live tree for which there is no event.
    fn missed(&mut self) -> Result<Vec<Difference>, Error> {
        if self.fault & FAULT_NO_SWEEP != 0 {
            return Ok(Vec::new());
        }
        let differences =
            self.shadow.sweep().map_err(|e| Error::stage(Stage::PreCopy, Class::General, None, e))?;
        if differences.is_empty() {
            return Ok(differences);
        }
        // The change may be seen before its event is recorded: wait for the calls that were under way.
        self.tracker.settle();
        let slots = self.tracker.slots();
        let reported = |ino: Ino| slots.find(ino.0).is_none_or(|slot| slots.state(slot) & DIRT != 0);
        Ok(differences.into_iter().filter(|d| !reported(d.ino) && !self.parent_reported(d)).collect())
    }

    /// A name that is gone or leads elsewhere is its directory's change.
    fn parent_reported(&self, d: &Difference) -> bool {
        use crate::capture::Change;
        if !matches!(d.what, Change::Gone | Change::Replaced | Change::Unread) {
            return false;
        }
        let slots = self.tracker.slots();
        let Some(parent) = d.parent else { return true };
        slots.find(parent.0).is_none_or(|slot| slots.state(slot) & DIRT != 0)
    }

    fn gave_up(&self, last: Abandoned) -> Error {
        let remedy = match last {
            _ if !self.unproven.is_empty() => {
                "a task of the container is inside a call that began before the tracker was attached; try again when it has ended"
            }
            _ if self.freezer.is_none() && (self.mapped || self.uring_before) => {
                "the container maps a file shared and writable, or uses io_uring: only the freezer can hold it, and it has no cgroup of its own to freeze"
            }
            Abandoned::Mapped | Abandoned::NotDrained => {
                "use --gate freezer, or --gate auto with a larger --max-pause"
            }
            Abandoned::NotFrozen => {
                "give it a larger --max-pause; a task in uninterruptible sleep (state D in `ps`) cannot be frozen at all before it wakes up"
            }
            Abandoned::Estimate | Abandoned::Deadline | Abandoned::TooMuch => "give it a larger --max-pause",
            _ => "try again, with more rounds (--maximum-times) or a larger --max-pause",
        };
        let why = format!(
            "no attempt in {} rounds stood within the budget of {}: {last}",
            self.options.maximum_times,
            Nanos::from(self.budget)
        );
        Error::stage(Stage::Window, Class::General, Some(remedy.to_owned()), why)
    }

    /// Makes a directory like the one [`freeze`](Session::freeze) would make now, and goes on: for who looks at every cut of a session.
    /// It is not durable, and whoever asked for it removes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replica(&self, to: &Path) -> Result<crate::capture::Frozen, Error> {
        self.shadow.replica(to).map_err(|e| Error::stage(Stage::Freeze, Class::General, None, e))
    }

    /// Freezes the shadow: the tracker is detached, and the frozen upperdir is durable at `frozen` when this returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing is left at `frozen`.
    pub fn freeze(self, frozen: &Path, progress: &dyn Progress) -> Result<crate::capture::Frozen, Error> {
        drop(self.attempts);
        drop(self.freezer);
        drop(self.tracker);
        self.shadow
            .freeze(frozen, &Watched::new(progress, Stage::Freeze))
            .map_err(|e| stage_of(e, Stage::Freeze, progress))
    }
}

/// An error of the capture, or what made it stop.
pub(super) fn stage_of(error: capture::Error, stage: Stage, progress: &dyn Progress) -> Error {
    match (error, progress.check()) {
        (capture::Error::Stopped, Err(stopped)) => stopped,
        (error, _) => Error::stage(stage, Class::General, None, error),
    }
}

pub(super) fn io_of(stage: Stage, error: std::io::Error) -> Error {
    Error::stage(stage, class_of_io(&error), remedy_of_io(&error), error)
}

fn whole(ino: Ino) -> Dirty {
    Dirty { ino, meta: true, whole: true, direct: false, tail: None, ranges: Vec::new() }
}

/// The freezer of a container, if it has a cgroup of its own.
pub(super) fn place(target: &Target) -> Option<Place> {
    Some(match target.cgroup.freezer()? {
        container::Freezer::V2(path) => Place::V2(path),
        container::Freezer::V1(path) => Place::V1(path),
    })
}
