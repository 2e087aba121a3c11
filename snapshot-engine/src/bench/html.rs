//! The report as one page that needs nothing else: no script, no font, no picture from anywhere.

use std::fmt::Write;

use super::chart::{self, Curve, colour, escape};
use super::clocks::Judgement;
use super::report::{Report, Series};
use super::style::STYLE;
use super::text::size;
use crate::model::nanos::{Nanos, Span};
use crate::model::snapshot::Gate;
use crate::telemetry::Percentiles;

impl Report {
    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>Pause of {}</title><style>{STYLE}</style></head><body>\n",
            escape(&self.command)
        );
        self.top(&mut out);
        self.goal_table(&mut out);
        let scenes = self.scenes();
        if scenes.len() > 1 {
            overview(&mut out, &scenes);
        }
        for scene in &scenes {
            one_scene(&mut out, scene);
        }
        self.histograms_of_gates(&mut out);
        self.own_work(&mut out);
        self.machine_table(&mut out);
        self.missing(&mut out);
        out.push_str("</body></html>\n");
        out
    }

    /// Series by scene, in their order.
    fn scenes(&self) -> Vec<Vec<&Series>> {
        let mut scenes: Vec<Vec<&Series>> = Vec::new();
        for s in &self.series {
            match scenes.iter_mut().find(|all| all[0].scene == s.scene) {
                Some(all) => all.push(s),
                None => scenes.push(vec![s]),
            }
        }
        scenes
    }

    fn windows_by(&self, gate: Gate) -> Vec<u64> {
        let windows = self.series.iter().flat_map(|s| &s.windows);
        windows.filter(|w| w.gate == Some(gate)).map(|w| w.window.0).collect()
    }

    fn top(&self, out: &mut String) {
        let m = &self.machine;
        let _ = write!(
            out,
            "<h1>How long the container stood still</h1><p class=\"soft\"><code>{}</code> on Linux {}, {} CPUs, took {}</p><div class=\"cards\">",
            escape(&self.command),
            escape(&m.kernel),
            m.cpus,
            self.took.human
        );
        for gate in Gate::ALL {
            let times: Vec<Nanos> = self.windows_by(gate).into_iter().map(Nanos).collect();
            if let Some(p) = Percentiles::of(&times) {
                let _ = write!(
                    out,
                    "<div class=\"card\"><span>{gate}, {} windows</span><b>{}</b><span>p50 &middot; p99 {} &middot; max {}</span></div>",
                    times.len(),
                    p.p50.human,
                    p.p99.human,
                    p.max.human
                );
            }
        }
        let met = self.goals.iter().filter(|g| g.met == Some(true)).count();
        let known = self.goals.iter().filter(|g| g.met.is_some()).count();
        if known > 0 {
            let _ = write!(
                out,
                "<div class=\"card\"><span>goals</span><b>{met} of {known}</b><span>met</span></div>"
            );
        }
        let word = if self.violations.is_empty() { "kept" } else { "BROKEN" };
        let _ = write!(
            out,
            "<div class=\"card\"><span>promises</span><b>{word}</b><span>budget, thaw, no change missed</span></div></div>"
        );
        for v in &self.violations {
            let _ = write!(out, "<p class=\"missed\">{}</p>", escape(v));
        }
    }

    fn goal_table(&self, out: &mut String) {
        if self.goals.is_empty() {
            return;
        }
        out.push_str("<h2>What it is to reach</h2><table class=\"goals\"><tr><th class=\"l\">goal</th><th class=\"l\">to reach</th><th class=\"l\">reached</th><th></th></tr>");
        for g in &self.goals {
            let (class, word) = match g.met {
                Some(true) => ("met", "met"),
                Some(false) => ("missed", "MISSED"),
                None => ("soft", "not measured"),
            };
            let _ = write!(
                out,
                "<tr><td class=\"l w\">{}</td><td class=\"l w\">{}</td><td class=\"l w\">{}</td><td class=\"{class}\">{word}</td></tr>",
                escape(&g.what),
                escape(&g.reach),
                // The last column says it.
                g.met.map_or_else(String::new, |_| escape(&g.measured))
            );
        }
        out.push_str("</table>");
    }

    fn histograms_of_gates(&self, out: &mut String) {
        out.push_str("<h2>All windows</h2>");
        for (n, gate) in [Gate::Fence, Gate::Freezer].into_iter().enumerate() {
            let times = self.windows_by(gate);
            if !times.is_empty() {
                let title = format!("{} windows with the {gate}", times.len());
                let _ = write!(out, "<h3>{title}</h3>{}", chart::histogram(&title, &times, colour(n)));
            }
        }
    }

    fn own_work(&self, out: &mut String) {
        if !self.slowdowns.is_empty() {
            out.push_str("<h2>The container's own work while tracked</h2><table><tr><th class=\"l\">load</th><th class=\"l\">file system</th><th>pairs of slices</th><th>speed, of untracked</th><th>by the clock</th></tr>");
            for s in &self.slowdowns {
                let _ = write!(
                    out,
                    "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td><td>{}</td><td>{:.1} %</td><td>{}</td></tr>",
                    escape(&s.load),
                    escape(&s.file_system),
                    s.tracked.len(),
                    s.ratio * 100.0,
                    s.wall_ratio.map_or(String::new(), |ratio| format!("{:.1} %", ratio * 100.0))
                );
            }
            out.push_str("</table>");
        }
        if !self.copies.is_empty() {
            out.push_str("<h2>From the command to the cut, against others who copy</h2><p class=\"soft\">In turn, each with the same memory free. MB/s: of the engine, its base copy.</p>");
        }
        for copy in &self.copies {
            copy.html(out);
        }
    }

    fn machine_table(&self, out: &mut String) {
        let m = &self.machine;
        out.push_str("<h2>Machine</h2><table>");
        for (name, value) in [
            ("kernel", format!("Linux {} ({})", m.kernel, m.architecture)),
            (
                "processors",
                format!(
                    "{} x {}{}",
                    m.cpus,
                    m.cpu,
                    if m.virtual_machine { ", a virtual machine" } else { "" }
                ),
            ),
            ("memory", size(m.memory)),
            ("cgroups", m.cgroups.to_owned()),
            ("clock source", m.clocksource.clone()),
            ("load averages at the start", m.load.clone()),
            ("snapshot-engine", m.engine.to_owned()),
        ] {
            let _ =
                write!(out, "<tr><th class=\"l\">{name}</th><td class=\"l w\">{}</td></tr>", escape(&value));
        }
        out.push_str("</table>");
    }

    fn missing(&self, out: &mut String) {
        if self.missed.is_empty() {
            return;
        }
        out.push_str("<h2>Not measured</h2><table>");
        for m in &self.missed {
            let _ = write!(
                out,
                "<tr><th class=\"l\">{}</th><td class=\"l w\">{}</td></tr>",
                escape(&m.what),
                escape(&m.why)
            );
        }
        out.push_str("</table>");
    }
}

