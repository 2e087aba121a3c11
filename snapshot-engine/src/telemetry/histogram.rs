//! Pauses by gate: the window, and the longest stop any task had.
//!
//! Values keep three significant digits. Serialised, a histogram is the list of its values with their counts, so that any program can read it:
//!
//! ```json
//! {"fence": {"window": [[5203, 1], [6403, 2]], "longest_stop": [[4900, 3]]}}
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::nanos::{Nanos, Span};
use crate::model::snapshot::Gate;

/// Longer pauses count as this: five minutes.
const LONGEST: u64 = 300_000_000_000;

#[derive(Debug, Clone, PartialEq)]
struct Values(Histogram<u64>);

impl Default for Values {
    fn default() -> Self {
        Values(Histogram::new_with_bounds(1, LONGEST, 3).expect("constant bounds and precision are valid"))
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())))
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values = Values::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            values.0.saturating_record_n(value, count);
        }
        Ok(values)
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Pair {
    window: Values,
    longest_stop: Values,
}

/// Pauses by gate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PauseHistogram {
    gates: BTreeMap<Gate, Pair>,
}

/// Percentiles of one quantity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half of the pauses were at most this.
    pub p50: Span,
    /// Nine of ten.
    pub p90: Span,
    /// All but one of a hundred.
    pub p99: Span,
    /// The longest.
    pub max: Span,
}

impl Percentiles {
    /// Of a few times, each one that was really measured; `None` of none.
    #[must_use]
    pub fn of(times: &[Nanos]) -> Option<Percentiles> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
            Span::from(sorted[rank.min(last)])
        };
        Some(Percentiles { p50: at(50), p90: at(90), p99: at(99), max: at(100) })
    }
}

/// One gate's figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GateFigures {
    /// The gate.
    pub gate: Gate,
    /// Snapshots.
    pub count: u64,
    /// From the gate going up to it coming down.
    pub window: Percentiles,
    /// The longest stop any task had.
    pub longest_stop: Percentiles,
}

impl Values {
    fn percentiles(&self) -> Percentiles {
        let at = |q: f64| Span::from(Nanos(self.0.value_at_quantile(q)));
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: Span::from(Nanos(self.0.max())) }
    }
}

impl PauseHistogram {
    /// Adds one snapshot's pause.
    pub fn record(&mut self, gate: Gate, window: Nanos, longest_stop: Nanos) {
        let pair = self.gates.entry(gate).or_default();
        pair.window.0.saturating_record(window.0);
        pair.longest_stop.0.saturating_record(longest_stop.0);
    }

    /// Adds everything another one holds.
    pub fn merge(&mut self, other: &PauseHistogram) {
        for (gate, theirs) in &other.gates {
            let ours = self.gates.entry(*gate).or_default();
            for (ours, theirs) in
                [(&mut ours.window, &theirs.window), (&mut ours.longest_stop, &theirs.longest_stop)]
            {
                for value in theirs.0.iter_recorded() {
                    ours.0.saturating_record_n(value.value_iterated_to(), value.count_at_value());
                }
            }
        }
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    /// The figures of each gate that was used.
    #[must_use]
    pub fn figures(&self) -> Vec<GateFigures> {
        let figures = |(gate, pair): (&Gate, &Pair)| GateFigures {
            gate: *gate,
            count: pair.window.0.len(),
            window: pair.window.percentiles(),
            longest_stop: pair.longest_stop.percentiles(),
        };
        self.gates.iter().map(figures).collect()
    }

    /// The figures as a table, with a line break at the end of each row.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<8} {:>6}  {:<12} {:>9} {:>9} {:>9} {:>9}\n",
            "GATE", "COUNT", "PAUSE", "P50", "P90", "P99", "MAX"
        );
        for f in self.figures() {
            for (what, p) in [("window", &f.window), ("longest stop", &f.longest_stop)] {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    out,
                    "{:<8} {:>6}  {what:<12} {:>9} {:>9} {:>9} {:>9}",
                    f.gate, f.count, p.p50.human, p.p90.human, p.p99.human, p.max.human
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PauseHistogram {
        let mut h = PauseHistogram::default();
        for i in 1..=100 {
            h.record(Gate::Fence, Nanos(i * 100), Nanos(i * 90));
        }
        h.record(Gate::None, Nanos(0), Nanos(0));
        h
    }

    #[test]
    fn percentiles_by_gate() {
        let figures = sample().figures();
        assert_eq!(
            figures.iter().map(|f| (f.gate, f.count)).collect::<Vec<_>>(),
            [(Gate::None, 1), (Gate::Fence, 100)]
        );
        let window = &figures[1].window;
        let near = |span: &Span, ns: u64| assert!(span.ns.abs_diff(ns) <= ns / 500, "{span:?} {ns}");
        near(&window.p50, 5_000);
        near(&window.p90, 9_000);
        near(&window.p99, 9_900);
        near(&window.max, 10_000);
        assert_eq!(figures[0].window.max.ns, 0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Nanos> = (1..=100).rev().map(|n| Nanos(n * 1000)).collect();
        let p = Percentiles::of(&times).unwrap();
        assert_eq!((p.p50.ns, p.p90.ns, p.p99.ns, p.max.ns), (50_000, 90_000, 99_000, 100_000));
        let one = Percentiles::of(&times[..1]).unwrap();
        assert_eq!((one.p50.ns, one.max.ns), (100_000, 100_000));
        assert_eq!(Percentiles::of(&[]), None);
    }

    #[test]
    fn survives_json_and_merging() {
        let h = sample();
        let text = serde_json::to_string(&h).unwrap();
        let back: PauseHistogram = serde_json::from_str(&text).unwrap();
        assert_eq!(back.figures(), h.figures());
        let mut twice = back;
        twice.merge(&h);
        assert_eq!(twice.figures()[1].count, 200);
        assert_eq!(twice.figures()[1].window, h.figures()[1].window);
    }

    #[test]
    fn absurd_values_saturate() {
        let mut h = PauseHistogram::default();
        h.record(Gate::Freezer, Nanos(u64::MAX), Nanos(LONGEST * 2));
        assert!(h.figures()[0].window.max.ns >= LONGEST);
    }

    #[test]
    fn the_table() {
        let mut h = PauseHistogram::default();
        h.record(Gate::Fence, Nanos(640), Nanos(610));
        assert_eq!(
            h.table(),
            "GATE      COUNT  PAUSE              P50       P90       P99       MAX\n\
             fence         1  window           640ns     640ns     640ns     640ns\n\
             fence         1  longest stop     610ns     610ns     610ns     610ns\n"
        );
    }
}
