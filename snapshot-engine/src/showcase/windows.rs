//! Cuts by one gate, at random moments, with what they cost the container.

use std::time::{Duration, Instant};

use super::report::{GateReport, Sample, ticks};
use super::scene::Scene;
use super::{Error, Options};
use crate::bench::pause::{FREEZER_BUDGET, open};
use crate::bench::report::{self, Series, Window};
use crate::bench::series::{Contender, Course};
use crate::demo::{self, Demo};
use crate::model::options::GateChoice;
use crate::model::reference::{ContainerRef, Runtime};
use crate::pipeline::progress::Progress;
use crate::pipeline::resolve;

/// Makes the cuts, and lets as much time pass without any, for comparison.
///
/// # Errors
/// When the container cannot be tracked, or a signal came. A cut that could not be made is counted instead.
pub(super) fn measure(
    options: &Options,
    scene: &Scene,
    container: &Demo,
    choice: GateChoice,
    progress: &dyn Progress,
) -> Result<GateReport, Error> {
    // No daemon is asked about a container of ours.
    let name = container.name().to_owned();
    let target = resolve(&ContainerRef::At { runtime: Runtime::Demo, name })?;
    let mut budget = options.max_pause.as_duration();
    if choice == GateChoice::Freezer {
        budget = budget.max(FREEZER_BUDGET);
    }
    let session = open(target, budget, &scene.scratch.join("shadow"), progress)?;
    let tickers = demo::tickers(container.name())?;
    let answer = |e| Error::io("read the tickers of", &container.upper())(e);
    tickers.reset().map_err(answer)?;
    let began = Instant::now();
    let mut course = Course::new(session, None, report::Scene::default(), None, progress)?;
    course.enter(Contender::Gate(choice, budget), options.windows);
    while !course.done() {
        course.turn(progress)?;
    }
    let took = began.elapsed();
    let felt = tickers.reports();
    let mut quiet = Vec::new();
    let series = course.finish();
    if !felt.is_empty() {
        tickers.reset().map_err(answer)?;
        let end = Instant::now() + took;
        while Instant::now() < end {
            progress.check()?;
            std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
        quiet = tickers.reports();
    }
    let of = |series: Series| GateReport {
        gate: choice,
        container: container.name().to_owned(),
        max_pause: super::span(budget),
        cuts: series.cuts,
        windows: series.made,
        samples: series.windows.iter().filter_map(sample).collect(),
        took: super::span(took),
        ticks: ticks(&felt, &quiet),
    };
    series.into_iter().next().map(of).ok_or(Error::Lost)
}

fn sample(window: &Window) -> Option<Sample> {
    Some(Sample {
        gate: window.gate?,
        window_ns: window.window,
        drain_ns: window.drain,
        capture_ns: window.capture,
        longest_stop_ns: window.longest_stop,
        inodes: window.inodes,
        bytes: window.bytes,
        attempts: window.attempts,
    })
}
