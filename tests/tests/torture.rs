//! The short part of the torture harness: cuts on ext4 and XFS with every gate while writers of every kind are at work, each frozen tree checked (G1);
//! and the proof that the checker is sharp: planted faults are found. The long run is `cargo xtask torture`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::path::Path;
use std::time::Duration;

use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::model::options::GateChoice;
use snapshot_tests::bench;
use snapshot_tests::torture::post::Post;
use snapshot_tests::torture::report::Report;
use snapshot_tests::torture::run::{Options, Plant, run};
use snapshot_tests::torture::writer::kinds;
use snapshot_tests::torture::writers;

fn options() -> Options {
    Options::new(Path::new(env!("CARGO_BIN_EXE_torture")))
}

fn go(options: &Options) -> Report {
    let report = run(options, &mut |line| println!("{line}")).unwrap();
    println!("{report}{}", report.last_line());
    report
}

/// T4, G1: stores through mappings, among writers who do all that leaves a mapped page clean, dirty, under write-back or gone. Page faults that take a millisecond from their
/// event to what it tells of show what a processor that is held up just there would.
#[test]
fn t4_stores_through_mappings_are_in_the_cut() {
    if !bench::root() {
        return;
    }
    for slow_faults in [false, true] {
        mapped(slow_faults);
    }
}

fn mapped(slow_faults: bool) {
    let among = "write,append,sync,direct,transfer,truncate,fallocate,create,remove,rename,link,flush,flags,xattr,uring,sqpoll,mmap";
    let report = go(&Options {
        seed: 772,
        cuts: 120,
        time: Duration::from_secs(60),
        slow_faults,
        kinds: kinds(if slow_faults { "create,write,flush,mmap" } else { among }).unwrap(),
        file_systems: vec!["ext4".into(), "xfs".into()],
        gates: vec![GateChoice::Auto, GateChoice::Freezer],
        threads: 2,
        posts: vec![Post::Chroot],
        ..options()
    });
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.operations("mmap") > 0);
}

/// G1, under everything that the harness can do.
#[test]
fn g1_every_cut_is_one_instant_under_every_kind_of_writer() {
    if !bench::root() {
        return;
    }
    // Every kind has had its turn once all cuts are made; a busy machine takes minutes for them.
    let time = Duration::from_secs(480);
    let report = go(&Options { seed: 3, cuts: 240, session: 5, time, ..options() });
    assert_eq!(report.violations, Vec::<String>::new());
    for fs in ["ext4", "xfs"] {
        assert!(report.cuts_on(fs) >= 20, "{fs}: {} cuts", report.cuts_on(fs));
    }
    for gate in [Gate::None, Gate::Fence, Gate::Freezer] {
        assert!(report.cuts_by(gate) > 0, "no cut by {gate:?}");
    }
    for kind in writers::ALL {
        assert!(report.operations(kind.name) > 0, "{} has done nothing", kind.name);
    }
}

/// T5: without a tracker.
#[test]
fn t5_cuts_without_a_tracker_are_one_instant() {
    if !bench::root() {
        return;
    }
    let file_systems = vec!["btrfs".to_owned(), "tmpfs".to_owned()];
    let report = go(&Options { seed: 4, cuts: 24, threads: 2, file_systems, ..options() });
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.cuts_on("btrfs") > 0 && report.cuts_on("tmpfs") > 0);
}

/// A fault is found within 200 cuts, with writers to whom everything is promised.
fn found(plant: Plant, file_systems: &[&str], writers: &str, gates: &[GateChoice], threads: u64) {
    if !bench::root() {
        return;
    }
    let report = go(&Options {
        seed: 5,
        cuts: 200,
        kinds: kinds(writers).unwrap(),
        file_systems: file_systems.iter().map(|fs| (*fs).to_owned()).collect(),
        gates: gates.to_vec(),
        threads,
        posts: vec![Post::Inside],
        plant: Some(plant),
        ..options()
    });
    assert!(!report.violations.is_empty(), "{plant:?} was not found in {} cuts", report.cuts());
}

#[test]
fn a_tracker_that_does_not_settle_is_found_out() {
    // A hole is announced, then dirty pages are written, then it is there: long enough to read what was. XFS would keep readers waiting.
    found(Plant::NoSettle, &["ext4"], "create,write,fallocate", &[GateChoice::Freezer, GateChoice::Auto], 4);
}

#[test]
fn dropped_events_are_found_out() {
    // An attribute is one event; most other operations are several, and any of them will do.
    found(Plant::DropEvents, &["ext4"], "create,xattr", &[GateChoice::Freezer, GateChoice::Auto], 4);
}

#[test]
fn an_engine_that_ignores_mappings_is_found_out() {
    found(Plant::IgnoreMmap, &["ext4"], "mmap", &[GateChoice::Auto], 2);
}

#[test]
fn a_copy_made_before_the_gate_is_up_is_found_out() {
    found(Plant::EarlyRead, &["ext4"], "", &[GateChoice::Freezer], 4);
}

#[test]
fn calls_that_are_not_counted_are_found_out() {
    found(Plant::NoCount, &["ext4"], "create,write", &[GateChoice::None, GateChoice::Auto], 2);
}
