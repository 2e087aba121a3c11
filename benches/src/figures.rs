//! The figures of a benchmark, for people and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The figures of one benchmark: printed as they come, and written as JSON at its end.
///
/// A figure in JSON: `{"name", "unit", "samples", "p50", "p90", "p99", "max"}`; the numbers are in the unit. A ratio has only `name`, `ratio` and
/// `wanted`, the bound it is held against. Names are stable.
#[derive(Debug, Default)]
pub struct Figures {
    all: Vec<Value>,
}

impl Figures {
    /// Takes down samples, and returns their median.
    pub fn add(&mut self, name: &str, unit: &str, mut samples: Vec<f64>) -> f64 {
        if samples.is_empty() {
            println!("{name:<58} no sample");
            self.all.push(json!({ "name": name, "unit": unit, "samples": 0 }));
            return f64::NAN;
        }
        samples.sort_by(f64::total_cmp);
        let at = |q: f64| samples[((samples.len() - 1) as f64 * q).round() as usize];
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
        println!(
            "{name:<58} {p50:>10.2} {unit} (p90 {p90:.2}, p99 {p99:.2}, max {max:.2}, n {})",
            samples.len()
        );
        self.all.push(json!({
            "name": name, "unit": unit, "samples": samples.len(), "p50": p50, "p90": p90, "p99": p99, "max": max,
        }));
        p50
    }

    /// Takes down a ratio of two figures of this run; `wanted` is the bound, as text.
    pub fn ratio(&mut self, name: &str, ratio: f64, wanted: &str) {
        println!("{name:<58} {ratio:>10.3} (wanted: {wanted})");
        self.all.push(json!({ "name": name, "ratio": ratio, "wanted": wanted }));
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let text = json!({ "version": 1, "kernel": kernel.trim(), "cpus": cpus, "figures": self.all });
        fs::write(path, serde_json::to_string_pretty(&text)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("Results: {}", path.display());
        Ok(())
    }
}
