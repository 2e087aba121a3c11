//! The report for people.

use std::fmt::{self, Display, Formatter, Write};

use super::report::{GateReport, Report};
use crate::bench::text::histogram;
use crate::model::options::GateChoice;
use crate::telemetry::Percentiles;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}, {} CPUs, container load {}", self.kernel, self.cpus, self.workload)?;
        writeln!(
            f,
            "{} cuts by each gate at random moments; by `none` on an idle container, by the others under that load\n",
            self.windows
        )?;
        self.table(f)?;
        self.abandoned(f)?;
        if let Some(fence) = self.gates.iter().find(|g| g.gate == GateChoice::Fence) {
            writeln!(f, "\nWindows with the fence:")?;
            let windows: Vec<u64> = fence.samples.iter().map(|s| s.window_ns.0).collect();
            f.write_str(&histogram(&windows))?;
        }
        self.freezes(f)?;
        self.ticks(f)?;
        self.result(f)
    }
}

impl Report {
    fn table(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:>5} {:>8} {:<12} {:>9} {:>9} {:>9} {:>9}   BUDGET, RESIDUAL (MEDIAN)",
            "GATE", "CUTS", "ATTEMPTS", "TIME", "P50", "P90", "P99", "MAX"
        )?;
        for g in &self.gates {
            let rows: [(&str, &Option<Percentiles>); 4] = [
                ("window", &g.cuts.window),
                ("longest stop", &g.cuts.longest_stop),
                ("drain", &g.cuts.drain),
                ("capture", &g.cuts.capture),
            ];
            for (i, (what, p)) in rows.into_iter().enumerate() {
                let Some(p) = p else { continue };
                let (head, tail) = if i == 0 {
                    (head(g), format!("{}, {}", g.max_pause.human, residual(g)))
                } else {
                    (" ".repeat(23), String::new())
                };
                let row = format!(
                    "{head} {what:<12} {:>9} {:>9} {:>9} {:>9}   {tail}",
                    p.p50.human, p.p90.human, p.p99.human, p.max.human
                );
                writeln!(f, "{}", row.trim_end())?;
            }
            if g.cuts.window.is_none() {
                writeln!(
                    f,
                    "{} no cut: {}",
                    head(g),
                    g.cuts.given_up_because.as_deref().unwrap_or("interrupted")
                )?;
            }
        }
        Ok(())
    }

    fn abandoned(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for g in &self.gates {
            if let Some(why) = &g.cuts.given_up_because
                && g.cuts.window.is_some()
            {
                writeln!(f, "\n{} cuts with gate {} were refused: {why}", g.cuts.given_up, g.gate)?;
            }
            let used: Vec<String> = g.cuts.used.iter().map(|(gate, n)| format!("{n} by {gate}")).collect();
            if g.gate == GateChoice::Auto && !used.is_empty() {
                writeln!(f, "\nauto chose: {}", used.join(", "))?;
            }
            if !g.cuts.abandoned.is_empty() {
                writeln!(f, "\nAttempts abandoned with gate {}:", g.gate)?;
                for a in &g.cuts.abandoned {
                    let with =
                        if g.gate == GateChoice::Auto { format!(" ({})", a.gate) } else { String::new() };
                    writeln!(f, "  {:>6}  {}{with}", a.count, a.reason)?;
                }
                if let Some(stop) = &g.cuts.abandoned_stop {
                    writeln!(
                        f,
                        "          their gate was up for {} (p50) to {} (max)",
                        stop.p50.human, stop.max.human
                    )?;
                }
            }
        }
        Ok(())
    }

    fn freezes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(c) = &self.cgroup_freeze else { return Ok(()) };
        writeln!(
            f,
            "\nA cgroup.freeze round trip of {} tasks, {} times: p50 {}, p99 {}, max {}",
            c.tasks, c.round_trips, c.round_trip.p50.human, c.round_trip.p99.human, c.round_trip.max.human
        )?;
        if let Some(part) = self.fence_part {
            writeln!(
                f,
                "A fence window is {part:.3} of it (p50 to p50): {:.0} times shorter",
                1.0 / part.max(1e-9)
            )?;
        }
        Ok(())
    }

    fn ticks(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let loaded = || self.gates.iter().filter(|g| !g.ticks.is_empty());
        if loaded().next().is_none() {
            return Ok(());
        }
        writeln!(
            f,
            "\nGaps between ticks inside the container, while it is cut and in an equal time without the engine:"
        )?;
        writeln!(
            f,
            "{:<8} {:<7} {:>8}  {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9}",
            "GATE", "TICKER", "TIME", "CUT P50", "P99", "MAX", "QUIET P50", "P99", "MAX"
        )?;
        for g in loaded() {
            for t in &g.ticks {
                writeln!(
                    f,
                    "{:<8} {:<7} {:>8}  {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9}",
                    g.gate.to_string(),
                    format!("{:?}", t.mode).to_lowercase(),
                    g.took.human,
                    t.during.p50.human,
                    t.during.p99.human,
                    t.during.max.human,
                    t.quiet.p50.human,
                    t.quiet.p99.human,
                    t.quiet.max.human,
                )?;
            }
        }
        Ok(())
    }

    fn result(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(i) = &self.image {
            writeln!(f, "\nImage: {} ({})", i.target, i.manifest)?;
            writeln!(
                f,
                "  {} entries, {} KiB of content, {} KiB stored; gate {}, pause {}, frozen after {}, image after another {}",
                i.entries,
                i.content_bytes >> 10,
                i.stored_bytes >> 10,
                i.gate,
                i.pause.human,
                i.cut_time.human,
                i.image_time.human
            )?;
        }
        if let Some(c) = &self.comparison {
            if c.identical {
                writeln!(
                    f,
                    "The image, mounted by the kernel's EROFS, and the frozen upperdir over its lowers: identical: {} entries, {} KiB of content",
                    c.entries,
                    c.bytes >> 10
                )?;
            } else {
                writeln!(f, "The image differs from the frozen upperdir over its lowers:")?;
                for d in &c.differences {
                    writeln!(f, "  {d}")?;
                }
            }
        }
        f.write_char('\n')?;
        for goal in &self.goals {
            writeln!(f, "goal {}: {}", if goal.met { "met" } else { "MISSED" }, goal.what)?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        if self.held {
            writeln!(f, "Everything held.")?;
        }
        writeln!(f, "Results: {}", self.results.display())?;
        if let Some(kept) = &self.kept {
            writeln!(f, "Kept: {}; its containers are in `snapshot-engine demo list`", kept.display())?;
        }
        Ok(())
    }
}

fn head(g: &GateReport) -> String {
    format!("{:<8} {:>5} {:>8}", g.gate.to_string(), g.windows, g.cuts.attempts)
}

fn residual(g: &GateReport) -> String {
    let kib = g.cuts.residual_bytes.div_ceil(1 << 10);
    format!("{} inodes, {kib} KiB, {} rounds", g.cuts.residual_inodes, g.cuts.rounds)
}
