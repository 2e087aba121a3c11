//! `cargo xtask bench push`: from a running container to its image in a registry, against `docker commit` and `docker push`.
//!
//! ```text
//! docker:   commit -> push                      | the container stands still while the layer is copied
//! ours:     commit ... --format F --wait        | it stands still in the window only
//! ```
//!
//! One container of a private docker, its upperdir filled, under a load of its own; the registry is on the loopback. The ways take turns, each time into a new
//! repository and from an engine that knows nothing of earlier turns, so nothing is found again.
//!
//! Two clocks for the stop: what the engine says of its window, and a process inside the container that ticks every 100 us. The latter also feels
//! the processors that the work takes from it, so it is an upper bound for ours, and the stop itself for docker's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::bench::ticker::Ticker;
use snapshot_engine::container::{Target, process};
use snapshot_engine::demo::TickMode;
use snapshot_engine::kernel::signals;
use snapshot_engine::model::pid::Pid;
use snapshot_tests::engine;
use snapshot_tests::registry::{Registry, Security};

use crate::figures::Figures;
use crate::peers::{self, Layer, Load, inside};
use crate::rafs::trees;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Turns of each way.
    pub turns: usize,
    /// Processes inside that overwrite a file each without pause; 0: a line to a log, 100 times a second.
    pub writers: u32,
    /// Where docker and the images are kept while it runs: some 15 GiB.
    pub place: PathBuf,
}

/// What ours is asked for: a name, and options.
const WAYS: [(&str, &[&str]); 3] = [
    ("oci, gzip", &["--format", "oci", "--compressor", "gzip"]),
    ("oci, zstd", &["--format", "oci", "--compressor", "zstd"]),
    ("nydus, lz4_block", &["--format", "nydus"]),
];

/// What one image cost.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// From the start of the first command until the image is in the registry.
    whole: Duration,
    /// docker: the commit. Ours: the window.
    stop: Duration,
    /// The largest gap of the ticker meanwhile.
    felt: Duration,
}

/// Dropped before the container, in which the ticker lives, and that before the place.
struct Scene<'a> {
    ticker: Ticker,
    target: &'a Target,
    id: String,
    witness: Pid,
    registry: Registry,
    place: &'a Path,
}

/// Measures, and prints as it goes.
///
/// # Errors
/// When docker or the registry is missing, a way fails, or a signal came.
pub fn run(options: &Options) -> Result<Figures> {
    fs::create_dir_all(&options.place)
        .with_context(|| format!("cannot create {}", options.place.display()))?;
    let place = tempfile::Builder::new().prefix("bench-push-").tempdir_in(&options.place)?;
    let registry = Registry::start_in(Security::Open, &options.place)?;
    let peer = peers::one("docker", place.path(), None).map_err(|absent| anyhow::anyhow!(absent.reason))?;
    let load = if options.writers > 0 { Load::Flat(options.writers) } else { Load::Log };
    let container = peer.start(&Layer { load, ..Layer::default() })?;
    let target = container.target();
    let tree = &trees::ALL[0];
    tree.make(&process::root(target.init).join("data/tree"))?;
    rustix::fs::sync();
    let witness = process::stat(target.init)?.parent;
    let mut scene = Scene {
        ticker: Ticker::start(None, target)?,
        id: docker(witness, &["ps", "--quiet", "--no-trunc"])?,
        target,
        witness,
        registry,
        place: place.path(),
    };
    println!("docker {}, {}, load {load:?}", peer.version(), tree.name);

    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); 1 + WAYS.len()];
    for turn in 0..options.turns {
        for (way, costs) in costs.iter_mut().enumerate() {
            ensure!(signals::caught().is_none(), "stopped by a signal");
            scene.ticker.set(Some(TickMode::Sleep))?;
            let name = format!("{}/bench/turn-{turn}-{way}:1", scene.registry.host());
            let (whole, stop) = match way.checked_sub(1).map(|n| WAYS[n].1) {
                None => scene.docker(&name)?,
                Some(options) => scene.ours(&name, options)?,
            };
            let report = scene.ticker.report().context("the ticker rests")?;
            scene.ticker.set(None)?;
            costs.push(Cost { whole, stop, felt: Duration::from_nanos(report.max_gap_ns) });
        }
    }
    Ok(report(&costs))
}

