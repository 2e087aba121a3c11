//! Events, slots, bits and calls that the tracker has no room for, calls it did not see begin, and inode numbers given out again.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::Error;
use snapshot_engine::pipeline::progress::{Progress, Quiet, Stage};
use snapshot_engine::track::Tables;
use snapshot_tests::bench;
use snapshot_tests::inmate::{Inmate, judge_reuse};

use super::{INMATE, Scene, cut, say, times};

/// T1: a ring of 256 records and 600 changes between two looks. Breaks without the comparison of losses in `Window::inside` and in `Tracker::take`.
#[test]
fn t1_a_session_outlives_an_overflowing_ring() {
    if !bench::root() {
        return;
    }
    let scene = Scene::busy(2);
    let dir = scene.demo.root().unwrap().join("srv/many");
    fs::create_dir(&dir).unwrap();
    let files: Vec<PathBuf> = (0..600).map(|n| dir.join(n.to_string())).collect();
    files.iter().for_each(|file| fs::write(file, "first").unwrap());
    let tables = Tables { ring: 4096, ..Tables::default() };
    let mut session = scene.open(bench::policy(GateChoice::Auto), tables, &Quiet).unwrap();
    cut(&mut session);
    let mut before = Vec::new();
    for turn in 0..3 {
        let lost = session.stamp().lost;
        files.iter().for_each(|file| fs::write(file, format!("turn {turn}")).unwrap());
        assert!(session.stamp().lost > lost, "the ring did not overflow: this test proves nothing");
        before = scene.live();
        let made = cut(&mut session);
        assert_eq!(made.misses, 0, "{made:?}");
    }
    let frozen = scene.frozen(session, &before);
    for n in 0..600 {
        assert_eq!(fs::read_to_string(frozen.join(format!("srv/many/{n}"))).unwrap(), "turn 2", "{n}");
    }
}

/// Does something once, when the tracker was attached and the base copy has not begun.
struct Meanwhile<F: Fn() + Send + Sync> {
    act: F,
    done: AtomicBool,
}

impl<F: Fn() + Send + Sync> Meanwhile<F> {
    fn new(act: F) -> Meanwhile<F> {
        Meanwhile { act, done: AtomicBool::new(false) }
    }
}

impl<F: Fn() + Send + Sync> Progress for Meanwhile<F> {
    fn report(&self, _: Stage, _: u64, _: u64) {}

    fn check(&self) -> Result<(), Error> {
        if !self.done.swap(true, SeqCst) {
            (self.act)();
        }
        Ok(())
    }
}

/// The container makes more files than the table of inodes was made for, before the base copy: it is started over with a larger one. Breaks
/// without the loop around `attach` in `Session::open_with`. After the base: an error that says what to do, and nothing is held.
#[test]
fn a_full_table_of_inodes_is_made_larger() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let dir = scene.demo.root().unwrap().join("srv/many");
    fs::create_dir(&dir).unwrap();
    let make = |from: u32, to: u32| (from..to).for_each(|n| fs::write(dir.join(n.to_string()), "x").unwrap());
    let tables = Tables { slots: 64, ..Tables::default() };
    let meanwhile = Meanwhile::new(|| make(0, 1000));
    let mut session = scene.open(bench::policy(GateChoice::Auto), tables, &meanwhile).unwrap();
    assert!(meanwhile.done.load(SeqCst), "nothing was made meanwhile: this test proves nothing");
    let before = scene.live();
    cut(&mut session);
    let frozen = scene.frozen(session, &before);
    assert_eq!(fs::read_dir(frozen.join("srv/many")).unwrap().count(), 1000);

    let mut session = scene.open(bench::policy(GateChoice::Auto), tables, &Quiet).unwrap();
    make(1000, 12_000);
    let error = session.cut(&Quiet).unwrap_err();
    let text = say(&error);
    assert!(text.contains("no room for another inode") && text.contains("try again"), "{text}");
    drop(session);
    scene.goes_on();
}

/// T1: large files for whose blocks there are no bits: what is written to them is one tail. Breaks without TAIL in `slots::word`.
#[test]
fn t1_large_files_without_bits_of_their_own_are_whole() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let dir = scene.demo.root().unwrap().join("srv");
    let file = |n: u32| dir.join(format!("large-{n}"));
    let large = |n: u32| {
        fs::write(file(n), "first").unwrap();
        fs::OpenOptions::new().write(true).open(file(n)).unwrap().set_len(48 << 20).unwrap();
    };
    let tables = Tables { words: 1, ..Tables::default() };
    let meanwhile = Meanwhile::new(|| (0..3).for_each(large));
    let mut session = scene.open(bench::policy(GateChoice::Auto), tables, &meanwhile).unwrap();
    cut(&mut session);
    for n in 0..3 {
        scene.worker.ask(&format!("write /srv/large-{n} 40000000 5000 {}", n + 1)).unwrap();
    }
    let before = scene.live();
    let made = cut(&mut session);
    assert_eq!(made.misses, 0, "{made:?}");
    let frozen = scene.frozen(session, &before);
    for n in 0..3u8 {
        let bytes = fs::read(frozen.join(format!("srv/large-{n}"))).unwrap();
        assert!(bytes.len() == 48 << 20 && bytes.starts_with(b"first"), "{n}");
        assert!(bytes[40_000_000..40_005_000].iter().all(|b| *b == n + 1), "{n}");
    }
}

