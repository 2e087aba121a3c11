//! From the command to the cut, against copies of the same tree by `cp` and `rsync`: in turn, again and again.
//!
//! What they take depends on more than on them. So each finds, before it begins: nothing to be written back, the tree's content in the page
//! cache or not ([`State`]), and free memory that was in use a moment ago. The last is for virtual machines: memory that was never used,
//! or was given back to the host (free page reporting), is fetched from it page by page, which takes longer than the copy itself. Whoever comes first would
//! pay for all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, fadvise};
use rustix::time::ClockId;
use snapshot_engine::bench::copies::{BASE, Copy, ENGINE};
use snapshot_engine::bench::pause::{BUDGET, open};
use snapshot_engine::kernel::usage;
use snapshot_engine::model::nanos::{Nanos, Span};
use snapshot_engine::pipeline::progress::Progress;
use snapshot_engine::pipeline::session::Spent;
use snapshot_tests::bench::{Running, unique};

use super::plan::{Extent, LIGHT, Point};
use super::scene::{self, Disks};

/// `cp`'s.
pub const CP: &str = "cp -a --reflink=auto";
const RSYNC: &str = "rsync -a";

const BYTES: u64 = 1 << 30;

/// Where the tree's content is before the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of it in the page cache: a container that works on what it has written.
    Cached,
    /// On the disk alone.
    OnDisk,
}

impl State {
    /// How [`Copy::tree`] says it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            State::Cached => "1 GiB in 1000 files, in the page cache",
            State::OnDisk => "1 GiB in 1000 files, not in the page cache",
        }
    }
}

/// Measures it on one file system, in a container that goes on writing its log.
///
/// # Errors
/// When the container cannot be had, a command fails, or a signal came.
pub fn measure(
    extent: Extent,
    kind: &'static str,
    disks: &mut Disks,
    progress: &dyn Progress,
) -> Result<Vec<Copy>> {
    let rounds = if extent == Extent::Quick { 3 } else { 6 };
    let disk = disks.get(kind)?;
    let point = Point {
        label: "copy".into(),
        file_system: kind,
        bytes: BYTES,
        files: 1000,
        tasks: 3,
        workload: LIGHT.into(),
        gates: Vec::new(),
    };
    let running = scene::start(&point, &disk)?;
    let mut copiers = vec![ENGINE, CP];
    if Command::new("rsync").arg("--version").output().is_ok() {
        copiers.push(RSYNC);
    }
    let mut copies = Vec::new();
    for state in [State::Cached, State::OnDisk] {
        let mut copy =
            Copy { tree: state.words().into(), bytes: BYTES, file_system: kind.into(), ..Copy::default() };
        for round in 0..rounds {
            for n in 0..copiers.len() {
                progress.check()?;
                let who = copiers[(n + round) % copiers.len()];
                make_ready(state, &running, disks, kind)?;
                let Took { wall, cpu, parts } = one(who, &running, &disk, progress)?;
                let push = |to: &mut BTreeMap<String, Vec<Span>>, what: &str, time: Duration| {
                    to.entry(what.to_owned()).or_default().push(Nanos::from(time).into());
                };
                push(&mut copy.times, who, wall);
                push(&mut copy.cpu, who, cpu);
                for (part, time) in parts {
                    push(&mut copy.parts, part, time);
                }
            }
        }
        copies.push(copy);
    }
    Ok(copies)
}

/// One copy.
struct Took {
    wall: Duration,
    cpu: Duration,
    /// Where the engine's time went.
    parts: Vec<(&'static str, Duration)>,
}

/// On return what was written is gone.
fn one(who: &'static str, running: &Running, disk: &Path, progress: &dyn Progress) -> Result<Took> {
    let (began, before) = (Instant::now(), cpu(who));
    let took = || Took { wall: began.elapsed(), cpu: cpu(who).saturating_sub(before), parts: Vec::new() };
    if who == ENGINE {
        let target = scene::target(running)?;
        let found = began.elapsed();
        let mut session = open(target, BUDGET, &disk.join(unique("shadow")), progress)?;
        let spent = session.cut(progress)?.spent;
        let mut took = took();
        took.parts = parts(took.wall, found, spent);
        return Ok(took);
    }
    let to = disk.join(unique("copy"));
    let mut words = who.split(' ');
    let program = words.next().unwrap_or_default();
    let status = Command::new(program).args(words).arg(running.upper()).arg(&to).status();
    let took = took();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    // 24: a file vanished meanwhile (rsync(1)), as the container's may.
    ensure!(status.success() || status.code() == Some(24), "{program} failed: {status}");
    std::fs::remove_dir_all(&to)?;
    Ok(took)
}

fn parts(wall: Duration, found: Duration, spent: Spent) -> Vec<(&'static str, Duration)> {
    let mut parts = vec![
        ("find the container", found),
        ("attach the tracker", spent.track),
        (BASE, spent.base),
        ("prepare the window", spent.prepare),
        ("rounds", spent.rounds),
        ("attempts", spent.attempts),
        ("take in", spent.apply),
        ("sweeps", spent.sweeps),
    ];
    let known = parts.iter().map(|(_, time)| *time).sum();
    parts.push(("between", wall.saturating_sub(known)));
    parts
}

/// Processor time so far: of this process, or of the commands that it has waited for.
fn cpu(who: &str) -> Duration {
    if who != ENGINE {
        return usage::children();
    }
    let t = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// The same for everybody: see the head of this file.
fn make_ready(state: State, running: &Running, disks: &Disks, kind: &str) -> Result<()> {
    let disk = disks.made(kind).context("no disk")?;
    rustix::fs::syncfs(File::open(disk.path())?)?;
    let read = |file: &Path| io::copy(&mut File::open(file)?, &mut io::sink()).map(|_| ());
    match state {
        State::Cached => each_file(&running.upper(), &read)?,
        State::OnDisk => {
            each_file(&running.upper(), &|file| Ok(fadvise(File::open(file)?, 0, None, Advice::DontNeed)?))?;
            disk.forget_image()?;
        }
    }
    // Each page is touched, and free again.
    drop(vec![1u8; usize::try_from(BYTES + BYTES / 4)?]);
    Ok(())
}

/// Does something to every regular file of a tree; what vanishes meanwhile is left out.
fn each_file(tree: &Path, what: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut stack = vec![tree.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                match what(&entry.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}
