//! T4: between the event of a page fault and the mark by which write-back finds the page, cleaning does nothing. The planted slowness makes that moment a millisecond long.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use snapshot_ebpf::{FAULT_NO_GRACE, FAULT_SLOW_FAULTS};
use snapshot_engine::demo::Workload;
use snapshot_engine::kernel::scheduling::RealTime;
use snapshot_engine::kernel::writeback::sync_range;
use snapshot_engine::model::dirty::{Ino, Watch};
use snapshot_engine::track::{Scope, Tracker};
use snapshot_tests::bench::{self, Disk, Running, clean};
use snapshot_tests::worker::Worker;

/// Does what a round does with a mapped file, as soon as it hears of a store to a clean page; so many times. Whether a store was neither read nor dirty afterwards.
fn lost(kind: &str, fault: u32, times: u64) -> bool {
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(env!("CARGO_BIN_EXE_demo-init"), &disk, Workload::idle()).unwrap();
    let scope = bench::scope(&[&demo.target().unwrap()], 0).unwrap();
    let mut tracker = Tracker::start(&Scope { fault, ..scope }).unwrap();
    let mut worker = Worker::start(env!("CARGO_BIN_EXE_worker"), &demo).unwrap();
    // Large enough for a bit a page.
    worker.ask("map /srv/map 65536").unwrap();
    worker.ask("store /srv/map 0 1").unwrap();
    let file = File::open(demo.upper().join("srv/map")).unwrap();
    let stat = file.metadata().unwrap();
    tracker.watch(Ino(stat.ino()), stat.len()).unwrap();
    // It must be there within the millisecond, whoever else wants the processors.
    let _priority = RealTime::raise();
    for round in 2..2 + times {
        file.sync_all().unwrap();
        clean(&mut tracker);
        worker.tell(&format!("store /srv/map 0 {round}")).unwrap();
        let told = Instant::now();
        let of_content = |tracker: &mut Tracker| {
            let dirty = tracker.take();
            dirty
                .iter()
                .any(|d| d.ino.0 == stat.ino() && (d.whole || d.ranges.iter().any(|r| r.contains(&0))))
        };
        while !of_content(&mut tracker) {
            assert!(told.elapsed() < Duration::from_secs(10), "{kind}: no event");
        }
        // On XFS the fault has told of the page before, too (`iomap_iter`).
        let first = Instant::now();
        while first.elapsed() < Duration::from_micros(100) {
            let _ = of_content(&mut tracker);
        }
        assert!(tracker.settle());
        let probe = tracker.probe(file.as_fd(), false);
        assert!(probe.mapped);
        sync_range(file.as_fd(), 0..stat.len()).unwrap();
        let mut read = [0; 8];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(worker.answer(Duration::from_secs(10)).unwrap().is_some());
        let again = of_content(&mut tracker) || probe.direct_io;
        if u64::from_ne_bytes(read) != round && !again {
            return true;
        }
    }
    false
}

#[test]
fn t4_a_store_whose_page_fault_is_under_way_is_not_lost() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        assert!(!lost(kind, FAULT_SLOW_FAULTS, 20), "{kind}");
        // The proof that this can fail.
        assert!(lost(kind, FAULT_NO_GRACE, 500), "{kind}: not waiting for page faults was not found out");
    }
}
