//! SIGINT, SIGTERM and SIGHUP at any moment of a commit: an orderly end, its exit code, and nothing left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshot_engine::demo::Seed;
use snapshot_engine::demo::content::noise;
use snapshot_tests::engine::{self, Started, engine};
use snapshot_tests::host;
use snapshot_tests::root_or_skip;
use snapshot_tests::running::Running;

use super::{INIT, times};

fn random(n: u64, below: Duration) -> Duration {
    let n = u64::from_le_bytes(noise(n, 8).try_into().unwrap());
    Duration::from_micros(n % u64::try_from(below.as_micros()).unwrap().max(1))
}

/// Whether there is a snapshot: its record is written when the cut is durable.
fn recorded(work: &Path) -> bool {
    let snapshots = fs::read_dir(work.join("snapshot-engine/snapshots")).into_iter().flatten().flatten();
    snapshots.into_iter().any(|snapshot| snapshot.path().join("record.json").exists())
}

/// Spread over the length of a commit, by every way to make a cut; every third time twice in a row.
#[test]
fn signals_end_a_commit_in_order_in_every_stage() {
    if !root_or_skip() {
        return;
    }
    let programs = host::programs();
    let demo =
        Running::start(INIT, "signals", "write-tick,log:light", Seed { files: 60, bytes: 8 << 20 }).unwrap();
    let work = tempfile::Builder::new().prefix("snapshot-signals-").tempdir().unwrap();
    let text = work.path().to_string_lossy().into_owned();
    let mut tag = 0;
    let mut start = |way: &[&str]| {
        tag += 1;
        let target = format!("oci:{}:t{tag}", work.path().join("layout").display());
        let mut command = engine(["commit", demo.name(), &target, "--work-dir", &text, "--wait"]);
        Started::new(command.args(way)).unwrap()
    };
    let ways: [&[&str]; 3] = [
        &["--max-pause", "50ms"],
        &["--gate", "freezer", "--max-pause", "100ms"],
        &["--tracker", "none", "--max-pause", "5s"],
    ];
    let mut spans = Vec::new();
    for way in ways {
        let began = Instant::now();
        start(way).end().unwrap();
        spans.push(began.elapsed());
    }
    let (mut before, mut after, mut late, mut refused) = (0, 0, 0, 0);
    for n in 0..times("SNAPSHOT_SIGNALS", 15) {
        let way = n as usize % ways.len();
        let signal = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP][(n / 3) as usize % 3];
        let mut run = start(ways[way]);
        if n % 5 == 4 {
            // As soon as there is a snapshot: its image is in the making.
            while !recorded(work.path()) && run.runs().unwrap() {
                std::thread::sleep(Duration::from_micros(200));
            }
        } else {
            std::thread::sleep(random(u64::from(n), spans[way]));
        }
        let pid = Pid::from_raw(run.pid().cast_signed());
        let _ = kill(pid, signal);
        if n.is_multiple_of(3) {
            let _ = kill(pid, signal);
        }
        let sent = Instant::now();
        let ended = run.end().unwrap();
        assert!(sent.elapsed() < Duration::from_secs(5), "it takes {:?} to end", sent.elapsed());
        let listed = engine::list(work.path()).unwrap();
        match ended.code {
            Some(code) if code == 128 + signal as i32 => {
                *if listed.is_empty() { &mut before } else { &mut after } += 1;
            }
            // Before the handler is there the signal does what it always does.
            None => before += 1,
            Some(0) => late += 1,
            Some(1) if ended.stderr.contains("--max-pause") || ended.stderr.contains("budget") => {
                refused += 1
            }
            _ => panic!("{signal}: {ended:#?}"),
        }
        demo.goes_on().unwrap();
        assert!(!demo.frozen().unwrap());
        host::must_be_clean(&programs, work.path()).unwrap();
        for snapshot in listed {
            let id = snapshot["snapshot_id"].as_str().unwrap();
            let done = snapshot["state"] == "completed";
            assert!(done || snapshot["interrupted"] == true, "{snapshot:#}");
            engine::run(["resume", id, "--wait", "--work-dir", &text]).unwrap().must_succeed().unwrap();
            engine::run(["remove", id, "--work-dir", &text]).unwrap().must_succeed().unwrap();
        }
    }
    println!(
        "ended before the cut {before}, after it {after}, too late {late}, refused for the budget {refused}"
    );
    assert!(before > 0 && after > 0, "one sided");
    start(ways[0]).end().unwrap().must_succeed().unwrap();
    let left = fs::read_dir(work.path().join("snapshot-engine/snapshots")).unwrap().count();
    assert_eq!(left, 1, "something is left beside the last snapshot");
}
