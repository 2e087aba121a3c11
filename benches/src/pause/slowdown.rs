//! What tracking costs the container's own work: the same work inside, in slices that are tracked and slices that are not, turn and turn about.
//!
//! In a tracked slice a session is open and idle. What is dirty stays dirty: no round takes it meanwhile.

use std::time::{Duration, Instant};

use anyhow::Result;
use snapshot_engine::bench::load::Load;
use snapshot_engine::bench::pause::{BUDGET, open};
use snapshot_engine::bench::report::Slowdown;
use snapshot_engine::pipeline::progress::Progress;
use snapshot_tests::bench::{Running, unique};

use super::fio::{Fio, LOADS};
use super::plan::{Extent, Point};
use super::scene::{self, Disks};

/// Operations a second in one slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Of the worker's own processor time: others on the machine do not count.
    pub cpu: f64,
    /// Of the time that passed.
    pub wall: f64,
}

/// How often, and how long.
#[derive(Debug, Clone, Copy)]
struct Slices {
    pairs: u32,
    length: Duration,
}

impl Slices {
    fn of(extent: Extent) -> Slices {
        let (pairs, milliseconds) = match extent {
            Extent::Quick => (6, 400),
            Extent::Usual => (15, 700),
            Extent::Full => (40, 2000),
        };
        Slices { pairs, length: Duration::from_millis(milliseconds) }
    }
}

/// One process that overwrites, flat out: there is no faster way to write, so nothing shows the tracker more.
///
/// # Errors
/// When the container cannot be had, or a signal came.
pub fn flat_out(
    extent: Extent,
    kind: &'static str,
    disks: &mut Disks,
    progress: &dyn Progress,
) -> Result<Slowdown> {
    let slices = Slices::of(extent);
    let scene = Scene::start(kind, disks)?;
    let target = scene::target(&scene.running)?;
    let load = Load::start(None, &target)?;
    let speed = || {
        let (began, (count, cpu)) = (Instant::now(), load.count());
        std::thread::sleep(slices.length);
        let (count_after, cpu_after) = load.count();
        Ok(Speed::new(count_after - count, cpu_after - cpu, began.elapsed()))
    };
    let name = "one process overwriting 4 KiB at random places of 16 MiB, flat out";
    let made = scene.turns(name, slices.pairs, speed, progress)?;
    load.clear(&target)?;
    Ok(made)
}

/// Each of fio's [`LOADS`].
///
/// # Errors
/// When fio is not there or fails, the container cannot be had, or a signal came.
pub fn fio(
    extent: Extent,
    kind: &'static str,
    disks: &mut Disks,
    progress: &dyn Progress,
) -> Result<Vec<Slowdown>> {
    let slices = Slices::of(extent);
    let scene = Scene::start(kind, disks)?;
    let fio = Fio::inside(&scene.running)?;
    let each = |(name, options): &(&str, &[&str])| {
        scene.turns(&format!("fio {name}"), slices.pairs, || fio.run(options, slices.length), progress)
    };
    LOADS.iter().map(each).collect()
}

/// The container that works.
struct Scene {
    running: Running,
    disk: std::path::PathBuf,
    kind: &'static str,
}

impl Scene {
    fn start(kind: &'static str, disks: &mut Disks) -> Result<Scene> {
        let disk = disks.get(kind)?;
        let point = Point {
            label: "slowdown".into(),
            file_system: kind,
            bytes: 1 << 20,
            files: 20,
            tasks: 2,
            workload: "idle".into(),
            gates: Vec::new(),
        };
        Ok(Scene { running: scene::start(&point, &disk)?, disk, kind })
    }

    fn turns(
        &self,
        load: &str,
        pairs: u32,
        speed: impl Fn() -> Result<Speed>,
        progress: &dyn Progress,
    ) -> Result<Slowdown> {
        let speed = || {
            // The tracker's own start and end are no part of the slice.
            std::thread::sleep(Duration::from_millis(50));
            speed()
        };
        let (mut tracked, mut untracked) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            progress.check()?;
            // Each is first as often as the other: write-back comes and goes.
            if pair % 2 == 0 {
                untracked.push(speed()?);
            }
            let target = scene::target(&self.running)?;
            let session = open(target, BUDGET, &self.disk.join(unique("shadow")), progress)?;
            tracked.push(speed()?);
            drop(session);
            if pair % 2 == 1 {
                untracked.push(speed()?);
            }
        }
        let ratio = |of: fn(&Speed) -> f64| {
            let pairs = tracked.iter().zip(&untracked);
            median(pairs.map(|(t, u)| of(t) / of(u).max(f64::MIN_POSITIVE)).collect())
        };
        Ok(Slowdown {
            load: load.to_owned(),
            file_system: self.kind.to_owned(),
            ratio: ratio(|s| s.cpu),
            wall_ratio: Some(ratio(|s| s.wall)),
            tracked: tracked.iter().map(|s| s.cpu).collect(),
            untracked: untracked.iter().map(|s| s.cpu).collect(),
        })
    }
}

impl Speed {
    /// So many operations in so much time.
    #[must_use]
    pub fn new(operations: u64, cpu: Duration, wall: Duration) -> Speed {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let of = |time: Duration| operations as f64 / time.as_secs_f64().max(1e-6);
        Speed { cpu: of(cpu), wall: of(wall) }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
