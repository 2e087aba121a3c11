//! One group: its containers up, a session and a ticker on each, turn and turn about.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use snapshot_engine::bench::freezes::RoundTrip;
use snapshot_engine::bench::pause::{budget, open};
use snapshot_engine::bench::report::{Missed, Report, Series};
use snapshot_engine::bench::series::{Contender, Course};
use snapshot_engine::bench::ticker::Ticker;
use snapshot_engine::demo::ticks::now_ns;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Progress;
use snapshot_tests::bench::{Running, unique};

use super::plan::{Group, Point};
use super::scene::{self, Disks};
use super::stopped;

/// A container with everything on it. Dropped in this order: session and ticker before the container.
struct Station {
    course: Course<'static>,
    running: Running,
}

/// Measures a group and adds its series to the report. A container that cannot be had is noted as missed.
///
/// # Errors
/// A signal.
pub fn group(
    group: &Group,
    disks: &mut Disks,
    report: &mut Report,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<()> {
    let mut stations = Vec::new();
    for point in &group.points {
        progress.check()?;
        tell(&format!("{} {}: starting the container and copying its upperdir", group.axis, point.label));
        match station(group, point, disks, progress) {
            Ok(station) => stations.push(station),
            Err(e) if stopped(&e) => return Err(e),
            Err(e) => report
                .missed
                .push(Missed { what: format!("{} {}", group.axis, point.label), why: format!("{e:#}") }),
        }
    }
    tell(&format!("{}: {} turns of {}", group.axis, group.windows, stations.len()));
    let deadline = Instant::now() + group.time;
    while Instant::now() < deadline && stations.iter().any(|s| !s.course.done()) {
        for station in &mut stations {
            if !station.course.done() {
                station.course.turn(progress)?;
            }
        }
    }
    for Station { course, running } in stations {
        let series = course.finish();
        if running.frozen() {
            report.violations.push(format!("{} {}: left frozen", group.axis, running.0.name()));
        }
        report.violations.extend(series.iter().flat_map(Series::violations));
        report.series.extend(series);
    }
    Ok(())
}

fn station(group: &Group, point: &Point, disks: &mut Disks, progress: &dyn Progress) -> Result<Station> {
    let disk = disks.get(point.file_system)?;
    let running = scene::start(point, &disk)?;
    let target = scene::target(&running)?;
    let scene = scene::describe(group.axis, point, &running, &target)?;
    let ticker = Ticker::start(None, &target)?;
    let most = point.gates.iter().map(|g| budget(*g, None)).max().unwrap_or_default();
    let began = Nanos(now_ns());
    let target = scene::target(&running)?;
    let session = open(target.clone(), most, &disk.join(unique("shadow")), progress)?;
    let mut course = Course::new(session, Some(ticker), scene, Some(began), progress)?;
    for gate in &point.gates {
        course.enter(Contender::Gate(*gate, budget(*gate, None)), group.windows);
    }
    if point.gates.contains(&GateChoice::Freezer)
        && let Some(freezer) = target.cgroup.freezer()
    {
        course.enter(Contender::Rival(Box::new(RoundTrip::open(&freezer)?)), group.windows);
    }
    Ok(Station { course, running })
}

/// What a bare read of a residual costs: so many bytes from so many files below a directory, in the page cache, with one `stat` each. The median
/// of many; without files, nothing.
///
/// # Errors
/// When they cannot be read.
pub fn bare_read(dir: &Path, inodes: u64, bytes: u64) -> Result<Duration> {
    use std::os::unix::fs::FileExt as _;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if files.len() as u64 >= inodes {
            break;
        }
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(std::fs::File::open(entry.path())?);
        }
    }
    let each = usize::try_from(bytes / (files.len() as u64).max(1))?;
    let mut buffer = vec![0u8; each.max(1)];
    let mut times = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        for file in &files {
            file.metadata()?;
            if each > 0 {
                let _ = file.read_at(&mut buffer[..each], 0)?;
            }
        }
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
