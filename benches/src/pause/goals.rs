//! What the pause is to reach, and whether it did in this run. A missed goal is reported; it fails nothing.

use snapshot_engine::bench::clocks::Judgement;
use snapshot_engine::bench::copies::{Copy, ENGINE};
use snapshot_engine::bench::report::{Goal, Report, Series, Slowdown};
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::snapshot::Gate;
use snapshot_engine::telemetry::Percentiles;

use super::copying::CP;

/// The judgement of a goal: what was measured, and whether that is enough. `None`: it could not be measured.
type Judged = Option<(String, bool)>;

fn on<'a>(
    report: &'a Report,
    axis: &'a str,
    label: &'a str,
    contender: &'a str,
) -> impl Iterator<Item = &'a Series> {
    report.series.iter().filter(move |s| {
        s.scene.axis == axis
            && (label.is_empty() || s.scene.label == label)
            && s.contender == contender
            && s.made > 0
    })
}

/// The fence on the base container.
#[must_use]
pub fn base_fence(report: &Report) -> Option<&Series> {
    on(report, "file system", "ext4", "fence").next()
}

/// A goal is missed where no cut of a workload could be made at all.
fn no_cut(report: &Report, label: &str, contender: &str) -> Judged {
    let of = |s: &&Series| {
        s.scene.axis == "workload"
            && s.scene.label == label
            && s.contender == contender
            && s.cuts.given_up > 0
    };
    let s = report.series.iter().find(of)?;
    Some((format!("no cut of {}: {}", s.cuts.given_up, s.cuts.given_up_because.as_deref()?), false))
}

