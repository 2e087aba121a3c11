//! `bench pause`: the third clock in a real container, and the command from the outside.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapshot_engine::bench::ticker::Ticker;
use snapshot_engine::container::cgroup;
use snapshot_engine::demo::TickMode;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::model::nanos::Nanos;
use snapshot_tests::bench::{self, Disk, Running, eventually, root};
use snapshot_tests::engine::binary;
use snapshot_tests::host::processes;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");

/// Everything of a tree that a look at it can change: content aside, times, sizes and numbers of every inode.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u64, u64, [i64; 6])> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).chain([dir.clone()]) {
            let m = fs::symlink_metadata(&path).unwrap();
            if m.is_dir() && path != dir {
                dirs.push(path.clone());
            }
            // Not the times of access: this very listing changes them.
            let times = [
                m.mtime(),
                m.mtime_nsec(),
                m.ctime(),
                m.ctime_nsec(),
                m.nlink().cast_signed(),
                m.mode().into(),
            ];
            all.insert(path, (m.ino(), m.len(), times));
        }
    }
    all
}

/// One at a time: a ticker takes a processor for itself, and two would take all that a small machine has.
static TURN: Mutex<()> = Mutex::new(());

fn scene() -> (MutexGuard<'static, ()>, Disk, Running) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = Disk::new("ext4").unwrap();
    let demo = Running::start(INIT, &disk, "idle".parse().unwrap()).unwrap();
    (turn, disk, demo)
}

/// The longest gap that overlaps what was done.
fn felt(ticker: &mut Ticker, act: impl FnOnce()) -> Option<(Nanos, u64)> {
    let from = Nanos(now());
    act();
    let to = Nanos(now());
    ticker.catch_up(to).unwrap();
    ticker.felt(from, to, from).map(|gap| (gap.length(), gap.switches))
}

#[test]
fn the_ticker_is_in_every_cgroup_of_the_container_and_feels_its_freezers() {
    if !root() {
        return;
    }
    let (_turn, _disk, demo) = scene();
    let target = demo.target().unwrap();
    let mut ticker = Ticker::start(Some(Path::new(INIT)), &target).unwrap();
    assert_eq!(cgroup::all_of(ticker.pid()).unwrap(), cgroup::all_of(target.init).unwrap());
    assert!(cgroup::all_of(target.init).unwrap().contains(&demo.cgroup().unwrap()));
    ticker.set(Some(TickMode::Spin)).unwrap();
    let hold = Duration::from_millis(40);
    let mut freezers = vec![(demo.cgroup().unwrap().join("cgroup.freeze"), "1", "0")];
    if let Some(v1) = &target.cgroup.freezer_v1 {
        freezers.push((v1.join("freezer.state"), "FROZEN", "THAWED"));
    }
    for (control, freeze, thaw) in freezers {
        let gap = felt(&mut ticker, || {
            fs::write(&control, freeze).unwrap();
            std::thread::sleep(hold);
            fs::write(&control, thaw).unwrap();
        });
        let (gap, _) = gap.expect("a freeze that is not felt");
        assert!(gap.as_duration() > hold / 2, "{}: {gap}", control.display());
    }
    let pid = ticker.pid();
    drop(ticker);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_ticker_that_calls_is_held_by_the_fence_and_changes_nothing() {
    if !root() {
        return;
    }
    let (_turn, _disk, demo) = scene();
    let target = demo.target().unwrap();
    let before = tree(&demo.upper());
    let mut ticker = Ticker::start(Some(Path::new(INIT)), &target).unwrap();
    let tracker = bench::tracker(&[&target]).unwrap();
    let entered = tracker.live().stamp().entered;
    let fence = Duration::from_millis(10);
    let raise = || {
        tracker.live().raise_fence(now() + u64::try_from(fence.as_nanos()).unwrap());
        std::thread::sleep(fence);
        tracker.live().lower_fence();
    };
    ticker.set(Some(TickMode::Call)).unwrap();
    let (gap, _) = felt(&mut ticker, raise).expect("a fence that is not felt");
    assert!(gap.as_duration() > fence / 2, "{gap}");
    assert!(tracker.live().stamp().entered > entered, "its calls are not counted");
    // Whoever only computes goes on. A busy machine may take its processor away at any time: it is enough that one fence went by unfelt.
    ticker.set(Some(TickMode::Spin)).unwrap();
    eventually("a ticker that makes no call is held by the fence", || {
        felt(&mut ticker, raise).is_none_or(|(gap, _)| gap.as_duration() < fence / 2)
    });
    drop(ticker);
    assert_eq!(tree(&demo.upper()), before);
}

#[test]
fn a_paused_container_is_refused() {
    if !root() {
        return;
    }
    let (_turn, _disk, demo) = scene();
    fs::write(demo.cgroup().unwrap().join("cgroup.freeze"), "1").unwrap();
    eventually("frozen", || demo.frozen());
    let error = Ticker::start(Some(Path::new(INIT)), &demo.target().unwrap()).unwrap_err();
    assert!(error.to_string().contains("paused"), "{error}");
}

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(["bench", "pause"]).args(args).output().unwrap()
}

