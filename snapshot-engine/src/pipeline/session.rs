//! A tracked container and its shadow: `track -> pre-copy (rounds) -> window`, as often as one likes.
//!
//! ```text
//!   open ─► rounds ─► attempts ─┬─ Cut ──► apply ─► sweep ─┬─ nothing missed ─► a cut
//!              ▲                │                          │
//!              └──── Round ◄────┘            a miss (T6) ──┴─► put back, void
//! ```
//!
//! One snapshot makes one cut and freezes the shadow; a measurement makes a hundred cuts on one session.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use snapshot_ebpf::{DIRT, TargetId};

use super::Error;
use super::progress::{Progress, Stage};
use super::watched::Watched;
use crate::capture::{Difference, Shadow, ShadowOptions};
use crate::container::{self, Target};
use crate::freeze::attempt::{Allowed, Attempts, Outcome, Policy};
use crate::freeze::freezer::{Freezer, Place};
use crate::freeze::gate::{Abandoned, Gate, Pause};
use crate::freeze::reader::{Hot, Kind};
use crate::kernel::beneath::{Dir, stat_fd};
use crate::model::dirty::{Dirty, Ino, Watch};
use crate::model::fault::{Class, class_of_io};
use crate::model::nanos::Nanos;
use crate::model::options::{CommitOptions, GateChoice};
use crate::track::{Scope, Tracker, evidence, mappings};

/// Tasks that were inside a call when the tracker was attached are given this long to leave it.
const EVIDENCE: Duration = Duration::from_millis(500);