fn p50(series: &Series) -> u64 {
    series.cuts.window.as_ref().map_or(0, |w| w.p50.ns)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

/// All goals. `bare` is what a bare read of the base container's residual costs.
#[must_use]
pub fn judge(report: &Report, bare: Option<Nanos>) -> Vec<Goal> {
    let goal = |what: &str, reach: &str, judged: Judged| {
        let (measured, met) = judged.map_or(("not measured".into(), None), |(m, met)| (m, Some(met)));
        Goal { what: what.into(), reach: reach.into(), measured, met }
    };
    vec![
        goal(
            "fence, light writers",
            "p50 <= 8 us, p99 <= 30 us, max <= the budget",
            fence(on(report, "workload", "light", "fence").next().or_else(|| base_fence(report)))
                .or_else(|| no_cut(report, "light", "fence")),
        ),
        goal(
            "fence, medium writers (4 processes of random pwrites)",
            "p50 <= 8 us, p99 <= 30 us, max <= the budget",
            fence(on(report, "workload", "random pwrites", "fence").next())
                .or_else(|| no_cut(report, "random pwrites", "fence")),
        ),
        goal("growth with the upper's bytes, fence", "p50 within 1.5x", growth(report, "upper", 1.5)),
        goal("growth with the upper's files, fence", "p50 within 1.5x", growth(report, "files", 1.5)),
        goal("growth with tasks, fence", "p50 within 2x", growth(report, "tasks", 2.0)),
        goal(
            "fence against raw cgroup.freeze, 500 tasks",
            "p50 <= 1/100",
            against(
                on(report, "tasks", "500", "fence").next(),
                on(report, "tasks", "500", "cgroup.freeze").next(),
                100,
            ),
        ),
        goal("idle container", "pause 0, and nothing felt that is not felt in quiet", idle(report)),
        goal("fence against runc pause; resume", "p50 <= 1/300", peer(report, "runc", "pause", 300)),
        goal(
            "fence against docker commit, 1 GiB",
            "p50 <= 1/100,000",
            peer(report, "docker", "commit", 100_000),
        ),
        goal(
            "freezer, up to 10 tasks",
            "p50 <= 40 us, window <= 1.5x raw freeze and thaw plus capture",
            freezer(report),
        ),
        goal("mmap writers, freezer", "p99 <= 500 us with at most 64 dirty pages", mmap(report)),
        goal(
            "flat-out writers on every core, auto",
            "budget kept, every cut within 1 s",
            flat_out(report).or_else(|| no_cut(report, "flat-out", "auto")),
        ),
        goal(
            "inner efficiency, fence",
            "window <= 3x (null window + bare read of the same residual)",
            inner(report, bare),
        ),
        goal("the tracked container's own throughput", ">= 97 % of untracked, each load", throughput(report)),
        goal(
            "command to cut, 1 GiB in 1000 files, ext4",
            "<= 1.2x cp -a",
            to_cut(report, "ext4", against_cp),
        ),
        goal(
            "command to cut, 1 GiB in 1000 files, with reflink (XFS)",
            "<= 0.2 s",
            to_cut(report, "xfs", within(Nanos(200_000_000))),
        ),
    ]
}

fn fence(series: Option<&Series>) -> Judged {
    let s = series?;
    let (w, budget) = (s.cuts.window.as_ref()?, s.max_pause.as_ref()?);
    let met = w.p50.ns <= 8_000 && w.p99.ns <= 30_000 && w.max.ns <= budget.ns;
    let text = format!("p50 {}, p99 {}, max {} of {} windows", w.p50.human, w.p99.human, w.max.human, s.made);
    Some((text, met))
}

fn growth(report: &Report, axis: &str, most: f64) -> Judged {
    let points: Vec<(&str, u64)> = on(report, axis, "", "fence")
        .filter(|s| s.scene.file_system == "ext4")
        .map(|s| (s.scene.label.as_str(), p50(s)))
        .collect();
    // From the axis' first point on: to get smaller is no growth.
    let low = points.first()?.1;
    let high = points.iter().map(|(_, n)| *n).max()?;
    if points.len() < 2 {
        return None;
    }
    let all: Vec<String> = points.iter().map(|(label, n)| format!("{label}: {}", Nanos(*n))).collect();
    Some((format!("{:.2}x ({})", ratio(high, low), all.join(", ")), ratio(high, low) <= most))
}

/// A fence's median window as a part of what a rival's container felt.
fn against(fence: Option<&Series>, rival: Option<&Series>, part: u64) -> Judged {
    let (ours, stops) = (p50(fence?), rival?.stops());
    let theirs = Percentiles::of(&stops)?.p50.ns;
    Some((
        format!("1/{:.0} ({} against {})", ratio(theirs, ours), Nanos(ours), Nanos(theirs)),
        ours * part <= theirs,
    ))
}

/// The same with a peer's operation whose name has these words, on the peer's own container with the largest upper.
fn peer(report: &Report, who: &str, what: &str, part: u64) -> Judged {
    let theirs = report
        .series
        .iter()
        .filter(|s| s.gate.is_none() && s.made > 0)
        .filter(|s| s.contender.contains(who) && s.contender.contains(what))
        .max_by_key(|s| s.scene.upper_bytes)?;
    let ours = report.series.iter().find(|s| s.scene == theirs.scene && s.contender == "fence");
    against(ours.filter(|s| s.made > 0), Some(theirs), part)
}

fn idle(report: &Report) -> Judged {
    let s = on(report, "workload", "idle", "none").next()?;
    let (w, felt, quiet) = (s.cuts.window.as_ref()?, s.felt.as_ref()?, s.quiet.as_ref()?);
    let agreement = s.agreement.as_ref()?;
    let only_none = s.cuts.used.keys().all(|g| *g == Gate::None);
    let text = format!(
        "pause {}; felt p50 {}, p99 {}, max {}; in quiet p50 {}, p99 {}, max {}; {}",
        w.max.human,
        felt.p50.human,
        felt.p99.human,
        felt.max.human,
        quiet.p50.human,
        quiet.p99.human,
        quiet.max.human,
        agreement.text()
    );
    Some((text, w.max.ns == 0 && only_none && agreement.judgement == Judgement::Agree))
}

fn freezer(report: &Report) -> Judged {
    let mut all = Vec::new();
    let mut met = true;
    for label in ["1", "10"] {
        let Some(ours) = on(report, "tasks", label, "freezer").next() else { continue };
        let raw = on(report, "tasks", label, "cgroup.freeze").next()?;
        let capture = ours.cuts.capture.as_ref()?.p50.ns;
        let times = ratio(p50(ours), p50(raw) + capture);
        met &= p50(ours) <= 40_000 && times <= 1.5;
        all.push(format!(
            "{label} tasks: p50 {}, {times:.2}x of {} plus {}",
            Nanos(p50(ours)),
            Nanos(p50(raw)),
            Nanos(capture)
        ));
    }
    (!all.is_empty()).then(|| (all.join("; "), met))
}

fn mmap(report: &Report) -> Judged {
    let s = on(report, "workload", "mmap", "freezer").next()?;
    let w = s.cuts.window.as_ref()?;
    Some((format!("p50 {}, p99 {}", w.p50.human, w.p99.human), w.p99.ns <= 500_000))
}

fn flat_out(report: &Report) -> Judged {
    let s = on(report, "workload", "flat-out", "auto").next()?;
    let (w, command, budget) = (s.cuts.window.as_ref()?, s.command.as_ref()?, s.max_pause.as_ref()?);
    let met = w.max.ns <= budget.ns && command.max.ns <= 1_000_000_000 && s.cuts.given_up == 0;
    let text = format!(
        "window max {} of {}; cut after p50 {}, max {}; {} of {} cuts refused",
        w.max.human,
        budget.human,
        command.p50.human,
        command.max.human,
        s.cuts.given_up,
        s.cuts.given_up + s.made
    );
    Some((text, met))
}

fn inner(report: &Report, bare: Option<Nanos>) -> Judged {
    let null = p50(on(report, "workload", "idle", "fence").next()?);
    let (ours, bare) = (p50(base_fence(report)?), bare?.0);
    let times = ratio(ours, null + bare);
    Some((format!("{times:.2}x ({} against {} + {})", Nanos(ours), Nanos(null), Nanos(bare)), times <= 3.0))
}

/// Each load on each file system by itself; the missed ones are named first.
fn throughput(report: &Report) -> Judged {
    let (met, missed): (Vec<_>, Vec<_>) = report.slowdowns.iter().partition(|s| s.ratio >= 0.97);
    let list = |of: &[&Slowdown]| {
        let one = |s: &&Slowdown| format!("{} on {} {:.1} %", s.load, s.file_system, s.ratio * 100.0);
        of.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    match (met.is_empty(), missed.is_empty()) {
        (true, true) => None,
        (false, true) => Some((list(&met), true)),
        (true, false) => Some((format!("missed: {}", list(&missed)), false)),
        (false, false) => Some((format!("missed: {}; reached: {}", list(&missed), list(&met)), false)),
    }
}

/// Each state that the tree can be in, and each must reach it.
fn to_cut(report: &Report, kind: &str, one: impl Fn(&Copy) -> Judged) -> Judged {
    let copies = report.copies.iter().filter(|c| c.file_system == kind);
    let judged: Vec<(String, bool)> = copies
        .map(|c| {
            one(c).map(|(text, met)| (format!("{text} {}", c.tree.split(", ").last().unwrap_or("")), met))
        })
        .collect::<Option<_>>()?;
    let all: Vec<&str> = judged.iter().map(|(text, _)| text.as_str()).collect();
    (!all.is_empty()).then(|| (all.join(", "), judged.iter().all(|(_, met)| *met)))
}

fn against_cp(copy: &Copy) -> Judged {
    let (ours, theirs) = (copy.took(ENGINE)?, copy.took(CP)?);
    let times = ratio(ours.0, theirs.0);
    Some((format!("{times:.2}x ({ours} against {theirs})"), times <= 1.2))
}

fn within(most: Nanos) -> impl Fn(&Copy) -> Judged {
    move |copy| copy.took(ENGINE).map(|ours| (ours.to_string(), ours <= most))
}

#[cfg(test)]
mod tests {
    use snapshot_engine::bench::pause::blank;
    use snapshot_engine::bench::report::{Scene, Window};
    use snapshot_engine::model::options::GateChoice;

    use super::*;

    fn series(axis: &str, label: &str, contender: &str, windows_ns: &[u64]) -> Series {
        let gate: Option<GateChoice> = contender.parse().ok();
        let window = |ns: &u64| Window {
            gate: gate.map(|_| Gate::Fence),
            window: Nanos(*ns),
            felt: Some(Nanos(*ns)),
            ..Window::default()
        };
        let scene =
            Scene { axis: axis.into(), label: label.into(), file_system: "ext4".into(), ..Scene::default() };
        let mut s = Series::new(scene, contender.into(), gate, windows_ns.iter().map(window).collect());
        s.max_pause = Some(Nanos(1_000_000).into());
        s
    }

    fn met(report: &Report, what: &str) -> Option<bool> {
        judge(report, None).into_iter().find(|g| g.what.starts_with(what)).and_then(|g| g.met)
    }

    #[test]
    fn nothing_measured_is_no_goal_met() {
        assert!(judge(&blank(String::new()), None).iter().all(|g| g.met.is_none()));
    }

    #[test]
    fn figures_decide() {
        let mut report = blank(String::new());
        report.series = vec![
            series("workload", "light", "fence", &[7_000, 8_000, 8_000]),
            series("workload", "random pwrites", "fence", &[7_000, 9_000, 9_000]),
            series("tasks", "1", "fence", &[5_000]),
            series("tasks", "500", "fence", &[9_900]),
            series("tasks", "500", "cgroup.freeze", &[990_000]),
            series("upper", "1 MiB", "fence", &[5_000]),
            series("upper", "4 GiB", "fence", &[7_600]),
        ];
        report.slowdowns.push(Slowdown {
            load: String::new(),
            file_system: "ext4".into(),
            tracked: vec![],
            untracked: vec![],
            ratio: 0.969,
            wall_ratio: None,
        });
        assert_eq!(met(&report, "fence, light"), Some(true));
        assert_eq!(met(&report, "fence, medium"), Some(false));
        assert_eq!(met(&report, "growth with tasks"), Some(true));
        assert_eq!(met(&report, "flat-out"), None);
        let mut refused = series("workload", "flat-out", "auto", &[]);
        (refused.cuts.given_up, refused.cuts.given_up_because) = (3, Some("busy".into()));
        report.series.push(refused);
        assert_eq!(met(&report, "flat-out"), Some(false));
        assert_eq!(met(&report, "growth with the upper's bytes"), Some(false));
        assert_eq!(met(&report, "growth with the upper's files"), None);
        assert_eq!(met(&report, "fence against raw"), Some(true));
        assert_eq!(met(&report, "the tracked container's"), Some(false));
        let copy = |kind: &str, ours: u64| Copy {
            file_system: kind.into(),
            times: [(ENGINE, ours), (CP, 100)]
                .map(|(who, ms)| (who.to_owned(), vec![Nanos(ms * 1_000_000).into()]))
                .into(),
            ..Copy::default()
        };
        report.copies = vec![copy("ext4", 119), copy("xfs", 199)];
        assert_eq!(met(&report, "command to cut, 1 GiB in 1000 files, ext4"), Some(true));
        report.copies.extend([copy("ext4", 121), copy("xfs", 201)]);
        assert_eq!(met(&report, "command to cut, 1 GiB in 1000 files, ext4"), Some(false));
        assert_eq!(met(&report, "command to cut, 1 GiB in 1000 files, with reflink"), Some(false));
    }
}
