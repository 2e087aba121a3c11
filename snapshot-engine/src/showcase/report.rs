//! What a run found: `run.json`, and the text. The names of the fields are stable: fields are added, never renamed, within a version.
//!
//! Every time is `{"ns": exact, "human": "as people read it"}`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::scene::Scene;
use super::{Error, Options};
use crate::bench::report::Cuts;
use crate::demo::{TickMode, TickReport};
use crate::model::nanos::{Nanos, Span};
use crate::model::options::GateChoice;
use crate::model::snapshot::Gate;
use crate::pipeline;
use crate::telemetry::Percentiles;

/// The version of the report's fields.
pub const VERSION: u32 = 1;
/// The fence's goal: half of the windows.
pub const FENCE_P50: Duration = Duration::from_micros(15);
/// The fence's goal: all but one of a hundred windows.
pub const FENCE_P99: Duration = Duration::from_micros(100);
/// The fence's goal: the median window, as a part of a `cgroup.freeze` round trip.
pub const FENCE_PART: f64 = 0.2;

/// Everything a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Whether every step was made, every cut stands, every window kept the budget, and the image is identical.
    pub held: bool,
    /// What did not hold; empty if everything did.
    pub failures: Vec<String>,
    /// The kernel's release.
    pub kernel: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Cuts asked for by each gate.
    pub windows: u32,
    /// The budget of a window.
    pub max_pause: Span,
    /// What the loaded container does.
    pub workload: String,
    /// By gate.
    pub gates: Vec<GateReport>,
    /// What a `cgroup.freeze` round trip costs here.
    pub cgroup_freeze: Option<FreezeReport>,
    /// The fence's median window as a part of that round trip's median.
    pub fence_part: Option<f64>,
    /// The project's goals on its 2-core machines, and whether this run met them.
    pub goals: Vec<Goal>,
    /// The image.
    pub image: Option<ImageResult>,
    /// The image against the frozen tree.
    pub comparison: Option<ComparisonResult>,
    /// This report as a file.
    pub results: PathBuf,
    /// The directory of everything else, if it was kept.
    pub kept: Option<PathBuf>,
}

/// The cuts by one gate.
#[derive(Debug, Clone, Serialize)]
pub struct GateReport {
    /// The gate asked for.
    pub gate: GateChoice,
    /// The container.
    pub container: String,
    /// The budget of its windows.
    pub max_pause: Span,
    /// What the cuts came to.
    #[serde(flatten)]
    pub cuts: Cuts,
    /// Cuts that stand.
    pub windows: u32,
    /// Every cut that stands, in the order they were made.
    pub samples: Vec<Sample>,
    /// How long the series took.
    pub took: Span,
    /// What each ticker inside the container felt.
    pub ticks: Vec<Ticks>,
}

/// One cut.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// With which gate.
    pub gate: Gate,
    /// The window; 0 for gate none.
    pub window_ns: Nanos,
    /// Until no call was under way.
    pub drain_ns: Nanos,
    /// Until the residual was in memory.
    pub capture_ns: Nanos,
    /// The longest stop of a task.
    pub longest_stop_ns: Nanos,
    /// Inodes captured in it.
    pub inodes: u64,
    /// Content bytes captured in it.
    pub bytes: u64,
    /// Windows attempted for it.
    pub attempts: u32,
}

/// Gaps between the ticks of one ticker: 100 us and what the machine adds to it.
#[derive(Debug, Clone, Serialize)]
pub struct Ticks {
    /// How it waits.
    pub mode: TickMode,
    /// While cuts were made.
    pub during: Gaps,
    /// In an equal time without the engine.
    pub quiet: Gaps,
}

/// Gaps seen by a ticker.
#[derive(Debug, Clone, Serialize)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// Half of them were at most this, to an eighth.
    pub p50: Span,
    /// All but one of a hundred.
    pub p99: Span,
    /// The largest.
    pub max: Span,
}

/// A `cgroup.freeze` round trip.
#[derive(Debug, Clone, Serialize)]
pub struct FreezeReport {
    /// Processes in the cgroup.
    pub tasks: u64,
    /// How many were made.
    pub round_trips: u32,
    /// From writing 1 until `frozen 0` is read again.
    pub round_trip: Percentiles,
}

/// A goal.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// What.
    pub what: String,
    /// Whether this run met it.
    pub met: bool,
}

/// The image that was made.
#[derive(Debug, Clone, Serialize)]
pub struct ImageResult {
    /// Where it is: `oci:DIR:TAG`.
    pub target: String,
    /// Its manifest's digest.
    pub manifest: String,
    /// Its entries.
    pub entries: u64,
    /// Bytes of file content.
    pub content_bytes: u64,
    /// Bytes of its blobs.
    pub stored_bytes: u64,
    /// The gate of its cut.
    pub gate: Gate,
    /// The pause of its cut.
    pub pause: Span,
    /// From the command to the frozen upperdir.
    pub cut_time: Span,
    /// From the frozen upperdir to the image.
    pub image_time: Span,
}

/// The image against the frozen upperdir over its lowers.
#[derive(Debug, Clone, Serialize)]
pub struct ComparisonResult {
    /// Whether they are the same.
    pub identical: bool,
    /// Entries compared.
    pub entries: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// The first differences.
    pub differences: Vec<String>,
}

impl Report {
    pub(super) fn new(options: &Options, scene: &Scene) -> Report {
        Report {
            version: VERSION,
            held: false,
            failures: Vec::new(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            windows: options.windows,
            max_pause: Span::from(options.max_pause),
            workload: options.workload.to_string(),
            gates: Vec::new(),
            cgroup_freeze: None,
            fence_part: None,
            goals: Vec::new(),
            image: None,
            comparison: None,
            results: scene.root.join("run.json"),
            kept: scene.keep().then(|| scene.scratch.clone()),
        }
    }

    /// Takes a step's result in, or its failure.
    ///
    /// # Errors
    /// A signal is no failure of the step.
    pub(super) fn keep<T, R>(
        &mut self,
        step: &str,
        result: Result<T, Error>,
        take: impl FnOnce(&mut Report, T) -> R,
    ) -> Result<Option<R>, Error> {
        match result {
            Ok(value) => Ok(Some(take(self, value))),
            Err(e @ Error::Pipeline(pipeline::Error::Interrupted { .. })) => Err(e),
            Err(e) => {
                self.failures.push(format!("{step}: {}", e.whole()));
                Ok(None)
            }
        }
    }

    /// The windows of the fence.
    #[must_use]
    pub fn fence(&self) -> Option<Percentiles> {
        self.gates.iter().find(|g| g.gate == GateChoice::Fence)?.cuts.window.clone()
    }

    /// Writes the results so that a reader sees the old or the new ones.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Io {
            what: "write",
            path: path.to_owned(),
            source: e.into(),
        })?;
        let new = path.with_extension("json.new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(Error::io("write", path))
    }
}

/// Tickers while cuts were made, beside the same ones without.
pub(super) fn ticks(during: &[TickReport], quiet: &[TickReport]) -> Vec<Ticks> {
    let gaps = |r: &TickReport| Gaps {
        count: r.count,
        p50: Span::from(Nanos(r.quantile_ns(0.5))),
        p99: Span::from(Nanos(r.quantile_ns(0.99))),
        max: Span::from(Nanos(r.max_gap_ns)),
    };
    let pair = |(d, q): (&TickReport, &TickReport)| Ticks { mode: d.mode, during: gaps(d), quiet: gaps(q) };
    during.iter().zip(quiet).map(pair).collect()
}
