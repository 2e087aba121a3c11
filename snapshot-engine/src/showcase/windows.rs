//! Cuts by one gate, at random moments, with what they cost the container.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use super::report::{Abandoned, GateReport, median, percentiles, ticks};
use super::scene::Scene;
use super::{Error, Options};
use crate::demo::{self, Demo};
use crate::freeze::attempt::Policy;
use crate::model::options::{CommitOptions, GateChoice};
use crate::model::reference::ContainerRef;
use crate::model::snapshot::Gate;
use crate::pipeline::progress::Progress;
use crate::pipeline::session::{Made, Session};
use crate::pipeline::{self, resolve};

/// Everything that is taken down of a series of cuts.
#[derive(Debug, Default)]
struct Tally {
    windows: Vec<Duration>,
    stops: Vec<Duration>,
    drains: Vec<Duration>,
    inodes: Vec<u64>,
    bytes: Vec<u64>,
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
        self.inodes.push(made.inodes);
        self.bytes.push(made.bytes);
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
    let commit = CommitOptions::default().max_pause(options.max_pause).gate(choice);
    let policy = Policy { choice, budget: options.max_pause.as_duration(), ..Policy::default() };
    let shadow = scene.scratch.join("shadow");
    let mut session = Session::open(target, &commit, &shadow, policy, 0, progress)?;
    let inodes = session.inodes() as u64;
    let tickers = demo::tickers(container.name())?;
    let answer = |e| Error::io("read the tickers of", &container.upper())(e);
    tickers.reset().map_err(answer)?;
    let began = Instant::now();
    let mut tally = Tally::default();
    for _ in 0..options.windows {
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
        residual_inodes: median(&tally.inodes),
        residual_bytes: median(&tally.bytes),
        rounds: median(&tally.rounds),
        tracker_misses: tally.misses,
        windows_ns: tally.windows.iter().map(|w| u64::try_from(w.as_nanos()).unwrap_or(u64::MAX)).collect(),
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
