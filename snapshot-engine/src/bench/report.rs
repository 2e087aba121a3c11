//! What a measurement found. The JSON is described in docs/bench-pause.md; within a version fields are added, never renamed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::clocks::{Agreement, Verdict};
pub use super::copies::Copy;
pub use super::machine::Machine;
use super::ticker::Gap;
use crate::model::nanos::{Nanos, Span};
use crate::model::options::GateChoice;
use crate::model::snapshot::{Backend, Gate};
use crate::telemetry::Percentiles;

/// The name of the schema.
pub const SCHEMA: &str = "snapshot-engine/bench-pause";
/// Its version.
pub const VERSION: u32 = 1;

/// Everything a measurement found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`VERSION`].
    pub version: u32,
    /// The command, for people.
    pub command: String,
    /// Seconds since 1970.
    pub began: u64,
    /// How long it took.
    pub took: Span,
    /// Where.
    pub machine: Machine,
    /// Every contender on every scene.
    pub series: Vec<Series>,
    /// What tracking costs the container's own work.
    pub slowdowns: Vec<Slowdown>,
    /// The shadow copy against others.
    pub copies: Vec<Copy>,
    /// What could not be measured.
    pub missed: Vec<Missed>,
    /// What it is to reach.
    pub goals: Vec<Goal>,
    /// Promises that were broken; empty as a rule.
    pub violations: Vec<String>,
}

/// The container of a series and what went on in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Scene {
    /// What is varied: `base`, `upper`, `files`, `tasks`, `workload`, `file system`, `peer`, or `container`.
    pub axis: String,
    /// Its place on that axis, for people.
    pub label: String,
    /// The upper's file system.
    pub file_system: String,
    /// Bytes of the upperdir at the start.
    pub upper_bytes: u64,
    /// Files of the upperdir at the start.
    pub files: u64,
    /// Tasks of the container, the ticker not counted.
    pub tasks: u64,
    /// What it does.
    pub workload: String,
    /// Its name.
    pub container: String,
}

/// What the cuts of one contender came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cuts {
    /// Inodes of the shadow.
    pub inodes: u64,
    /// Cuts that could not be made.
    pub given_up: u32,
    /// Why the first of them could not.
    pub given_up_because: Option<String>,
    /// Which gates the cuts were made with.
    pub used: BTreeMap<Gate, u32>,
    /// Windows attempted for the cuts that stand.
    pub attempts: u64,
    /// Why the others of them came to nothing, the most frequent first.
    pub abandoned: Vec<Abandoned>,
    /// How long the gate was up in attempts that came to nothing.
    pub abandoned_stop: Option<Percentiles>,
    /// The engine's clock: gate up to gate down, 0 for gate none. Of somebody else: his command.
    pub window: Option<Percentiles>,
    /// The kernel's clock.
    pub longest_stop: Option<Percentiles>,
    /// A part of the window.
    pub drain: Option<Percentiles>,
    /// A part of the window.
    pub capture: Option<Percentiles>,
    /// Inodes captured inside the window, median.
    pub residual_inodes: u64,
    /// Content bytes captured inside the window, median.
    pub residual_bytes: u64,
    /// Pre-copy rounds for a cut, median.
    pub rounds: u64,
    /// Changes the tracker missed (T6): each is a bug.
    pub tracker_misses: u64,
}

/// One contender's stops of one container.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// The container.
    pub scene: Scene,
    /// A gate, or somebody else's command.
    pub contender: String,
    /// The gate asked for; absent for somebody else's command.
    pub gate: Option<GateChoice>,
    /// What the ticker does: `spin`, `call`.
    pub ticker: Option<&'static str>,
    /// What told of changes.
    pub tracker: Option<Backend>,
    /// The budget of a window.
    pub max_pause: Option<Span>,
    /// What the cuts came to.
    #[serde(flatten)]
    pub cuts: Cuts,
    /// Windows asked for.
    pub wanted: u32,
    /// Windows made.
    pub made: u32,
    /// The ticker's clock: the largest gap that overlaps the window.
    pub felt: Option<Percentiles>,
    /// The same at sham moments.
    pub quiet: Option<Percentiles>,
    /// What the median stop adds to the median quiet moment.
    pub felt_less_quiet_p50_ns: Option<i64>,
    /// The largest gap anywhere between the command and its end: rounds and attempts that came to nothing too.
    pub felt_around: Option<Percentiles>,
    /// The same at sham moments.
    pub quiet_around: Option<Percentiles>,
    /// Whether the clocks agree.
    pub agreement: Option<Agreement>,
    /// From the command to the cut, on an open session.
    pub command: Option<Percentiles>,
    /// Processor time of the engine for a cut, all threads.
    pub cpu: Option<Percentiles>,
    /// From looking for the container to its first cut: tracker, base copy and all.
    pub first_cut: Option<Span>,
    /// Bytes copied in rounds and windows for each byte that the tracker held for dirty in rounds; absent if nothing was.
    pub copied_per_dirty: Option<f64>,
    /// Gaps the ticker logged that were overwritten before they were read.
    pub gaps_lost: u64,
    /// How long the series took, waiting included.
    pub took: Span,
    /// Every stop, in the order they were made.
    pub windows: Vec<Window>,
}

