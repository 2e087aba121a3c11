//! What file systems without tracepoints need beside the operation tests of `tracker.rs`: mappings on tmpfs (T4), and writers whom nobody waits for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use snapshot_engine::demo::Workload;
use snapshot_engine::model::dirty::{Ino, Watch};
use snapshot_engine::track::Tracker;
use snapshot_tests::bench::{self, Disk, Running, clean, eventually};
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");

fn ino(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// T4 on tmpfs, where no store is ever an event: a mapped file is dirty at each look, and once more when the mapping is gone. Breaks without the
/// look for MAPPED in `Tracker::take`, and without `vma_interval_tree_insert` in `track::functions`.
#[test]
fn t4_a_mapped_file_on_tmpfs_is_always_dirty() {
    if !bench::root() {
        return;
    }
    let disk = Disk::new("tmpfs").unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let Some(mut tracker) = bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap() else { return };
    let mut worker = Worker::start(WORKER, &demo).unwrap();
    worker.ask("write /srv/map 0 8192 1").unwrap();
    let path = demo.upper().join("srv/map");
    let file = File::open(&path).unwrap();
    tracker.watch(Ino(ino(&path)), 8192).unwrap();
    clean(&mut tracker);
    let dirty = |tracker: &mut Tracker| tracker.take().iter().any(|d| d.ino.0 == ino(&path) && d.whole);
    for again in 0..2 {
        worker.ask("map /srv/map 8192").unwrap();
        assert!(dirty(&mut tracker), "{again}: the mapping was not noticed");
        assert!(tracker.probe(file.as_fd(), false).mapped, "{again}: the probe says it is not mapped");
        for store in 0..3 {
            worker.ask(&format!("store /srv/map 4096 {store}")).unwrap();
            assert!(dirty(&mut tracker), "{again}: store {store} would be lost");
            assert!(tracker.probe(file.as_fd(), false).mapped);
        }
        worker.ask("store /srv/map 0 9").unwrap();
        worker.ask("unmap /srv/map").unwrap();
        assert!(dirty(&mut tracker), "{again}: the last stores would be lost");
        assert!(!tracker.probe(file.as_fd(), false).mapped, "{again}: nobody maps it any more");
        clean(&mut tracker);
    }
}

/// A writer outside the container is not waited for: whatever the tracker is asked between his call's beginning and its end, there is an event
/// after the bytes. Breaks without `folio_mark_dirty` and the exits in `track::functions`.
#[test]
fn an_outside_writer_leaves_an_event_behind_his_bytes() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let disk = Disk::new(kind).unwrap();
        let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
        let Some(mut tracker) = bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap() else {
            continue;
        };
        let path = demo.upper().join("srv/outside");
        let file = File::create_new(&path).unwrap();
        tracker.watch(Ino(ino(&path)), 8 << 20).unwrap();
        for byte in 1..20u8 {
            // One call, long enough that the looks fall into it.
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| file.write_all_at(&vec![byte; 4 << 20], 0).unwrap());
                while !writer.is_finished() {
                    // What is read after a take that the writer's last event followed is complete.
                    drop(tracker.take());
                    let seen = fs::read(&path).unwrap();
                    if seen.len() == 4 << 20 && seen.iter().all(|b| *b == byte) {
                        break;
                    }
                    // Not all there yet: then an event is still to come.
                    writer_done(&writer);
                    let dirty = tracker.take().iter().any(|d| d.ino.0 == ino(&path));
                    assert!(dirty, "{kind}: bytes landed behind the last event");
                }
            });
        }
    }
}

fn writer_done<T>(writer: &std::thread::ScopedJoinHandle<'_, T>) {
    eventually("the writer ends", || writer.is_finished());
}