impl Scene<'_> {
    /// `docker commit` and `docker push`: until the image is there, and the commit alone.
    fn docker(&self, name: &str) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        docker(self.witness, &["commit", &self.id, name])?;
        let committed = began.elapsed();
        docker(self.witness, &["push", "--quiet", name])?;
        let whole = began.elapsed();
        docker(self.witness, &["rmi", name])?;
        Ok((whole, committed))
    }

    /// Ours: until the image is there, and the window.
    fn ours(&self, name: &str, options: &[&str]) -> Result<(Duration, Duration)> {
        let work = self.place.join("work");
        fs::create_dir(&work)?;
        let (work_dir, witness) = (work.to_string_lossy(), self.witness.to_string());
        let container = format!("docker://{}", self.id);
        // By the fence, so that there is a window to compare: of a container that only logs `auto` takes a moment without one.
        let words = ["commit", &container, name, "--target-insecure", "--wait", "--quiet", "--gate", "fence"];
        // Whoever writes without pause leaves more to read in the window than fits into 1 ms.
        let more =
            ["--output", "json", "--work-dir", &work_dir, "--runtimes-of", &witness, "--max-pause", "10ms"];
        let began = Instant::now();
        let done = engine::run([&words[..], options, &more].concat())?;
        let whole = began.elapsed();
        let result = done.must_succeed()?.json()?;
        ensure!(result["state"] == "completed", "{result:#}");
        let window = result["pause_time"]["ns"].as_u64().with_context(|| format!("no window: {result:#}"))?;
        ensure!(self.target.is_alive() && !self.target.cgroup.is_frozen()?, "the container does not run on");
        fs::remove_dir_all(&work)?;
        rustix::fs::sync();
        Ok((whole, Duration::from_nanos(window)))
    }
}

/// docker's client beside its daemon. What it prints, trimmed.
fn docker(witness: Pid, words: &[&str]) -> Result<String> {
    let output = inside(witness, Path::new("/"), &[&["docker"], words].concat()).output()?;
    ensure!(output.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn report(costs: &[Vec<Cost>]) -> Figures {
    let mut figures = Figures::default();
    let names = std::iter::once("docker commit; push").chain(WAYS.iter().map(|(name, _)| *name));
    let mut medians = Vec::new();
    for (name, costs) in names.clone().zip(costs) {
        let mut add = |what: &str, unit: &str, scale: f64, of: fn(&Cost) -> Duration| {
            let samples = costs.iter().map(|cost| of(cost).as_secs_f64() * scale).collect();
            figures.add(&format!("{name}{what}"), unit, samples)
        };
        let whole = add("", "s", 1.0, |cost| cost.whole);
        let is_docker = medians.is_empty();
        let stop = if is_docker {
            add(": commit alone", "s", 1.0, |cost| cost.stop);
            add(": largest gap felt inside", "s", 1.0, |cost| cost.felt)
        } else {
            add(": largest gap felt inside", "ms", 1e3, |cost| cost.felt);
            add(": window", "us", 1e6, |cost| cost.stop) / 1e6
        };
        medians.push((whole, stop));
    }
    let (whole, stop) = medians[0];
    for (name, ours) in names.zip(&medians).skip(1) {
        figures.ratio(&format!("{name}: time / docker commit; push"), ours.0 / whole, "<= 0.6");
        figures.ratio(&format!("{name}: 10,000 x window / docker's stop"), 1e4 * ours.1 / stop, "<= 1");
    }
    figures
}
