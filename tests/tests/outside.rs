//! G1 for writers outside the container: they are seen and not held, and yet no cut falls into the middle of one of their writes.
//!
//! The writer shares its CPU with somebody who computes, at the lowest priority, so that it spends nearly all of its time in the middle of a
//! call, off its CPU, raising no event. On ext4 that breaks without `join` in the programs: about every second tree then holds half a write.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use snapshot_engine::demo::Workload;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_tests::bench::{self, Disk, Running};

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
/// One write, in many pages.
const LEN: usize = 64 << 20;
/// Writes differ from the last ones before them by their byte.
const BYTES: u64 = 3;

/// A thread that works for the outsider, and one that keeps its CPU busy.
struct Outsider {
    stop: Arc<AtomicBool>,
    /// What has ended.
    ended: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Outsider {
    /// Calls `act` with 1, 2 .. and rests for `rest` after each, until it says false.
    fn start(rest: Duration, mut act: impl FnMut(u64) -> bool + Send + 'static) -> Outsider {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicU64::new(0));
        let hog = {
            let stop = Arc::clone(&stop);
            move || {
                here();
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            }
        };
        let writer = {
            let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
            move || {
                here();
                setpriority_process(Some(gettid()), 19).unwrap();
                for n in 1u64.. {
                    if stop.load(SeqCst) || !act(n) {
                        return;
                    }
                    ended.store(n, SeqCst);
                    std::thread::sleep(rest);
                }
            }
        };
        Outsider { stop, ended, threads: vec![std::thread::spawn(hog), std::thread::spawn(writer)] }
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Both on one CPU.
fn here() {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).unwrap();
}

fn trees(kind: &str, wanted: u32) {
    if !bench::root() {
        return;
    }
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let path = demo.root().unwrap().join("outside.bin");
    File::create(&path).unwrap().write_all_at(&vec![0; LEN], 0).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    // Made before, so that from here on there is nothing to do but to write.
    let buffers: Vec<Vec<u8>> = (0..BYTES).map(|n| vec![n as u8; LEN]).collect();
    // It rests as long as a write takes, so that a cut finds it in the middle as often as between two.
    let outsider = Outsider::start(Duration::from_millis(300), move |n| {
        file.write_all_at(&buffers[(n % BYTES) as usize], 0).unwrap();
        true
    });
    let began = Instant::now();
    let (mut judged, mut refused, mut tried) = (0, 0, 0usize);
    while judged < wanted {
        assert!(began.elapsed() < Duration::from_secs(240), "{judged} trees, {refused} refusals");
        let choice = [GateChoice::Fence, GateChoice::None, GateChoice::Auto, GateChoice::Freezer][tried % 4];
        tried += 1;
        let work = disk.path().join("engine");
        let mut session = bench::session(demo.target().unwrap(), &work, bench::policy(choice), 0)
            .unwrap_or_else(|e| panic!("{e:#?}"));
        let before = outsider.ended.load(SeqCst);
        if session.cut(&Quiet).is_err() {
            refused += 1;
            continue;
        }
        let after = outsider.ended.load(SeqCst);
        let frozen = disk.path().join("frozen");
        session.freeze(&frozen, &Quiet).unwrap();
        let bytes = fs::read(frozen.join("outside.bin")).unwrap();
        fs::remove_dir_all(&frozen).unwrap();
        assert_eq!(bytes.len(), LEN);
        let other = bytes.iter().position(|b| *b != bytes[0]);
        assert_eq!(other, None, "{kind}, {choice:?}: half a write: {} and then another", bytes[0]);
        // What had ended is there, and what began after the cut is not.
        let fits = (before..=after + 1).any(|n| (n % BYTES) as u8 == bytes[0]);
        assert!(
            fits,
            "{kind}, {choice:?}: {} when {before} writes had ended before and {after} after",
            bytes[0]
        );
        judged += 1;
    }
    println!("{kind}: {judged} trees, {refused} refusals, {:.1?}", began.elapsed());
}

#[test]
fn g1_no_cut_falls_into_an_outsiders_write_on_ext4() {
    trees("ext4", 6);
}

#[test]
fn g1_no_cut_falls_into_an_outsiders_write_on_xfs() {
    // Here reading waits for the writer, who holds the inode: whatever is read is whole.
    trees("xfs", 3);
}

/// Space that is taken out of the middle of files, put in, punched and zeroed. The only event that tells of the content comes at the beginning, so a round that
/// reads the file in the middle of the call must not be the last to read it. Found by the torture harness; breaks without `join` for these calls.
fn space(kind: &str) {
    if !bench::root() {
        return;
    }
    const FILES: u64 = 24;
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let dir = demo.root().unwrap();
    let content: Vec<u8> = (0..8u32 << 20).map(|at| (at >> 12) as u8).collect();
    for n in 1..=FILES {
        fs::write(dir.join(format!("space-{n}")), &content).unwrap();
    }
    let mut session = bench::session(
        demo.target().unwrap(),
        &disk.path().join("engine"),
        bench::policy(GateChoice::Auto),
        0,
    )
    .unwrap();
    let (outside, began) = (dir.clone(), Instant::now());
    let outsider = Outsider::start(Duration::from_millis(5), move |n| {
        let file = OpenOptions::new().write(true).open(outside.join(format!("space-{n}"))).unwrap();
        // Its pages are dirty again, so that the call has to wait for them in its middle.
        file.write_all_at(&content, 0).unwrap();
        let mode = [
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE,
        ][(n % 4) as usize];
        rustix::fs::fallocate(&file, mode, 64 << 10, 1 << 20).unwrap();
        n < FILES
    });
    let (mut cuts, mut refused) = (0, 0);
    while !outsider.threads[1].is_finished() {
        assert!(
            began.elapsed() < Duration::from_secs(120) * bench::slack(),
            "{} of {FILES}",
            outsider.ended.load(SeqCst)
        );
        if session.cut(&Quiet).is_ok() { cuts += 1 } else { refused += 1 }
    }
    drop(outsider);
    while let Err(e) = session.cut(&Quiet) {
        assert!(began.elapsed() < Duration::from_secs(150) * bench::slack(), "no cut in the end: {e:#?}");
    }
    let frozen = disk.path().join("frozen");
    session.freeze(&frozen, &Quiet).unwrap();
    let other = |n: &u64| {
        let read = |dir: &std::path::Path| fs::read(dir.join(format!("space-{n}"))).unwrap();
        read(&frozen) != read(&dir)
    };
    let others: Vec<u64> = (1..=FILES).filter(other).collect();
    println!("{kind}: {cuts} cuts meanwhile, {refused} refusals, {:.1?}", began.elapsed());
    assert!(others.is_empty(), "{kind}: as they were in the middle of a call: {others:?}");
}

#[test]
fn t1_an_outsiders_change_of_space_is_not_lost_on_ext4() {
    space("ext4");
}

#[test]
fn t1_an_outsiders_change_of_space_is_not_lost_on_xfs() {
    space("xfs");
}