/// Tasks for which the table of tasks has no room: nobody trusts the count of calls any more, and only the freezer serves. Breaks without `uncounted` in
/// `Session::freezer_only`.
#[test]
fn a_full_table_of_tasks_leaves_the_freezer() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(6);
    let tables = Tables { tasks: Some(64), ..Tables::default() };
    for n in 0..2 {
        let mut session = scene.open(bench::policy(GateChoice::Auto), tables, &Quiet).unwrap();
        assert!(session.stamp().lost > 0, "the table was not full: this test proves nothing");
        let before = scene.live();
        let made = cut(&mut session);
        assert_eq!(made.pause.gate, Gate::Freezer, "{n}: {made:?}");
        scene.frozen(session, &before);
    }
    for choice in [GateChoice::None, GateChoice::Fence] {
        let mut session = scene.open(bench::policy(choice), tables, &Quiet).unwrap();
        let text = say(&session.cut(&Quiet).unwrap_err());
        assert!(text.contains("freezer"), "{text}");
    }
    scene.goes_on();
}

/// Attached in the middle of calls. One that ends soon is waited for; one that does not is named, and its bytes are in the first cut after its
/// end. Breaks without `evidence::wait`, or without `mark_everything` in `Session::all_proven`.
#[test]
fn attached_in_the_middle_of_a_call() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::new("ext4");
    for (n, millis) in [(0, 200), (1, 3500)] {
        scene.worker.tell(&format!("splice /srv/spliced-{n} {millis}")).unwrap();
        let path = scene.demo.upper().join(format!("srv/spliced-{n}"));
        bench::eventually("the file is there", || path.exists());
        std::thread::sleep(Duration::from_millis(20));
        let mut session = scene.session(bench::policy(GateChoice::Auto));
        let first = session.cut(&Quiet);
        if n == 1 {
            let text = say(&first.unwrap_err());
            assert!(text.contains("began before the tracker") && text.contains("try again"), "{text}");
            assert!(!scene.demo.frozen());
        }
        scene.worker.answer(Duration::from_secs(10)).unwrap().unwrap();
        cut(&mut session);
        let frozen = scene.frozen(session, &[]);
        assert_eq!(fs::read(frozen.join(format!("srv/spliced-{n}"))).unwrap(), b"at last");
    }
    // Who waits for ever in the opening of a FIFO, and changes nothing, is not waited for.
    scene.worker.ask("fifo /srv/pipe").unwrap();
    let fifo = scene.demo.root().unwrap().join("srv/pipe");
    let waiting = Inmate::start(INMATE, &scene.demo, &["open-to-write", "srv/pipe"]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(fifo.exists());
    let mut session = scene.session(bench::policy(GateChoice::Auto));
    cut(&mut session);
    assert!(waiting.end().unwrap(), "it did not wait");
}

/// Inode numbers given out again and again, with cuts between: no file has another's content. Breaks without the birth time in `Known::is`.
#[test]
fn inode_numbers_given_out_again_are_other_files() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let scene = Scene::new(kind);
        let _writer = Inmate::start(INMATE, &scene.demo, &["reuse", "srv/reuse"]).unwrap();
        let (began, mut cuts, mut refused, mut judged) = (Instant::now(), 0, 0, 0);
        let wanted = times("SNAPSHOT_REUSE", 6);
        while cuts < wanted {
            let choice = [GateChoice::Auto, GateChoice::Fence, GateChoice::Freezer][cuts as usize % 3];
            let mut session = scene.session(bench::policy(choice));
            let made: Vec<_> = (0..3).map(|_| session.cut(&Quiet)).collect();
            let stood: Vec<_> = made.iter().flatten().collect();
            assert!(stood.iter().all(|made| made.misses == 0), "{stood:?}");
            cuts += u32::try_from(stood.len()).unwrap();
            refused += 3 - u32::try_from(stood.len()).unwrap();
            assert!(refused < 60, "{kind}: {cuts} cuts only");
            // What follows a refused cut is no instant.
            if made[2].is_ok() {
                let frozen = scene.frozen(session, &[]);
                judge_reuse(&frozen.join("srv/reuse")).unwrap();
                judged += 1;
            }
        }
        assert!(judged > 0, "{kind}: nothing was judged");
        println!(
            "{kind}: {cuts} cuts, {judged} trees judged, {refused} refused, {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
}