/// One stop. Times are nanoseconds; moments are on `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Window {
    /// With which gate; absent for somebody else's command.
    pub gate: Option<Gate>,
    /// The gate went up, or the command began.
    #[serde(rename = "up_at_ns")]
    pub up: Nanos,
    /// The gate came down, or the command ended.
    #[serde(rename = "down_at_ns")]
    pub down: Nanos,
    /// The engine's clock; 0 for gate none.
    #[serde(rename = "window_ns")]
    pub window: Nanos,
    /// Until no call was under way.
    #[serde(rename = "drain_ns")]
    pub drain: Nanos,
    /// Until the residual was in memory.
    #[serde(rename = "capture_ns")]
    pub capture: Nanos,
    /// The kernel's clock.
    #[serde(rename = "longest_stop_ns")]
    pub longest_stop: Nanos,
    /// Calls that were held.
    pub held: u64,
    /// The ticker's clock; 0: nothing above 2 us. Absent without a ticker.
    #[serde(rename = "felt_ns")]
    pub felt: Option<Nanos>,
    /// The gap itself.
    pub gap: Option<Gap>,
    /// The same at the sham moment.
    #[serde(rename = "sham_ns")]
    pub sham: Option<Nanos>,
    /// The largest gap between the command and its end.
    #[serde(rename = "felt_around_ns")]
    pub around: Option<Nanos>,
    /// The same at the sham moment.
    #[serde(rename = "sham_around_ns")]
    pub sham_around: Option<Nanos>,
    /// Whether the clocks agree.
    pub clocks: Option<Verdict>,
    /// From the command to the cut.
    #[serde(rename = "command_ns")]
    pub command: Nanos,
    /// Processor time of the engine, all threads.
    #[serde(rename = "cpu_ns")]
    pub cpu: Nanos,
    /// Inodes captured.
    pub inodes: u64,
    /// Content bytes captured.
    pub bytes: u64,
    /// Windows attempted, this one included.
    pub attempts: u32,
    /// Pre-copy rounds.
    pub rounds: u32,
    /// Bytes that were dirty at the rounds, in blocks of 64 KiB.
    pub dirty: u64,
    /// Bytes the rounds copied.
    pub copied: u64,
    /// Bytes the rounds cloned.
    pub cloned: u64,
}

/// Attempts that came to nothing.
#[derive(Debug, Clone, Serialize)]
pub struct Abandoned {
    /// With which gate.
    pub gate: Gate,
    /// Why.
    pub reason: String,
    /// How often.
    pub count: u32,
}

/// Work inside the container in alternating slices, tracked and not.
#[derive(Debug, Clone, Serialize)]
pub struct Slowdown {
    /// What it does.
    pub load: String,
    /// The upper's file system.
    pub file_system: String,
    /// Operations a second of its own processor time while tracked, a number a slice.
    pub tracked: Vec<f64>,
    /// And while not, each right beside the one above.
    pub untracked: Vec<f64>,
    /// The median of the slices' ratios, tracked to untracked.
    pub ratio: f64,
    /// The same for operations a second of time that passed: waiting for the disk and for the processor is in it.
    pub wall_ratio: Option<f64>,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missed {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A goal.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// What.
    pub what: String,
    /// What it is to reach.
    pub reach: String,
    /// What it reached.
    pub measured: String,
    /// Whether that is enough; absent where it could not be measured.
    pub met: Option<bool>,
}

impl Series {
    /// A series of these stops; what is not known from them is for the caller to add.
    #[must_use]
    pub fn new(scene: Scene, contender: String, gate: Option<GateChoice>, windows: Vec<Window>) -> Series {
        let all = |f: &dyn Fn(&Window) -> Option<Nanos>| {
            Percentiles::of(&windows.iter().filter_map(f).collect::<Vec<_>>())
        };
        let middle = |f: &dyn Fn(&Window) -> u64| median(windows.iter().map(f));
        let mine = |f: fn(&Window) -> Nanos| all(&|w| w.gate.map(|_| f(w)));
        let mut used = BTreeMap::new();
        for gate in windows.iter().filter_map(|w| w.gate) {
            *used.entry(gate).or_default() += 1;
        }
        let dirty: u64 = windows.iter().map(|w| w.dirty).sum();
        let copied: u64 = windows.iter().map(|w| w.copied + w.cloned + w.bytes).sum();
        let (felt, quiet) = (all(&|w| w.felt), all(&|w| w.sham));
        let less = |f: &Percentiles, q: &Percentiles| f.p50.ns.cast_signed() - q.p50.ns.cast_signed();
        let only_gate = used.keys().next().copied().filter(|_| used.len() == 1);
        let verdicts: Vec<Verdict> = windows.iter().filter_map(|w| w.clocks).collect();
        Series {
            contender,
            gate,
            ticker: None,
            tracker: None,
            max_pause: None,
            cuts: Cuts {
                used,
                attempts: windows.iter().map(|w| u64::from(w.attempts)).sum(),
                window: all(&|w| Some(w.window)),
                longest_stop: mine(|w| w.longest_stop),
                drain: mine(|w| w.drain),
                capture: mine(|w| w.capture),
                residual_inodes: middle(&|w| w.inodes),
                residual_bytes: middle(&|w| w.bytes),
                rounds: middle(&|w| u64::from(w.rounds)),
                ..Cuts::default()
            },
            wanted: 0,
            made: u32::try_from(windows.len()).unwrap_or(u32::MAX),
            felt_less_quiet_p50_ns: felt.as_ref().zip(quiet.as_ref()).map(|(f, q)| less(f, q)),
            felt,
            quiet,
            felt_around: all(&|w| w.around),
            quiet_around: all(&|w| w.sham_around),
            agreement: (!verdicts.is_empty()).then(|| Agreement::of(only_gate, verdicts.into_iter())),
            command: all(&|w| Some(w.command)),
            cpu: mine(|w| w.cpu),
            first_cut: None,
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            copied_per_dirty: (dirty > 0).then(|| copied as f64 / dirty as f64),
            gaps_lost: 0,
            took: Nanos(0).into(),
            scene,
            windows,
        }
    }

