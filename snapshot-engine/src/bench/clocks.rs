//! Three clocks for one stop, and whether they agree.
//!
//! ```text
//!   engine    |-- window ------------------|        gate up to gate down, on the engine's own clock
//!   kernel      |-- longest spin ----------|        the fence; for the freezer: freeze to thaw
//!   ticker   |-- gap ------------------------|      what a process inside felt: the largest gap that overlaps the window
//! ```
//!
//! The rule, with a tolerance of 3 us and a tenth of the window (a tick is not a point, and a held task needs a moment to go on):
//!
//! * fence: window, longest spin and gap are the same. The ticker makes one call after the other, so it is held from the gate's rise on.
//! * freezer: the gap is no longer than the window and no shorter than the part of it in which all were frozen (window - drain).
//! * none: the gap is no longer than the longest that the same ticker felt at the sham moments.
//!
//! Where they differ a reason is looked for in the data, in this order; a window without one is unexplained and makes the series disagree.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ticker::Gap;
use crate::demo::TickMode;
use crate::model::nanos::Nanos;
use crate::model::snapshot::Gate;

/// Always allowed.
const TOLERANCE: u64 = 3_000;

/// Whether the clocks of one window agree, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They do.
    Agrees,
    /// The ticker lost its processor to another task in that gap (its count of involuntary switches grew).
    ProcessorLost,
    /// The gap began before the gate went up: something else had stopped the ticker already.
    BeganBefore,
    /// The gap went on after the gate came down: the ticker was free and did not get to run.
    WentOn,
    /// The fence holds those who make calls, and the ticker of this series only computes.
    MadeNoCall,
    /// The data gives no reason.
    Unexplained,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Agrees => "agree",
            Verdict::ProcessorLost => "the ticker lost its processor to another task",
            Verdict::BeganBefore => "the ticker's gap began before the gate went up",
            Verdict::WentOn => "the ticker's gap went on after the gate had come down",
            Verdict::MadeNoCall => "the ticker made no call, so the fence did not hold it",
            Verdict::Unexplained => "no reason found in the data",
        }
    }
}

/// What the clocks say of one window.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// What held.
    pub gate: Gate,
    /// The gate went up.
    pub up: Nanos,
    /// The gate came down.
    pub down: Nanos,
    /// From the gate going up until nobody was under way; with the freezer: until all were frozen.
    pub drain: Nanos,
    /// The kernel's clock.
    pub longest_stop: Nanos,
    /// The ticker's.
    pub gap: Option<Gap>,
    /// What the ticker does.
    pub mode: TickMode,
    /// The longest gap the ticker felt at sham moments.
    pub quiet_max: Nanos,
}

/// Judges one window by the rule above.
#[must_use]
pub fn judge(r: &Reading) -> Verdict {
    let felt = r.gap.map_or(0, |g| g.length().0);
    let window = r.down.0.saturating_sub(r.up.0);
    let tolerance = TOLERANCE + window / 10;
    let (least, most) = match r.gate {
        Gate::None => (0, r.quiet_max.0.max(tolerance)),
        Gate::Fence if r.mode != TickMode::Call => (0, window + tolerance),
        Gate::Fence => (window.saturating_sub(tolerance), window + tolerance),
        Gate::Freezer => (window.saturating_sub(r.drain.0 + tolerance), window + tolerance),
    };
    let kernel = match r.gate {
        Gate::None => r.longest_stop.0 == 0,
        // With a ticker that calls all the time somebody is held for the whole window.
        Gate::Fence => {
            r.longest_stop.0 <= window + tolerance
                && (r.mode != TickMode::Call || r.longest_stop.0 + tolerance >= window)
        }
        Gate::Freezer => r.longest_stop.0.abs_diff(window) <= tolerance,
    };
    if kernel && (least..=most).contains(&felt) {
        let unheld = r.gate == Gate::Fence && r.mode != TickMode::Call && felt + tolerance < window;
        return if unheld { Verdict::MadeNoCall } else { Verdict::Agrees };
    }
    match r.gap {
        Some(gap) if gap.switches > 0 => Verdict::ProcessorLost,
        Some(gap) if felt > most && gap.begin.0 + tolerance < r.up.0 => Verdict::BeganBefore,
        Some(gap) if felt > most && gap.end.0 > r.down.0 + tolerance => Verdict::WentOn,
        _ => Verdict::Unexplained,
    }
}

/// Whether the clocks of a series agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Most windows agree, and the data says why the others do not.
    Agree,
    /// Most windows do not agree, and the data says why: the machine was too busy for the ticker to tell much.
    Explained,
    /// There are windows for which the data gives no reason.
    Disagree,
}

impl Judgement {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Judgement::Agree => "agree",
            Judgement::Explained => "differ, and it is known why",
            Judgement::Disagree => "DISAGREE",
        }
    }
}

/// The clocks of a series.
#[derive(Debug, Clone, Serialize)]
pub struct Agreement {
    /// Whether they agree.
    pub judgement: Judgement,
    /// Windows by verdict.
    pub verdicts: BTreeMap<Verdict, u32>,
    /// The rule that was applied.
    pub rule: &'static str,
}