/// All scenes in one table: the stops of each contender, p50 and p99.
fn overview(out: &mut String, scenes: &[Vec<&Series>]) {
    let mut names: Vec<&str> = Vec::new();
    for s in scenes.iter().flatten() {
        if !names.contains(&s.contender.as_str()) {
            names.push(&s.contender);
        }
    }
    out.push_str(
        "<h2>All containers</h2><p class=\"soft\">p50 / p99 of the stops: the gates' windows, and what others' containers felt.</p>\
         <div class=\"scroll\"><table><tr><th class=\"l\">varied</th><th class=\"l\">container</th>",
    );
    for name in &names {
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    out.push_str("</tr>");
    for scene in scenes {
        let c = &scene[0].scene;
        let _ = write!(
            out,
            "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td>",
            escape(&c.axis),
            escape(&c.label)
        );
        for name in &names {
            let series = scene.iter().find(|s| s.contender == *name);
            let cell = match series.map(|s| (s, Percentiles::of(&s.stops()))) {
                Some((_, Some(p))) => format!("{} / {}", p.p50.human, p.p99.human),
                Some((s, None)) => format!("none in {}", s.cuts.given_up),
                None => String::new(),
            };
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

fn one_scene(out: &mut String, all: &[&Series]) {
    let c = &all[0].scene;
    let _ = write!(
        out,
        "<h2>{}: {}</h2><p class=\"soft\">{}, {} in {} files, {} tasks, {}{}</p>",
        escape(&c.axis),
        escape(&c.label),
        escape(&c.file_system),
        size(c.upper_bytes),
        c.files,
        c.tasks,
        escape(&c.workload),
        all.iter().find_map(|s| s.tracker).map(|b| format!(", tracker: {b}")).unwrap_or_default()
    );
    let shown: Vec<&&Series> = all.iter().filter(|s| s.made > 0).collect();
    let curves: Vec<Curve> =
        shown.iter().map(|s| Curve { name: s.contender.clone(), times: s.stops() }).collect();
    let rivals = shown.iter().any(|s| s.gate.is_none());
    out.push_str("<div class=\"key\">");
    for (n, curve) in curves.iter().enumerate() {
        let _ = write!(out, "<span><i style=\"background:{}\"></i>{}</span>", colour(n), escape(&curve.name));
    }
    out.push_str("</div>");
    out.push_str(&chart::percentiles("Percentile over pause", &curves));
    out.push_str("<p class=\"soft\">Percentile over pause; further left is better. What stopped nobody lies on the left edge.</p>");
    if rivals {
        out.push_str("<p class=\"soft\">Gates by the engine's window; the others by the gap their container felt. Half of the stops, and the longest:</p>");
        let rows: Vec<(String, Nanos, Nanos)> = curves
            .iter()
            .filter_map(|c| {
                let p = Percentiles::of(&c.times)?;
                Some((c.name.clone(), Nanos(p.p50.ns), Nanos(p.max.ns)))
            })
            .collect();
        out.push_str(&chart::bars("Pauses compared", &rows));
    }
    clocks(out, &shown);
    behind(out, all);
}

fn triple(p: Option<&Percentiles>) -> String {
    let cell = |s: &Span| format!("<td>{}</td>", s.human);
    p.map_or_else(
        || "<td></td><td></td><td></td>".to_owned(),
        |p| cell(&p.p50) + &cell(&p.p99) + &cell(&p.max),
    )
}

fn clocks(out: &mut String, shown: &[&&Series]) {
    out.push_str(
        "<h3>Three clocks</h3><div class=\"scroll\"><table><tr><th class=\"l\"></th><th colspan=\"3\">engine: window</th><th colspan=\"3\">kernel: longest stop</th>\
         <th colspan=\"3\">ticker: felt</th><th colspan=\"3\">ticker: quiet</th></tr><tr><th class=\"l\">contender</th>",
    );
    for _ in 0..4 {
        out.push_str("<th>p50</th><th>p99</th><th>max</th>");
    }
    out.push_str("</tr>");
    for s in shown {
        let _ = write!(
            out,
            "<tr><td class=\"l\">{}</td>{}{}{}{}</tr>",
            escape(&s.contender),
            triple(s.cuts.window.as_ref().filter(|_| s.gate.is_some())),
            triple(s.cuts.longest_stop.as_ref()),
            triple(s.felt.as_ref()),
            triple(s.quiet.as_ref())
        );
    }
    out.push_str("</table></div>");
    for s in shown {
        if let Some(a) = &s.agreement {
            let _ = write!(
                out,
                "<p class=\"soft\"><b class=\"{}\">{}: clocks {}</b>. {}. Rule: {}.</p>",
                if a.judgement == Judgement::Disagree { "missed" } else { "met" },
                escape(&s.contender),
                a.judgement.text(),
                escape(&a.text()),
                escape(a.rule)
            );
        }
    }
}

/// What lies behind the figures.
fn behind(out: &mut String, all: &[&Series]) {
    out.push_str(
        "<details><summary>Behind the figures</summary><div class=\"scroll\"><table><tr><th class=\"l\">contender</th><th>made</th><th>attempts</th><th>budget</th>\
         <th>residual</th><th>drain p50</th><th>capture p50</th><th>rounds</th><th>copied / dirty</th><th>CPU a cut</th><th>to the cut</th><th>first cut</th></tr>",
    );
    let p50 = |p: &Option<Percentiles>| p.as_ref().map(|p| p.p50.human.clone()).unwrap_or_default();
    for s in all {
        let _ = write!(
            out,
            "<tr><td class=\"l\">{}</td><td>{} of {}</td><td>{}</td><td>{}</td><td>{} inodes, {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&s.contender),
            s.made,
            s.wanted,
            s.cuts.attempts,
            s.max_pause.as_ref().map(|p| p.human.clone()).unwrap_or_default(),
            s.cuts.residual_inodes,
            size(s.cuts.residual_bytes),
            p50(&s.cuts.drain),
            p50(&s.cuts.capture),
            s.cuts.rounds,
            s.copied_per_dirty.map(|c| format!("{c:.2}")).unwrap_or_default(),
            p50(&s.cpu),
            p50(&s.command),
            s.first_cut.as_ref().map(|c| c.human.clone()).unwrap_or_default()
        );
    }
    out.push_str("</table></div>");
    for s in all {
        for a in &s.cuts.abandoned {
            let _ = write!(
                out,
                "<p class=\"soft\">{}: {} attempts came to nothing ({}): {}</p>",
                escape(&s.contender),
                a.count,
                a.gate,
                escape(&a.reason)
            );
        }
        if let Some(why) = &s.cuts.given_up_because {
            let _ = write!(
                out,
                "<p class=\"soft\">{}: {} could not be made: {}</p>",
                escape(&s.contender),
                s.cuts.given_up,
                escape(why)
            );
        }
    }
    out.push_str("</details>");
}

#[cfg(test)]
mod tests {
    use super::super::pause::blank;
    use super::super::report::{Goal, Missed, Scene, Window};
    use super::*;

    #[test]
    fn the_page_needs_nothing_and_obeys_nobody() {
        let mut report = blank("bench <script>alert(1)</script>".into());
        let scene = Scene { label: "a<b>".into(), ..Scene::default() };
        let window = Window { gate: Some(Gate::Fence), window: Nanos(5_000), ..Window::default() };
        report.series.push(Series::new(scene, "fence".into(), Some("fence".parse().unwrap()), vec![window]));
        report.missed.push(Missed { what: "podman".into(), why: "not <installed>".into() });
        report.goals.push(Goal {
            what: "x".into(),
            reach: "<= 1".into(),
            measured: "2".into(),
            met: Some(false),
        });
        let page = report.html();
        assert!(page.contains("MISSED") && page.contains("not &lt;installed&gt;") && page.contains("5.0us"));
        for never in ["<script", "http://", "https://", "src=", "@import", "url(", "NaN", "<b>a"] {
            assert!(!page.contains(never), "{never}");
        }
    }
}
