//! Containers for the measurement, on file systems of their own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::bench::report::Scene;
use snapshot_engine::container::{Target, tasks};
use snapshot_engine::demo::{self, Job, Seed, StartOptions, Workload};
use snapshot_engine::model::reference::ContainerRef;
use snapshot_engine::pipeline;
use snapshot_tests::bench::{Disk, Running, unique};

use super::plan::Point;

/// A disk for each file system that was asked for; sparse, so they take what is written.
#[derive(Debug)]
pub struct Disks {
    parent: PathBuf,
    bytes: u64,
    made: Vec<(&'static str, Disk)>,
}

impl Disks {
    /// Will be made below `parent`, each of this size.
    #[must_use]
    pub fn new(parent: &Path, bytes: u64) -> Disks {
        Disks { parent: parent.to_owned(), bytes, made: Vec::new() }
    }

    /// Where this file system is mounted.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn get(&mut self, kind: &'static str) -> Result<PathBuf> {
        if let Some(disk) = self.made(kind) {
            return Ok(disk.path());
        }
        let disk =
            Disk::sized(kind, self.bytes, &self.parent).with_context(|| format!("a disk of {kind}"))?;
        let path = disk.path();
        self.made.push((kind, disk));
        Ok(path)
    }

    /// One that was made before.
    #[must_use]
    pub fn made(&self, kind: &str) -> Option<&Disk> {
        self.made.iter().find(|(k, _)| *k == kind).map(|(_, disk)| disk)
    }
}

/// Bytes free below a directory.
///
/// # Errors
/// As `statvfs(3)`.
pub fn free(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Starts the container of a point on its disk, and waits until what it holds is on the disk too.
///
/// # Errors
/// When it does not start, or the disk has no room for it and its shadow.
pub fn start(point: &Point, disk: &Path) -> Result<Running> {
    let need = point.bytes * 2 + point.bytes / 8 + (64 << 20);
    ensure!(free(disk)? > need, "{} has no room for {} MiB", disk.display(), need >> 20);
    let mut workload: Workload = point.workload.parse()?;
    // The init, and the processes of the jobs.
    let busy = 1 + workload.jobs.iter().map(processes).sum::<u32>();
    if point.tasks > busy {
        workload.jobs.push(Job::Sleepers { count: point.tasks - busy });
    }
    let mut options = StartOptions::new(&unique("pause"));
    options.layers_root = disk.join("layers");
    options.workload = workload;
    options.seed = Seed { files: point.files, bytes: point.bytes };
    let running = Running(demo::start(&options)?);
    // Write-back of the seed would be in the way of the first windows.
    rustix::fs::syncfs(std::fs::File::open(disk)?)?;
    Ok(running)
}

fn processes(job: &Job) -> u32 {
    match job {
        Job::Flatout { writers } | Job::Storm { writers } | Job::Random { writers, .. } => *writers,
        Job::Sleepers { count } => *count,
        _ => 1,
    }
}

/// The container as the engine finds it.
///
/// # Errors
/// When it does not.
pub fn target(running: &Running) -> Result<Target> {
    Ok(pipeline::resolve(&ContainerRef::Name(running.0.name().to_owned()))?)
}

/// What the report says of it.
///
/// # Errors
/// When its tasks cannot be counted.
pub fn describe(axis: &str, point: &Point, running: &Running, target: &Target) -> Result<Scene> {
    Ok(Scene {
        axis: axis.to_owned(),
        label: point.label.clone(),
        file_system: target.overlay.upper_fs.clone(),
        upper_bytes: point.bytes,
        files: u64::from(point.files),
        tasks: tasks(target)?.len() as u64,
        workload: running.0.state.workload.to_string(),
        container: running.0.name().to_owned(),
    })
}