impl Agreement {
    /// Of some windows by one gate; `None`: by several.
    #[must_use]
    pub fn of(gate: Option<Gate>, verdicts: impl Iterator<Item = Verdict>) -> Agreement {
        let mut counts: BTreeMap<Verdict, u32> = BTreeMap::new();
        for verdict in verdicts {
            *counts.entry(verdict).or_default() += 1;
        }
        let rule = match gate {
            None => "each window by the rule of its own gate",
            Some(Gate::None) => {
                "nobody is held: no gap at a window is longer than the longest at a sham moment"
            }
            Some(Gate::Fence) => {
                "window, longest spin and gap of a calling ticker are the same within 3 us and a tenth"
            }
            Some(Gate::Freezer) => {
                "the gap is at most the window and at least its part with all tasks frozen, within 3 us and a tenth"
            }
        };
        let agree = counts.get(&Verdict::Agrees).copied().unwrap_or(0);
        let judgement = if counts.contains_key(&Verdict::Unexplained) {
            Judgement::Disagree
        } else if agree * 2 >= counts.values().sum() {
            Judgement::Agree
        } else {
            Judgement::Explained
        };
        Agreement { judgement, verdicts: counts, rule }
    }

    /// In one line.
    #[must_use]
    pub fn text(&self) -> String {
        let of = |v: &Verdict| self.verdicts.get(v).copied().unwrap_or(0);
        let total: u32 = self.verdicts.values().sum();
        let mut text = format!("{} of {total} agree", of(&Verdict::Agrees));
        for (verdict, n) in self.verdicts.iter().filter(|(v, _)| **v != Verdict::Agrees) {
            text.push_str(&format!("; {n}: {}", verdict.text()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(gate: Gate, window: u64, longest: u64, gap: Option<(u64, u64, u64)>) -> Reading {
        Reading {
            gate,
            up: Nanos(1_000_000),
            down: Nanos(1_000_000 + window),
            drain: Nanos(if gate == Gate::Freezer { window / 2 } else { 200 }),
            longest_stop: Nanos(longest),
            gap: gap.map(|(begin, end, switches)| Gap { begin: Nanos(begin), end: Nanos(end), switches }),
            mode: if gate == Gate::Fence { TickMode::Call } else { TickMode::Spin },
            quiet_max: Nanos(30_000),
        }
    }

    #[test]
    fn the_fence_is_felt_by_who_calls_for_as_long_as_it_is_up() {
        let fence = |longest, gap| judge(&reading(Gate::Fence, 20_000, longest, gap));
        assert_eq!(fence(19_500, Some((999_900, 1_020_300, 0))), Verdict::Agrees);
        assert_eq!(fence(19_500, None), Verdict::Unexplained, "held, and it felt nothing");
        assert_eq!(
            fence(0, Some((999_900, 1_020_300, 0))),
            Verdict::Unexplained,
            "the kernel says otherwise"
        );
        assert_eq!(fence(0, Some((999_900, 1_020_300, 1))), Verdict::ProcessorLost);
        assert_eq!(fence(19_500, Some((900_000, 1_020_300, 0))), Verdict::BeganBefore);
        assert_eq!(fence(19_500, Some((999_900, 1_090_000, 0))), Verdict::WentOn);
        let computing = Reading { mode: TickMode::Spin, ..reading(Gate::Fence, 20_000, 0, None) };
        assert_eq!(judge(&computing), Verdict::MadeNoCall);
    }

    #[test]
    fn the_freezer_is_felt_from_somewhere_in_the_drain_on() {
        let freezer = |gap| judge(&reading(Gate::Freezer, 100_000, 100_000, gap));
        assert_eq!(freezer(Some((1_030_000, 1_101_000, 0))), Verdict::Agrees);
        assert_eq!(freezer(Some((1_090_000, 1_101_000, 0))), Verdict::Unexplained);
        assert_eq!(freezer(None), Verdict::Unexplained);
    }

    #[test]
    fn nobody_feels_gate_none() {
        let none = |gap| judge(&reading(Gate::None, 6_000, 0, gap));
        assert_eq!(none(None), Verdict::Agrees);
        assert_eq!(none(Some((990_000, 1_010_000, 0))), Verdict::Agrees);
        assert_eq!(none(Some((1_000_000, 1_040_000, 0))), Verdict::WentOn);
        let all = Agreement::of(Some(Gate::None), [Verdict::Agrees, Verdict::WentOn].into_iter());
        assert_eq!(all.judgement, Judgement::Agree);
        assert!(all.text().starts_with("1 of 2 agree; 1: the ticker's gap went on"));
        let of = |v| Agreement::of(Some(Gate::None), std::iter::once(v)).judgement;
        assert_eq!(of(Verdict::Unexplained), Judgement::Disagree);
        assert_eq!(of(Verdict::ProcessorLost), Judgement::Explained);
    }
}
