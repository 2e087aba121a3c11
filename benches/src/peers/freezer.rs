//! The kernel's freezers alone, without a runtime: what no command line that uses them can be faster than. The container is the project's demo.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::bench::freezes::RoundTrip;
use snapshot_engine::container::{Freezer as Kernel, Target};
use snapshot_engine::demo::{self, Job, Rate, StartOptions, Workload};

use super::group::Group;
use super::layer::write_back;
use super::{Layer, Load, Peer, Running, Took};

pub(super) const NAME: &str = "freezer";

struct Freezer {
    place: PathBuf,
    init: Option<PathBuf>,
    version: String,
}

pub(super) fn start(place: &Path, init: Option<&Path>) -> Result<Box<dyn Peer>> {
    ensure!(rustix::process::geteuid().is_root(), "root is needed");
    super::room::sweep(place);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version = format!("Linux {}", release.trim());
    Ok(Box::new(Freezer { place: place.to_owned(), init: init.map(Path::to_owned), version }))
}

impl Peer for Freezer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn start(&self, layer: &Layer) -> Result<Box<dyn Running>> {
        layer.check()?;
        let mut jobs = vec![Job::Idle, Job::Sleepers { count: layer.tasks }];
        match layer.load {
            Load::Idle => {}
            Load::Log => jobs.push(Job::Log { files: 1, rate: Rate::Light }),
            Load::Flat(writers) => jobs.push(Job::Flatout { writers }),
        }
        let mut options = StartOptions::new(Group::new(NAME).name());
        options.layers_root = self.place.clone();
        options.program.clone_from(&self.init);
        options.seed = demo::Seed { files: layer.files, bytes: layer.bytes };
        options.workload = Workload { jobs };
        let stop = Stop(options.name.clone());
        let demo = demo::start(&options)?;
        let target = Target::of_process(demo.init().context("the demo has ended")?)?;
        write_back(&target)?;
        let mut freezers = Vec::new();
        if let Some(dir) = &target.cgroup.v2 {
            freezers.push(("cgroup.freeze", RoundTrip::open(&Kernel::V2(dir.clone()))?));
        }
        if let Some(dir) = &target.cgroup.freezer_v1 {
            freezers.push(("freezer.state", RoundTrip::open(&Kernel::V1(dir.clone()))?));
        }
        Ok(Box::new(Frozen { target, freezers, _stop: stop }))
    }
}

struct Frozen {
    target: Target,
    freezers: Vec<(&'static str, RoundTrip)>,
    _stop: Stop,
}

impl Running for Frozen {
    fn target(&self) -> &Target {
        &self.target
    }

    fn operations(&self) -> Vec<&'static str> {
        self.freezers.iter().map(|(name, _)| *name).collect()
    }

    fn perform(&mut self, operation: &str) -> Result<Took> {
        let freezer = self.freezers.iter().find(|(name, _)| *name == operation);
        let (_, freezer) = freezer.with_context(|| format!("no operation {operation:?}"))?;
        let trip = freezer.once()?;
        Ok(Took {
            from: trip.from,
            wall: trip.freeze + trip.thaw,
            phases: vec![("freeze", trip.freeze), ("thaw", trip.thaw)],
        })
    }
}

/// Stops the demo of this name, whether it has started or not.
struct Stop(String);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Err(error) = demo::stop(&self.0) {
            eprintln!("left behind: {error}");
        }
    }
}
