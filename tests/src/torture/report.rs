//! The figures of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use snapshot_engine::freeze::gate::Gate;

use super::check::Done;
use super::op::Kind;

/// A gate's word.
#[must_use]
pub fn word(gate: Gate) -> &'static str {
    match gate {
        Gate::None => "none",
        Gate::Fence => "fence",
        Gate::Freezer => "freezer",
    }
}

/// Cuts that were looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Cuts {
    made: u64,
    wrong: u64,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    /// File systems on which there is no tracker here.
    pub untracked: BTreeSet<String>,
    /// What was wrong, in words.
    pub violations: Vec<String>,
    /// Cuts that went the whole way to a durable frozen upperdir.
    pub whole: u64,
    /// Changes that a sweep found and the tracker had not (T6).
    pub misses: u64,
    cuts: BTreeMap<(String, String, &'static str), Cuts>,
    refused: BTreeMap<(String, String, String), u64>,
    done: BTreeMap<&'static str, Done>,
}

impl Report {
    /// An empty one.
    #[must_use]
    pub fn new(seed: u64) -> Report {
        Report {
            seed,
            took: Duration::ZERO,
            untracked: BTreeSet::new(),
            violations: Vec::new(),
            whole: 0,
            misses: 0,
            cuts: BTreeMap::new(),
            refused: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    pub(super) fn cut(&mut self, file_system: &str, asked: &str, gate: Gate, right: bool) {
        let cuts = self.cuts.entry((file_system.into(), asked.into(), word(gate))).or_default();
        cuts.made += 1;
        cuts.wrong += u64::from(!right);
    }

    pub(super) fn refused(&mut self, file_system: &str, asked: &str, why: &str) {
        *self.refused.entry((file_system.into(), asked.into(), why.into())).or_default() += 1;
    }

    pub(super) fn done(&mut self, kinds: &[Kind], tally: &[Done]) {
        for (kind, done) in kinds.iter().zip(tally) {
            let all = self.done.entry(kind.name).or_default();
            all.done += done.done;
            all.refused += done.refused;
        }
    }

    /// Cuts that were looked at.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts.values().map(|c| c.made).sum()
    }

    /// Cuts on a file system, whatever the gate.
    #[must_use]
    pub fn cuts_on(&self, file_system: &str) -> u64 {
        self.cuts.iter().filter(|((fs, ..), _)| fs == file_system).map(|(_, c)| c.made).sum()
    }

    /// Cuts by a gate, whichever was asked for.
    #[must_use]
    pub fn cuts_by(&self, gate: Gate) -> u64 {
        self.cuts.iter().filter(|((.., used), _)| *used == word(gate)).map(|(_, c)| c.made).sum()
    }

    /// Operations of a kind that the kernel did.
    #[must_use]
    pub fn operations(&self, kind: &str) -> u64 {
        self.done.get(kind).map_or(0, |d| d.done)
    }

    /// Cuts that were refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// For machines.
    #[must_use]
    pub fn json(&self) -> Value {
        let cuts: Vec<Value> = (self.cuts.iter())
            .map(|((fs, asked, gate), c)| {
                json!({"fs": fs, "asked": asked, "gate": gate, "cuts": c.made, "violations": c.wrong})
            })
            .collect();
        let refusals: Vec<Value> = (self.refused.iter())
            .map(|((fs, asked, why), n)| json!({"fs": fs, "asked": asked, "why": why, "count": n}))
            .collect();
        let operations: BTreeMap<&str, Value> =
            self.done.iter().map(|(k, d)| (*k, json!({"done": d.done, "refused": d.refused}))).collect();
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "cuts": cuts,
            "frozen": self.whole,
            "tracker_misses": self.misses,
            "without_tracker": self.untracked,
            "refusals": refusals,
            "operations": operations,
            "violations": self.violations,
        })
    }

    /// The last line: numbers by name.
    #[must_use]
    pub fn last_line(&self) -> String {
        format!(
            "torture: {} cuts, {} violations, {} refusals, {} operations, {:.0} s, seed {}",
            self.cuts(),
            self.violations.len(),
            self.refusals(),
            self.done.values().map(|d| d.done).sum::<u64>(),
            self.took.as_secs_f64(),
            self.seed
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<8} {:<9} {:<9} {:>7} {:>11}", "fs", "asked", "gate", "cuts", "violations")?;
        for ((fs, asked, gate), c) in &self.cuts {
            writeln!(f, "{fs:<8} {asked:<9} {gate:<9} {:>7} {:>11}", c.made, c.wrong)?;
        }
        writeln!(f, "\n{} of the trees were frozen durably; {} tracker misses", self.whole, self.misses)?;
        for fs in &self.untracked {
            writeln!(f, "{fs}: no tracker on this host, cut with `--tracker none`")?;
        }
        if !self.refused.is_empty() {
            writeln!(f, "\nrefused (no violation: the container goes on as it was):")?;
        }
        for ((fs, asked, why), n) in &self.refused {
            writeln!(f, "{n:>7} {fs} {asked}: {why}")?;
        }
        writeln!(f, "\n{:<12} {:>10} {:>10}", "writer", "done", "refused")?;
        for (kind, d) in &self.done {
            writeln!(f, "{kind:<12} {:>10} {:>10}", d.done, d.refused)?;
        }
        Ok(())
    }
}
