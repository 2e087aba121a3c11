//! `demo`, from the outside: containers from the command line, a small run of the whole engine, and what a run leaves when it is stopped.
//! Needs root, BPF, and a file system below the target directory that can hold an upperdir.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test file; clippy knows only #[test] functions as tests"
)]

use snapshot_tests::engine::binary;
use snapshot_tests::root_or_skip;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {complaint}"))
}

/// Beside the program: `/tmp` may be a tmpfs, which cannot hold every upperdir.
fn place() -> tempfile::TempDir {
    let target = binary().parent().unwrap();
    tempfile::Builder::new().prefix("showcase-").tempdir_in(target).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether a demo of this run is still known.
fn demos_of(pid: u32) -> bool {
    let all = json(&run(&["demo", "list", "--output", "json"]));
    let name = format!("run-{pid}-");
    all["demos"].as_array().unwrap().iter().any(|d| d["name"].as_str().unwrap().starts_with(&name))
}

#[test]
fn a_demo_is_started_listed_asked_and_stopped() {
    if !root_or_skip() {
        return;
    }
    let place = place();
    let name = format!("cli-{}", std::process::id());
    let layers = place.path().to_str().unwrap();
    let start = ["demo", "start", &name, "--workload", "tick", "--layers-root", layers, "--output", "json"];
    let started = json(&run(&start));
    assert_eq!(started["running"], true);
    assert_eq!(started["pids"].as_array().unwrap().len(), 2);
    assert!(Path::new(started["upper"].as_str().unwrap()).is_dir());
    assert_eq!(run(&start).status.code(), Some(1), "the name is taken");
    std::thread::sleep(Duration::from_millis(50));
    let ticks = json(&run(&["demo", "ticks", &name, "--output", "json"]));
    assert!(ticks["tickers"][0]["count"].as_u64().unwrap() > 0);
    assert!(run(&["demo", "stop", &name]).status.success());
    assert_eq!(run(&["demo", "ticks", &name]).status.code(), Some(3));
    assert_eq!(run(&["demo", "stop", &name]).status.code(), Some(3));
    assert_eq!(run(&["demo", "stop", "../etc"]).status.code(), Some(2));
    assert!(names(place.path()).is_empty());
}

#[test]
fn a_small_run_holds_and_leaves_only_its_results() {
    if !root_or_skip() {
        return;
    }
    let place = place();
    let dir = place.path().to_str().unwrap();
    // A development build on a busy machine: the point is what is reported, not how fast it was.
    let output = run(&[
        "demo",
        "run",
        "--windows",
        "3",
        "--max-pause",
        "100ms",
        "--work-dir",
        dir,
        "--output",
        "json",
    ]);
    let report = json(&output);
    assert_eq!(report["failures"], serde_json::json!([]), "{report:#}");
    assert!(output.status.success());
    assert_eq!((&report["version"], &report["held"]), (&1.into(), &true.into()));
    let gates: Vec<&str> =
        report["gates"].as_array().unwrap().iter().map(|g| g["gate"].as_str().unwrap()).collect();
    assert_eq!(gates, ["fence", "freezer", "auto", "none"]);
    for gate in report["gates"].as_array().unwrap() {
        assert_eq!(gate["windows"], 3, "{gate:#}");
        assert_eq!(gate["samples"].as_array().unwrap().len(), 3);
        assert_eq!(gate["tracker_misses"], 0);
    }
    assert_eq!(report["gates"][3]["window"]["max"]["ns"], 0, "gate none stops nobody");
    assert!(report["cgroup_freeze"]["tasks"].as_u64().unwrap() > 100);
    assert_eq!(report["comparison"]["identical"], true);
    assert!(report["comparison"]["entries"].as_u64().unwrap() > 300);
    assert_eq!(names(place.path()), ["image", "run.json"]);
    let written: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path().join("run.json")).unwrap()).unwrap();
    assert_eq!(written, report);
}

#[test]
fn a_run_that_is_stopped_or_killed_leaves_nothing_for_long() {
    if !root_or_skip() {
        return;
    }
    let place = place();
    let begin = || {
        let child = Command::new(binary())
            .args(["demo", "run", "--windows", "100000", "--quiet", "--work-dir"])
            .arg(place.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // Until the first session is open.
        let shadow = place.path().join(format!("run-{}/shadow", child.id()));
        while !shadow.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(demos_of(child.id()));
        child
    };
    let mut stopped = begin();
    let pid = rustix::process::Pid::from_child(&stopped);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(stopped.wait().unwrap().code(), Some(143));
    assert!(!demos_of(stopped.id()));
    assert!(names(place.path()).iter().all(|n| !n.starts_with("run-")), "{:?}", names(place.path()));

    let mut killed = begin();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(demos_of(killed.id()), "containers outlive whoever started them");
    let dir = place.path().to_str().unwrap();
    // The next run sweeps; whether its own cuts hold is another test's business.
    let _ = run(&["demo", "run", "--windows", "1", "--max-pause", "100ms", "--work-dir", dir, "--quiet"]);
    assert!(!demos_of(killed.id()));
    assert_eq!(names(place.path()), ["image", "run.json"]);
}
