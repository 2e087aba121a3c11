//! The report for people at a terminal.

use std::fmt::{self, Display, Formatter, Write};

use super::report::{Report, Series};
use crate::model::nanos::Nanos;
use crate::telemetry::Percentiles;

/// Bars of the histogram are no longer than this.
const BAR: u64 = 50;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let m = &self.machine;
        writeln!(f, "{}", self.command)?;
        writeln!(
            f,
            "Linux {} ({}), {} CPUs{} {}, {} GiB, cgroups {}, clock {}, load {}, took {}",
            m.kernel,
            m.architecture,
            m.cpus,
            if m.virtual_machine { " of a virtual machine," } else { "," },
            m.cpu,
            m.memory >> 30,
            m.cgroups,
            m.clocksource,
            m.load,
            self.took.human
        )?;
        let mut scene = None;
        for s in &self.series {
            if scene != Some(&s.scene) {
                scene = Some(&s.scene);
                head(f, s)?;
            }
            s.rows(f)?;
        }
        self.reasons(f)?;
        self.histograms(f)?;
        self.others(f)?;
        for m in &self.missed {
            writeln!(f, "not measured: {}: {}", m.what, m.why)?;
        }
        for g in &self.goals {
            let word = match g.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => {
                    writeln!(f, "goal not measured: {} (to reach: {})", g.what, g.reach)?;
                    continue;
                }
            };
            writeln!(f, "goal {word}: {}: {} (to reach: {})", g.what, g.measured, g.reach)?;
        }
        for v in &self.violations {
            writeln!(f, "VIOLATED: {v}")?;
        }
        Ok(())
    }
}

fn head(f: &mut Formatter<'_>, s: &Series) -> fmt::Result {
    let c = &s.scene;
    writeln!(
        f,
        "\n{} {}: {}, {} in {} files, {} tasks, {}{}",
        c.axis,
        c.label,
        c.file_system,
        size(c.upper_bytes),
        c.files,
        c.tasks,
        c.workload,
        s.tracker.map(|b| format!(", tracker {b}")).unwrap_or_default(),
    )?;
    writeln!(
        f,
        "{:<24} {:>5} {:>8} {:<14} {:>9} {:>9} {:>9} {:>9}",
        "CONTENDER", "MADE", "ATTEMPTS", "TIME", "P50", "P90", "P99", "MAX"
    )
}

impl Series {
    fn rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ours = self.gate.is_some();
        let rows: [(&str, &Option<Percentiles>); 5] = [
            (if ours { "window" } else { "command" }, &self.cuts.window),
            ("longest stop", &self.cuts.longest_stop),
            ("felt", &self.felt),
            ("quiet", &self.quiet),
            ("to the cut", if ours { &self.command } else { &None }),
        ];
        let mut first = true;
        for (what, p) in rows {
            let Some(p) = p else { continue };
            let head = if first {
                format!("{:<24} {:>5} {:>8}", self.contender, self.made, self.cuts.attempts)
            } else {
                " ".repeat(39)
            };
            first = false;
            writeln!(
                f,
                "{head} {what:<14} {:>9} {:>9} {:>9} {:>9}",
                p.p50.human, p.p90.human, p.p99.human, p.max.human
            )?;
        }
        if first {
            let why = self.cuts.given_up_because.as_deref().unwrap_or("interrupted");
            writeln!(f, "{:<24} {:>5} {:>8} none: {why}", self.contender, 0, self.cuts.given_up)?;
        }
        Ok(())
    }
}

impl Report {
    /// What lies behind the figures of a series: residual, agreement, attempts that came to nothing.
    fn reasons(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for s in self.series.iter().filter(|s| s.gate.is_some() && s.made > 0) {
            write!(
                f,
                "{} {}, {}: residual {} inodes {} (median), {} rounds",
                s.scene.axis,
                s.scene.label,
                s.contender,
                s.cuts.residual_inodes,
                size(s.cuts.residual_bytes),
                s.cuts.rounds
            )?;
            if let Some(copied) = s.copied_per_dirty {
                write!(f, ", {copied:.2} bytes copied a dirty byte")?;
            }
            if let Some(cpu) = &s.cpu {
                write!(f, ", CPU {} a cut", cpu.p50.human)?;
            }
            if let Some(first) = &s.first_cut {
                write!(f, ", first cut after {}", first.human)?;
            }
            writeln!(f)?;
            if let Some(a) = &s.agreement {
                writeln!(f, "    clocks {}: {}", a.judgement.text(), a.text())?;
            }
            if s.cuts.used.len() > 1 {
                let used: Vec<String> =
                    s.cuts.used.iter().map(|(gate, n)| format!("{n} by {gate}")).collect();
                writeln!(f, "    chose: {}", used.join(", "))?;
            }
            for a in &s.cuts.abandoned {
                writeln!(f, "    {:>6} attempts came to nothing ({}): {}", a.count, a.gate, a.reason)?;
            }
            if let (true, Some(why)) = (s.cuts.given_up > 0, &s.cuts.given_up_because) {
                writeln!(f, "    {} cuts were refused: {why}", s.cuts.given_up)?;
            }
        }
        Ok(())
    }

