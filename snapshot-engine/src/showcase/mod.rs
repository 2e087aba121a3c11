//! The whole engine at work on containers of its own, with what it measured: `snapshot-engine demo run`, `cargo xtask run`.
//!
//! ```text
//!   scene      three demo containers: loaded (writes, ticks), idle, crowd (100 sleepers)
//!   windows    N cuts by each gate, at random moments     fence, freezer, auto: loaded     none: idle
//!   freezes    what a cgroup.freeze round trip of the crowd costs on the same machine, in the same run
//!   image      one whole commit of the loaded container, without compression
//!   judge      the image, mounted by the kernel's EROFS, against the frozen upperdir over its lowers, mounted as an overlay
//!   report     run.json; text
//! ```
//!
//! It uses the engine as anybody would, through `pipeline`; nothing here is known to any other module.

mod error;
mod image;
mod judge;
pub mod report;
mod scene;
mod text;
mod windows;

use std::path::PathBuf;
use std::time::Duration;

pub use error::Error;
pub use report::Report;

use crate::bench;
use crate::bench::freezes::RoundTrip;
use crate::container::Freezer;
use crate::container::cgroup::members;
use crate::demo::{Job, Rate, TickMode, Workload};
use crate::model::nanos::{Nanos, Span};
use crate::model::options::GateChoice;
use crate::pipeline::progress::{Progress, Quiet, UntilSignal};
use crate::telemetry::Percentiles;
use report::{FENCE_P50, FENCE_P99, FENCE_PART};
use scene::Scene;

/// Where everything goes unless told otherwise: as a rule on a file system that can hold an upperdir, and the same one for layers and
/// shadow, so that files can be cloned.
pub const WORK_DIR: &str = "/var/lib/snapshot-engine/run";

/// What can be chosen about a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cuts by each gate.
    pub windows: u32,
    /// Leave containers, shadows and snapshots where they are.
    pub keep: bool,
    /// Where everything is made.
    pub work_dir: PathBuf,
    /// The budget of a window.
    pub max_pause: Nanos,
    /// What the loaded container does.
    pub workload: Workload,
}

/// What the loaded container does: about 100 log lines, 1000 page writes and 100 changes of the tree a second, a ticker that only computes, and
/// one that writes 10 000 times a second and so feels the fence.
#[must_use]
pub fn workload() -> Workload {
    Workload {
        jobs: vec![
            Job::Log { files: 2, rate: Rate::Light },
            Job::Database { mib: 4, rate: Rate::Medium },
            Job::Churn { rate: Rate::Light },
            Job::Tick { mode: TickMode::Sleep },
            Job::Tick { mode: TickMode::Write },
        ],
    }
}

impl Default for Options {
    /// A hundred windows a gate within a millisecond each, on [`workload`].
    fn default() -> Options {
        Options {
            windows: 100,
            keep: false,
            work_dir: WORK_DIR.into(),
            max_pause: Nanos(1_000_000),
            workload: workload(),
        }
    }
}

/// Runs it. Steps that fail are in [`Report::failures`], and the steps after them are made all the same where they can be. `tell` hears what is
/// being done. On return, with an error too, the containers and the work files are gone unless they were to be kept; `run.json` and the image stay.
///
/// # Errors
/// When there is nothing to report: no privilege, no container, no place to work; or a signal.
pub fn run(options: &Options, tell: &dyn Fn(&str)) -> Result<Report, Error> {
    let until = UntilSignal(&Quiet);
    tell("starting three demo containers");
    let scene = Scene::set(options)?;
    let mut report = Report::new(options, &scene);
    for (choice, container) in [
        (GateChoice::Fence, &scene.loaded),
        (GateChoice::Freezer, &scene.loaded),
        (GateChoice::Auto, &scene.loaded),
        (GateChoice::None, &scene.idle),
    ] {
        until.check()?;
        tell(&format!("cutting {} times with gate {choice}", options.windows));
        let made = windows::measure(options, &scene, container, choice, &until);
        report.keep(&format!("windows with gate {choice}"), made, |report, gate| report.gates.push(gate))?;
    }
    until.check()?;
    tell("freezing and thawing a cgroup of 100 tasks");
    let frozen = freezes(&scene);
    report.keep("the cgroup.freeze round trip", frozen, |report, f| report.cgroup_freeze = Some(f))?;
    until.check()?;
    tell("making a whole image");
    let made = image::make(options, &scene, &until);
    let record = report.keep("the image", made, |report, (image, record)| {
        report.image = Some(image);
        record
    })?;
    if let Some(record) = record {
        until.check()?;
        tell("mounting the image and comparing it with the frozen upperdir over its lowers");
        let compared = judge::compare(&scene, &record);
        report.keep("the comparison", compared, |report, c| report.comparison = Some(c))?;
    }
    judge_figures(&mut report);
    report.write(&scene.root.join("run.json"))?;
    scene.strike()?;
    Ok(report)
}

/// What others pay for a pause: the crowd, frozen and thawed again and again.
fn freezes(scene: &Scene) -> Result<report::FreezeReport, Error> {
    const ROUND_TRIPS: u32 = 50;
    let dir = scene.crowd.state.cgroup_v2.as_deref().ok_or(bench::Error::NoCgroup)?;
    let tasks = members(dir).map_err(Error::io("list", dir))?.len() as u64;
    let freezer = RoundTrip::open(&Freezer::V2(dir.to_owned()))?;
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let trip = freezer.once()?;
        times.push(Nanos::from(trip.freeze + trip.thaw));
        std::thread::sleep(Duration::from_millis(2));
    }
    let round_trip = Percentiles::of(&times).ok_or(Error::Lost)?;
    Ok(report::FreezeReport { tasks, round_trips: ROUND_TRIPS, round_trip })
}

/// What must hold besides that every step was made.
fn judge_figures(report: &mut Report) {
    let mut failures = Vec::new();
    for gate in &report.gates {
        let choice = gate.gate;
        if gate.windows < report.windows {
            failures
                .push(format!("gate {choice}: only {} of {} cuts were made", gate.windows, report.windows));
        }
        if gate.cuts.window.as_ref().is_some_and(|w| w.max.ns > gate.max_pause.ns) {
            failures.push(format!(
                "gate {choice}: a window was longer than the budget of {}",
                gate.max_pause.human
            ));
        }
        if gate.cuts.tracker_misses > 0 {
            failures.push(format!("gate {choice}: the tracker missed {} changes", gate.cuts.tracker_misses));
        }
    }
    if let Some(c) = &report.comparison
        && !c.identical
    {
        failures.push(format!("the image differs from the frozen tree in {} places", c.differences.len()));
    }
    if let Some(fence) = report.fence() {
        let part =
            report.cgroup_freeze.as_ref().map(|f| fence.p50.ns as f64 / f.round_trip.p50.ns.max(1) as f64);
        // A goal depends on the machine and on what else it does: it is reported, and does not fail the run.
        let goals = [
            (fence.p50.ns <= span(FENCE_P50).ns, format!("fence p50 is at most {}", span(FENCE_P50).human)),
            (fence.p99.ns <= span(FENCE_P99).ns, format!("fence p99 is at most {}", span(FENCE_P99).human)),
            (
                part.is_some_and(|p| p <= FENCE_PART),
                format!("fence p50 is at most {FENCE_PART} of a cgroup.freeze round trip"),
            ),
        ];
        report.fence_part = part;
        report.goals = goals.into_iter().map(|(met, what)| report::Goal { what, met }).collect();
    }
    report.failures.extend(failures);
    report.held = report.failures.is_empty();
}

fn span(time: Duration) -> Span {
    Span::from(Nanos::from(time))
}