#[test]
fn the_command_reports_every_window_as_json_csv_and_html() {
    if !root() {
        return;
    }
    let (_turn, disk, demo) = scene();
    let work = disk.path().join("work");
    let files = ["json", "csv", "html"].map(|kind| disk.path().join(format!("pause.{kind}")));
    let [json, csv, html] = files.each_ref().map(|f| f.to_str().unwrap());
    // Generous: the point is what is reported, not how fast a busy machine is.
    let output = run(&[
        "--container",
        demo.0.name(),
        "--windows",
        "3",
        "--max-pause",
        "100ms",
        "--work-dir",
        work.to_str().unwrap(),
        "--json",
        json,
        "--csv",
        csv,
        "--html",
        html,
        "--output",
        "json",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report, serde_json::from_slice::<serde_json::Value>(&fs::read(json).unwrap()).unwrap());
    assert_eq!((&report["schema"], &report["version"]), (&"snapshot-engine/bench-pause".into(), &1.into()));
    assert_eq!(report["violations"], serde_json::json!([]));
    let series = report["series"].as_array().unwrap();
    let contenders: Vec<&str> = series.iter().map(|s| s["contender"].as_str().unwrap()).collect();
    assert_eq!(contenders, ["none", "fence", "freezer", "auto", "cgroup.freeze"]);
    for s in series {
        assert_eq!(s["made"], 3, "{s:#}");
        for w in s["windows"].as_array().unwrap() {
            assert!(w["felt_ns"].is_u64() && w["sham_ns"].is_u64(), "{w:#}");
            assert!(w["up_at_ns"].as_u64().unwrap() <= w["down_at_ns"].as_u64().unwrap());
            assert_eq!(w["clocks"].is_string(), s["gate"].is_string(), "{w:#}");
        }
    }
    assert_eq!(series[0]["window"]["max"]["ns"], 0, "gate none stops nobody");
    assert!(series[2]["felt"]["p50"]["ns"].as_u64().unwrap() > 0, "nobody feels the freezer");
    let lines: Vec<String> = fs::read_to_string(csv).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 1 + 5 * 3);
    assert!(lines.iter().all(|l| l.split(',').count() == lines[0].split(',').count()));
    let page = fs::read_to_string(html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(
        page.matches("<svg").count() >= 2 && page.matches("<svg").count() == page.matches("</svg>").count()
    );
    assert!(!page.contains("http") && !page.contains("<script"));
    assert!(fs::read_dir(&work).unwrap().next().is_none(), "something is left in the work directory");
    assert!(!demo.frozen());
}

#[test]
fn the_ticker_does_not_outlive_a_killed_engine() {
    if !root() {
        return;
    }
    let (_turn, disk, demo) = scene();
    let mut engine = Command::new(binary())
        .args(["bench", "pause", "--quiet", "--windows", "100000", "--gate", "none", "--no-freeze"])
        .args(["--container", demo.0.name(), "--work-dir"])
        .arg(disk.path().join("work"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let inmate = format!("__bench-inmate tick {} {}", demo.0.init().unwrap(), engine.id());
    eventually("the ticker begins", || !processes(&inmate).is_empty());
    engine.kill().unwrap();
    engine.wait().unwrap();
    eventually("the ticker ends with the engine", || processes(&inmate).is_empty());
}

#[test]
fn what_cannot_be_measured_is_refused_with_its_exit_code() {
    for (args, code) in [
        (&["--container", "no-such-container"][..], 3),
        (&["--container", "x", "--windows", "0"], 2),
        (&["--container", "x", "--gate", "wall"], 2),
        (&[], 2),
    ] {
        assert_eq!(run(args).status.code(), Some(code), "{args:?}");
    }
}