    /// All windows by the fence and by the freezer.
    fn histograms(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for gate in [crate::model::snapshot::Gate::Fence, crate::model::snapshot::Gate::Freezer] {
            let windows = self.series.iter().flat_map(|s| &s.windows);
            let times: Vec<u64> = windows.filter(|w| w.gate == Some(gate)).map(|w| w.window.0).collect();
            if !times.is_empty() {
                writeln!(f, "\nAll {} windows with the {gate}:\n{}", times.len(), histogram(&times))?;
            }
        }
        Ok(())
    }

    fn others(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for s in &self.slowdowns {
            writeln!(
                f,
                "{} on {}: {:.1} % of its speed while tracked, by its processor time; by the clock {} (median of {} pairs of slices)",
                s.load,
                s.file_system,
                s.ratio * 100.0,
                s.wall_ratio.map_or("not measured".into(), |ratio| format!("{:.1} %", ratio * 100.0)),
                s.tracked.len()
            )?;
        }
        for copy in &self.copies {
            copy.text(f)?;
        }
        Ok(())
    }
}

/// Bytes as people write them.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
            let gib = bytes as f64 / (1u64 << 30) as f64;
            format!("{gib:.1} GiB")
        }
    }
}

/// Bounds of a histogram, two to a doubling: 1000 ns * 2^(i/2). Integers keep the scale the same everywhere.
pub(super) fn bound(i: u32) -> u64 {
    if i.is_multiple_of(2) { 1_000 << (i / 2) } else { 1_414 << (i / 2) }
}

/// How many times lie below each bound and not below the one before, from the first that has some to the last.
pub(super) fn counts(times_ns: &[u64]) -> Vec<(u64, u64, u64)> {
    let bucket = |ns: u64| (0..60).find(|i| ns < bound(*i)).unwrap_or(60);
    let mut counts = vec![0u64; 61];
    for ns in times_ns {
        counts[bucket(*ns) as usize] += 1;
    }
    let first = counts.iter().position(|n| *n > 0).unwrap_or(0);
    let last = counts.iter().rposition(|n| *n > 0).map_or(0, |n| n + 1);
    let row = |(i, n): (usize, &u64)| {
        let i = u32::try_from(i).unwrap_or(0);
        (i.checked_sub(1).map_or(0, bound), bound(i), *n)
    };
    counts.iter().enumerate().take(last).skip(first).map(row).collect()
}

/// Bars over time on a logarithmic scale.
#[must_use]
pub fn histogram(times_ns: &[u64]) -> String {
    let counts = counts(times_ns);
    let Some(most) = counts.iter().map(|(_, _, n)| *n).max() else { return String::from("  none\n") };
    let mut text = String::new();
    for (from, to, n) in counts {
        let bar = "#".repeat(usize::try_from((n * BAR).div_ceil(most)).unwrap_or(0));
        let row = format!("  {:>8} .. {:<8} {n:>4} {bar}", Nanos(from).to_string(), Nanos(to).to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_counts_every_window_once() {
        let text = histogram(&[500, 1_000, 1_413, 1_414, 3_000, 3_000]);
        let counts: Vec<u64> =
            text.lines().map(|l| l.split_whitespace().nth(3).unwrap().parse().unwrap()).collect();
        assert_eq!(counts, [1, 2, 1, 0, 2]);
        assert!(text.starts_with("       0ns .. 1.0us"), "{text}");
        assert_eq!(histogram(&[]), "  none\n");
    }

    #[test]
    fn sizes_are_rounded() {
        assert_eq!([0, 1025, 5 << 20, 3 << 29].map(size), ["0 B", "2 KiB", "5 MiB", "1.5 GiB"]);
    }
}