    /// Takes in why attempts came to nothing.
    pub(super) fn take_abandoned(&mut self, why: BTreeMap<(Gate, String), u32>, stops: &[Nanos]) {
        self.cuts.abandoned =
            why.into_iter().map(|((gate, reason), count)| Abandoned { gate, reason, count }).collect();
        self.cuts.abandoned.sort_by_key(|a| std::cmp::Reverse(a.count));
        self.cuts.abandoned_stop = Percentiles::of(stops);
    }

    /// The stops by which a contender is compared with others: ours by the window, theirs by what the ticker felt, because they tell nothing.
    #[must_use]
    pub fn stops(&self) -> Vec<Nanos> {
        let stop = |w: &Window| if self.gate.is_some() { w.window } else { w.felt.unwrap_or(w.window) };
        self.windows.iter().map(stop).collect()
    }

    /// Promises that this series shows broken.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let at = format!("{} ({}), {}", self.contender, self.scene.axis, self.scene.label);
        if let (Some(window), Some(budget)) = (&self.cuts.window, &self.max_pause)
            && window.max.ns > budget.ns
        {
            found.push(format!(
                "{at}: a window of {} exceeds the budget of {}",
                window.max.human, budget.human
            ));
        }
        if self.cuts.tracker_misses > 0 {
            found.push(format!("{at}: the tracker missed {} changes", self.cuts.tracker_misses));
        }
        found
    }
}

/// The middle one; 0 of none.
#[must_use]
pub fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut sorted: Vec<u64> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_summed_up() {
        let window = |gate, ns, felt, sham| Window {
            gate: Some(gate),
            window: Nanos(ns),
            felt: Some(Nanos(felt)),
            sham: Some(Nanos(sham)),
            attempts: 2,
            dirty: 100,
            copied: 40,
            bytes: 10,
            clocks: Some(Verdict::Agrees),
            ..Window::default()
        };
        let windows = vec![window(Gate::Fence, 5_000, 6_000, 2_500), window(Gate::Freezer, 9_000, 9_500, 0)];
        let mut s = Series::new(Scene::default(), "auto".into(), Some(GateChoice::Auto), windows);
        assert_eq!((s.made, s.cuts.attempts, s.cuts.used.len()), (2, 4, 2));
        assert_eq!(s.felt_less_quiet_p50_ns, Some(6_000));
        assert_eq!(s.copied_per_dirty, Some(0.5));
        assert_eq!(s.stops(), [Nanos(5_000), Nanos(9_000)]);
        s.max_pause = Some(Nanos(9_000).into());
        assert!(s.violations().is_empty());
        s.max_pause = Some(Nanos(8_999).into());
        s.cuts.tracker_misses = 1;
        assert_eq!(s.violations().len(), 2);
        assert_eq!((median([3, 1, 2].into_iter()), median(std::iter::empty())), (2, 0));
    }

    #[test]
    fn others_are_known_by_what_was_felt() {
        let theirs = Window { window: Nanos(7), felt: Some(Nanos(3)), ..Window::default() };
        let s = Series::new(Scene::default(), "docker commit".into(), None, vec![theirs]);
        assert_eq!(s.stops(), [Nanos(3)]);
        assert!(s.cuts.longest_stop.is_none() && s.agreement.is_none() && s.copied_per_dirty.is_none());
    }
}