/// A cut that stands.
#[derive(Debug, Clone)]
pub struct Made {
    /// The stop.
    pub pause: Pause,
    /// Windows attempted for it, this one included.
    pub attempts: u32,
    /// Pre-copy rounds made for it.
    pub rounds: u32,
    /// Inodes captured inside the window.
    pub inodes: u64,
    /// Bytes captured inside the window.
    pub bytes: u64,
    /// The stops of attempts that came to nothing: the container felt them too.
    pub other_stops: Vec<(Gate, Duration)>,
    /// Why attempts were abandoned: gate and reason, with how often.
    pub abandoned: BTreeMap<(Gate, String), u32>,
    /// Changes that were found by a sweep and not by the tracker (T6).
    pub misses: u64,
}

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
    /// The files mapped shared and writable, as the container names them.
    mapped_paths: std::collections::BTreeSet<Vec<u8>>,
    misses: u64,
    skipped_seen: u64,
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
        progress.report(Stage::Track, 0, 0);
        if policy.choice == GateChoice::Freezer && place(&target).is_none() {
            let remedy = "use --gate auto or --gate fence, or give the container a cgroup of its own";
            let why = "the freezer needs a cgroup that holds the container and nobody else, and it has none";
            return Err(Error::stage(Stage::Window, Class::General, Some(remedy.to_owned()), why));
        }
        let io = |stage, e: std::io::Error| Error::stage(stage, class_of_io(&e), None, e);
        let (inodes, large_bytes) = survey(&target.overlay.upper).map_err(|e| io(Stage::Track, e))?;
        let scope = scope(&target, inodes, large_bytes, fault)?;
        let mut tracker = Tracker::start(&scope).map_err(|e| {
            let class = if matches!(e, crate::track::Error::Permission(_)) {
                Class::Permission
            } else {
                Class::General
            };
            Error::stage(Stage::Track, class, None, e)
        })?;
        let paused = target.cgroup.is_frozen().map_err(|e| io(Stage::Track, e))?;
        let tasks = container::tasks(&target).map_err(|e| io(Stage::Track, e))?;
        // A frozen task is at the border between user and kernel: it is inside nothing.
        let tids: Vec<u32> = if paused { Vec::new() } else { tasks.iter().map(|t| t.tid.0).collect() };
        let unproven = evidence::wait(&tracker, &tids, EVIDENCE);
        let mut pids: Vec<u32> = tasks.iter().map(|t| t.pid.0).collect();
        pids.dedup();
        let uring_before = mappings::uses_uring(&pids);
        progress.check()?;

        let stage = |e| Error::stage(Stage::PreCopy, Class::General, None, e);
        let mut shadow =
            Shadow::create(&target.overlay.upper, directory, ShadowOptions::default()).map_err(stage)?;
        let watched = Watched::new(progress, Stage::PreCopy);
        shadow.base(&mut tracker, &watched).map_err(stage)?;
        progress.check()?;
        let freezer = match place(&target) {
            Some(place) if !paused => Some(
                Freezer::open(&place, policy.budget + Duration::from_millis(100))
                    .map_err(|e| io(Stage::Window, e))?,
            ),
            _ => None,
        };
        let attempts = Attempts::new(policy, &tracker).map_err(|e| io(Stage::Window, e))?;
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
            mapped_paths: std::collections::BTreeSet::new(),
            misses: 0,
            skipped_seen: 0,
        })
    }

    /// The container.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
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
        let stage = |e: crate::capture::Error| Error::stage(Stage::PreCopy, Class::General, None, e);
        let io = |e: std::io::Error| Error::stage(Stage::Window, class_of_io(&e), None, e);
        let (first, misses_before) = (self.attempts.count, self.misses);
        self.attempts.stops.clear();
        self.attempts.abandoned.clear();
        let mut last = Abandoned::NotDrained;
        for round in 1..=self.options.maximum_times {
            progress.check()?;
            self.shadow.round(&mut self.tracker, &Watched::new(progress, Stage::PreCopy)).map_err(stage)?;
            if round == 1 {
                self.sweep_before()?;
            }
            progress.report(Stage::Window, 0, 0);
            if !self.all_proven() {
                last = Abandoned::NotDrained;
                continue;
            }
            let freezer_only = self.freezer_only().map_err(io)?;
            // What has become dirty since the round is opened now, while nobody is held.
            let dirty = self.tracker.take();
            for d in &dirty {
                self.shadow.warm(d.ino);
            }
            self.tracker.put_back(&dirty);
            let slots = self.tracker.slots();
            let hot = Hot::new(slots, self.shadow.hot().map(|(ino, fd, stat)| (ino, fd, Kind::of(stat))));
            // Looked at each time: its owner may pause it, or let it go on, while we are at work. Between this look and the freeze there is
            // an instant in which a pause would be taken for ours; no kernel interface closes it.
            let paused = self.target.cgroup.is_frozen().map_err(io)?;
            let kin = |ino| self.shadow.parents(ino);
            let allowed = Allowed { freezer_only, paused, kin: &kin, freezer: self.freezer.as_ref() };
            match self.attempts.run(&mut self.tracker, &hot, allowed).map_err(io)? {
                Outcome::Cut(pause) => {
                    drop(hot);
                    // Behind the cut: a change without an event may have been made until then, also after the attempts began.
                    let until = SystemTime::now();
                    let (inodes, bytes) = self.attempts.arena().captured();
                    self.take_in()?;
                    if paused && !self.target.cgroup.is_frozen().map_err(io)? {
                        // Let go meanwhile: stores through mappings would have left no trace.
                        self.tracker.mark_everything();
                        last = Abandoned::Disturbed;
                        continue;
                    }
                    if self.skipped()? || self.sweep_after(until)? {
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
        // T4: the window reads mapped pages without cleaning them, so later stores to them are no events: the next cut's round copies
        // these files once more, and cleans them first.
        if self.mapped {
            let paths = std::mem::take(&mut self.mapped_paths);
            self.mark_mapped(paths.iter());
            self.mapped_paths = paths;
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
    fn freezer_only(&mut self) -> std::io::Result<bool> {
        let stamp = self.tracker.live().stamp();
        if self.mapped || self.mappings_seen != Some(stamp.mappings) {
            // T4. Looked at again only when somebody has asked for a shared mapping since.
            self.mappings_seen = Some(stamp.mappings);
            let mut pids: Vec<u32> = container::tasks(&self.target)?.iter().map(|t| t.pid.0).collect();
            pids.dedup();
            let overlay = &self.target.overlay;
            let devices =
                [overlay.device, overlay.upper_device].map(|d| ((d >> 20) as u32, (d & 0xf_ffff) as u32));
            let mapped = mappings::writable_mappings(&pids, &devices)?;
            self.mapped = !mapped.is_empty();
            // Those that were there at the last look were copied with their pages cleaned since.
            let new: Vec<Vec<u8>> = mapped.difference(&self.mapped_paths).cloned().collect();
            self.mark_mapped(new.iter());
            self.mapped_paths = mapped;
        }
        let uncounted = self.tracker.live().tasks_lost() != 0;
        Ok(self.mapped || self.uring_before || stamp.uring != 0 || uncounted)
    }

    /// A file that is mapped after it was copied may have been stored to through pages that were dirty already, which is no event: it is copied once
    /// more, with its pages cleaned first.
    fn mark_mapped<'a>(&mut self, paths: impl Iterator<Item = &'a Vec<u8>>) {
        let Ok(root) = Dir::open(&self.target.overlay.upper) else { return };
        for path in paths {
            let relative = path.strip_prefix(b"/").unwrap_or(path);
            let Ok(name) = CString::new(relative) else { continue };
            // Unlinked, or on a lower layer: not in the upper, nothing to copy.
            if let Ok(stat) = root.open_path(&name).and_then(|fd| stat_fd(fd.as_fd())) {
                self.tracker.put_back(&[whole(Ino(stat.ino))]);
            }
        }
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
            tracing::warn!(path = %d.path.display(), what = ?d.what, "the tracker missed a change; please report this");
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
            tracing::warn!(path = %d.path.display(), what = ?d.what, before, "the tracker missed a change; please report this");
            self.tracker.put_back(&[whole(d.ino)]);
            void |= before;
        }
        Ok(void)
    }

    /// Differences between the shadow and the live tree for which there is no event.
    fn missed(&mut self) -> Result<Vec<Difference>, Error> {
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
        let Some(parent) = self.shadow.parent(d) else { return true };
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
            Abandoned::Estimate | Abandoned::Deadline | Abandoned::TooMuch | Abandoned::NotFrozen => {
                "give it a larger --max-pause"
            }
            _ => "try again, with more rounds (--maximum-times) or a larger --max-pause",
        };
        let why = format!(
            "no attempt in {} rounds stood within the budget of {}: {last}",
            self.options.maximum_times,
            Nanos::from(self.budget)
        );
        Error::stage(Stage::Window, Class::General, Some(remedy.to_owned()), why)
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
            .map_err(|e| Error::stage(Stage::Freeze, Class::General, None, e))
    }
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

fn scope(target: &Target, inodes: u64, large_bytes: u64, fault: u32) -> Result<Scope, Error> {
    let narrow = |what: &str, n: u64| {
        u32::try_from(n).map_err(|_| {
            Error::stage(Stage::Track, Class::General, None, format!("{what} {n} does not fit 32 bits"))
        })
    };
    let overlay = &target.overlay;
    let (cgroup, cgroup_level) = match (&target.cgroup.v2, target.cgroup.v2_id) {
        (Some(path), Some(id)) => (id, level(path)),
        _ => (0, 0),
    };
    Ok(Scope {
        targets: vec![TargetId {
            cgroup,
            cgroup_level,
            mount_namespace: narrow("mount namespace", target.mount_namespace)?,
            overlay_device: narrow("device", overlay.device)?,
            _pad: 0,
        }],
        upper_device: narrow("device", overlay.upper_device)?,
        file_system: overlay.upper_fs.clone(),
        inodes,
        large_bytes,
        fault,
    })
}

/// Depth of a cgroup below the root of its hierarchy: the directories from the mount point on, which are on one device.
fn level(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    let own = device(path);
    let below: Vec<PathBuf> =
        path.ancestors().take_while(|p| device(p) == own).map(Path::to_path_buf).collect();
    u32::try_from(below.len().saturating_sub(1)).unwrap_or(0)
}

/// How many inodes a tree has, and how many bytes lie in files too large for the bits inside a slot. The container changes it meanwhile: sizes
/// for tables, no more.
fn survey(upper: &Path) -> std::io::Result<(u64, u64)> {
    let large = snapshot_ebpf::INLINE_BLOCKS << snapshot_ebpf::BLOCK_SHIFT;
    let (mut inodes, mut bytes) = (1, 0);
    let mut stack = vec![Dir::open(upper)?];
    while let Some(dir) = stack.pop() {
        let Ok(entries) = dir.entries() else { continue };
        for entry in entries {
            inodes += 1;
            if entry.kind == libc::DT_DIR {
                stack.extend(dir.open_dir(&entry.name));
            } else if entry.kind == libc::DT_REG
                && let Ok(stat) = dir.stat(&entry.name)
                && stat.size > large
            {
                bytes += stat.size;
            }
        }
    }
    Ok((inodes, bytes))
}
