//! Cuts by one gate, at random moments, with what they cost the container.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::report::{Abandoned, GateReport, Sample, median, percentiles, ticks};
use super::scene::Scene;
use super::{Error, Options};
use crate::demo::{self, Demo};
use crate::freeze::attempt::Policy;
use crate::freeze::reader::now;
use crate::freeze::window::Moment;
use crate::model::nanos::Nanos;
use crate::model::options::{CommitOptions, GateChoice};
use crate::model::reference::ContainerRef;
use crate::model::snapshot::Gate;
use crate::pipeline::progress::Progress;
use crate::pipeline::session::{Made, Session};
use crate::pipeline::{self, resolve};

/// When the last window had drained, and when it had captured: written inside the window, so plain memory and no more.
static DRAINED: AtomicU64 = AtomicU64::new(0);
static CAPTURED: AtomicU64 = AtomicU64::new(0);

fn note(moment: Moment) {
    match moment {
        Moment::Drained => DRAINED.store(now(), Relaxed),
        Moment::Captured => CAPTURED.store(now(), Relaxed),
        Moment::Raised | Moment::Validated => {}
    }
}

/// The freezer has to get every task onto a processor and out of the disk's hands, so it takes as long as the machine is busy; with the fence's
/// budget hardly a cut would be made on a busy one, and there would be nothing to compare.
const FREEZER_BUDGET: Duration = Duration::from_millis(20);

/// Everything that is taken down of a series of cuts.
#[derive(Debug, Default)]
struct Tally {
    windows: Vec<Duration>,
    stops: Vec<Duration>,
    drains: Vec<Duration>,
    captures: Vec<Duration>,
    samples: Vec<Sample>,
    rounds: Vec<u64>,
    used: BTreeMap<Gate, u32>,
    abandoned: BTreeMap<(Gate, String), u32>,
    abandoned_stops: Vec<Duration>,
    attempts: u64,
    misses: u64,
    given_up: u32,
    why: Option<String>,
}

impl Tally {
    fn add(&mut self, made: Made) {
        self.windows.push(made.pause.pause());
        self.stops.push(made.pause.longest_stop);
        self.drains.push(made.pause.drain);
        let capture = Duration::from_nanos(CAPTURED.load(Relaxed).saturating_sub(DRAINED.load(Relaxed)));
        self.captures.push(capture);
        self.samples.push(Sample {
            gate: made.pause.gate,
            window_ns: Nanos::from(made.pause.pause()),
            drain_ns: Nanos::from(made.pause.drain),
            capture_ns: Nanos::from(capture),
            longest_stop_ns: Nanos::from(made.pause.longest_stop),
            inodes: made.inodes,
            bytes: made.bytes,
            attempts: made.attempts,
        });
        self.rounds.push(u64::from(made.rounds));
        *self.used.entry(made.pause.gate).or_default() += 1;
        for (why, n) in made.abandoned {
            *self.abandoned.entry(why).or_default() += n;
        }
        self.abandoned_stops.extend(made.other_stops.iter().map(|(_, stop)| *stop));
        self.attempts += u64::from(made.attempts);
        self.misses += made.misses;
    }
}

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
    let target = resolve(&ContainerRef::Name(container.name().to_owned()))?;
    let mut budget = options.max_pause.as_duration();
    if choice == GateChoice::Freezer {
        budget = budget.max(FREEZER_BUDGET);
    }
    let commit = CommitOptions::default().max_pause(budget).gate(choice);
    let policy = Policy { choice, budget, probe: Some(note), ..Policy::default() };
    let shadow = scene.scratch.join("shadow");
    let mut session = Session::open(target, &commit, &shadow, policy, 0, progress)?;
    let inodes = session.inodes() as u64;
    let tickers = demo::tickers(container.name())?;
    let answer = |e| Error::io("read the tickers of", &container.upper())(e);
    tickers.reset().map_err(answer)?;
    let began = Instant::now();
    let mut tally = Tally::default();
    // A cut that cannot be made within the budget is refused, as promised; it is counted, and another moment is tried.
    let wanted = options.windows as usize;
    for _ in 0..wanted * 2 + 10 {
        if tally.windows.len() == wanted {
            break;
        }
        std::thread::sleep(moment());
        match session.cut(progress) {
            Ok(made) => tally.add(made),
            Err(e @ pipeline::Error::Interrupted { .. }) => return Err(e.into()),
            Err(e) => {
                tally.given_up += 1;
                tally.why.get_or_insert_with(|| Error::from(e).whole());
            }
        }
    }
    let took = began.elapsed();
    let felt = tickers.reports();
    drop(session);
    let mut quiet = Vec::new();
    if !felt.is_empty() {
        tickers.reset().map_err(answer)?;
        let end = Instant::now() + took;
        while Instant::now() < end {
            progress.check()?;
            std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
        quiet = tickers.reports();
    }
    let mut abandoned: Vec<Abandoned> = tally
        .abandoned
        .into_iter()
        .map(|((gate, reason), count)| Abandoned { gate, reason, count })
        .collect();
    abandoned.sort_by_key(|a| std::cmp::Reverse(a.count));
    Ok(GateReport {
        gate: choice,
        container: container.name().to_owned(),
        max_pause: super::span(budget),
        inodes,
        windows: u32::try_from(tally.windows.len()).unwrap_or(u32::MAX),
        given_up: tally.given_up,
        given_up_because: tally.why,
        used: tally.used,
        attempts: tally.attempts,
        abandoned,
        abandoned_stop: (!tally.abandoned_stops.is_empty()).then(|| percentiles(&tally.abandoned_stops)),
        window: (!tally.windows.is_empty()).then(|| percentiles(&tally.windows)),
        longest_stop: (!tally.stops.is_empty()).then(|| percentiles(&tally.stops)),
        drain: (!tally.drains.is_empty()).then(|| percentiles(&tally.drains)),
        capture: (!tally.captures.is_empty()).then(|| percentiles(&tally.captures)),
        residual_inodes: median(tally.samples.iter().map(|s| s.inodes)),
        residual_bytes: median(tally.samples.iter().map(|s| s.bytes)),
        rounds: median(tally.rounds.iter().copied()),
        tracker_misses: tally.misses,
        samples: tally.samples,
        took: super::span(took),
        ticks: ticks(&felt, &quiet),
    })
}

/// A few milliseconds, other ones each time: cuts must not fall in step with what the container does.
fn moment() -> Duration {
    // Every RandomState has keys of its own.
    let random = RandomState::new().build_hasher().finish();
    Duration::from_micros(1_000 + random % 7_000)
}
