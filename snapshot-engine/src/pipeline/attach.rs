//! The first half of a session: the tracker, who was inside a call, and the base copy.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapshot_ebpf::TargetId;

use super::Error;
use super::progress::{Progress, Stage};
use super::session::{io_of, stage_of};
use super::survey::survey;
use super::turn;
use super::watched::Watched;
use crate::capture::{self, Grafts, Shadow, ShadowOptions};
use crate::container::{self, Target};
use crate::kernel::beneath::{Dir, stat_fd};
use crate::model::fault::Class;
use crate::track::{Scope, Tables, Tracker, evidence, mappings};

/// Tasks that were inside a call when the tracker was attached are given this long to leave it.
const EVIDENCE: Duration = Duration::from_millis(500);

/// A container that makes files faster than we can list them gets larger tables this often.
const GROWTHS: u32 = 3;

/// How a session tracks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tracking {
    /// The least sizes of the tracker's tables.
    pub tables: Tables,
    /// A fault to plant (`snapshot_ebpf::FAULT_*`), for tests; 0: none.
    pub fault: u32,
}

/// A tracker with a shadow that has its base.
pub(super) struct Attached {
    pub tracker: Tracker,
    pub shadow: Shadow,
    /// Tasks not yet seen outside a call that may have begun before the tracker.
    pub unproven: Vec<u32>,
    /// Somebody held a ring already.
    pub uring_before: bool,
    /// By its owner.
    pub paused: bool,
    /// How long the base copy took.
    pub base: Duration,
}

/// Why a session could not be attached.
enum Failed {
    /// The tables were too small: larger ones may do.
    Full(capture::Error),
    Other(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Other(error)
    }
}

/// Attaches the tracker and makes the base copy. On an error nothing is left.
///
/// # Errors
/// [`Error::Stage`].
pub(super) fn attach(
    target: &Target,
    grafts: &Grafts,
    directory: &Path,
    tracking: Tracking,
    progress: &dyn Progress,
) -> Result<Attached, Error> {
    let mut growths = 0;
    loop {
        match with_tables(target, grafts, directory, tracking, growths, progress) {
            Err(Failed::Full(_)) if growths < GROWTHS => growths += 1,
            Err(Failed::Full(e)) => return Err(stage_of(e, Stage::PreCopy, progress)),
            Err(Failed::Other(e)) => return Err(e),
            Ok(attached) => return Ok(attached),
        }
    }
}

/// One try, with tables that have four times the room for each of `growths`.
fn with_tables(
    target: &Target,
    grafts: &Grafts,
    directory: &Path,
    tracking: Tracking,
    growths: u32,
    progress: &dyn Progress,
) -> Result<Attached, Failed> {
    let io = |e| io_of(Stage::Track, e);
    let mut found = upper(target).and_then(|root| survey(&root, |_, _| {})).map_err(io)?;
    for graft in &grafts.list {
        let more = survey(&graft.root, |_, _| {}).map_err(io)?;
        found.inodes += more.inodes;
        found.large_bytes = found.large_bytes.saturating_add(more.large_bytes);
    }
    let mut scope = scope(target, found.inodes << (2 * growths), found.large_bytes, tracking.fault)?;
    scope.tables = tracking.tables;
    let mut tracker = Tracker::start(&scope).map_err(|e| {
        let class =
            if matches!(e, crate::track::Error::Permission(_)) { Class::Permission } else { Class::General };
        Error::stage(Stage::Track, class, None, e)
    })?;
    let turn = turn::take(target, progress)?;
    let paused = target.cgroup.is_frozen().map_err(io)?;
    drop(turn);
    let tasks = container::tasks(target).map_err(io)?;
    // A frozen task is at the border between user and kernel: it is inside nothing.
    let tids: Vec<u32> = if paused { Vec::new() } else { tasks.iter().map(|t| t.tid.0).collect() };
    let unproven = evidence::wait(&tracker, &tids, EVIDENCE);
    let mut pids: Vec<u32> = tasks.iter().map(|t| t.pid.0).collect();
    pids.dedup();
    let uring_before = mappings::uses_uring(&pids);
    progress.check()?;
    let stage = |e| stage_of(e, Stage::PreCopy, progress);
    let mut shadow =
        Shadow::grafted(&target.overlay.upper, grafts.clone(), directory, ShadowOptions::default())
            .map_err(stage)?;
    same_upper(target, shadow.identity()).map_err(|e| io_of(Stage::PreCopy, e))?;
    match shadow.base(&mut tracker, &Watched::new(progress, Stage::PreCopy)) {
        Ok(base) => Ok(Attached { tracker, shadow, unproven, uring_before, paused, base: base.took }),
        Err(e @ capture::Error::TrackerFull { .. }) => Err(Failed::Full(e)),
        Err(e) => Err(stage(e).into()),
    }
}

/// What the tracker is to watch, with room for so many inodes and so many bytes in large files.
pub(super) fn scope(target: &Target, inodes: u64, large_bytes: u64, fault: u32) -> Result<Scope, Error> {
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
        tables: Tables::default(),
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

/// The path of the upperdir may lead through directories of the container's own: what it led to when the container was resolved must be
/// what is read.
pub(super) fn same_upper(target: &Target, found: (u64, u64)) -> std::io::Result<()> {
    if found == target.overlay.upper_identity {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "{:?} is another directory than a moment ago; try again",
        target.overlay.upper
    )))
}

/// The upperdir, opened.
pub(super) fn upper(target: &Target) -> std::io::Result<Dir> {
    let root = Dir::enclose(&target.overlay.upper)?;
    let stat = stat_fd(root.as_fd())?;
    same_upper(target, (stat.dev, stat.ino))?;
    Ok(root)
}
