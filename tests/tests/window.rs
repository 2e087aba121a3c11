//! The gates on a real container: G1 to G7, and the invariants of the tracker that show in a whole session (T3, T4, T5).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use snapshot_engine::CommitOptions;
use snapshot_engine::demo::Workload;
use snapshot_engine::demo::content::page;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::model::options::{GateChoice, TrackerChoice};
use snapshot_engine::model::reference::ContainerRef;
use snapshot_engine::model::snapshot::Backend;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Session;
use snapshot_engine::pipeline::{CutRequest, Engine, Stages};
use snapshot_engine::store::SnapshotId;
use snapshot_engine::track::Tracker;
use snapshot_tests::bench::{self, Disk, Running, eventually};
use snapshot_tests::causal;
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const DOOMED: &str = env!("CARGO_BIN_EXE_doomed");

fn scene(kind: &str) -> (Disk, Running, Worker) {
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let worker = Worker::start(WORKER, &demo).unwrap();
    (disk, demo, worker)
}

fn session(disk: &Disk, demo: &Running, policy: Policy) -> Session {
    bench::session(demo.target().unwrap(), &disk.path().join("engine"), policy, 0).unwrap()
}

/// Freezes, and returns a file of the frozen tree.
fn frozen(session: Session, disk: &Disk, file: &str) -> Vec<u8> {
    let to = disk.path().join(bench::unique("frozen"));
    session.freeze(&to, &Quiet).unwrap();
    fs::read(to.join(file)).unwrap()
}

// What a probe, which is a plain function, works on.
static MEDDLED: Mutex<Option<fs::File>> = Mutex::new(None);
static TAKEN: Mutex<Option<fs::File>> = Mutex::new(None);
static MEDDLE_TIMES: AtomicU32 = AtomicU32::new(0);

/// Somebody outside the container, whom no gate holds, writes after the copy; and once to another file before it, whose dirt is then in
/// the hands of the first attempt.
fn meddle(moment: Moment) {
    use std::os::unix::fs::FileExt;
    if moment == Moment::Raised
        && let Some(taken) = TAKEN.lock().unwrap().take()
    {
        taken.write_all_at(b"taken by an attempt that came to nothing", 0).unwrap();
    }
    if moment == Moment::Captured && MEDDLE_TIMES.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
        let n = u64::from(MEDDLE_TIMES.load(SeqCst));
        MEDDLED.lock().unwrap().as_ref().unwrap().write_all_at(&page(n), 0).unwrap();
    }
}

/// G2 and T3: what changes between the copy and the end of the window voids the attempt, with every gate, and what the void attempts had taken
/// is in the cut that stands. Breaks without the comparison of stamps in `Window::inside`, or without `Attempts::put_back`.
#[test]
fn g2_t3_a_change_in_the_window_voids_it_and_loses_nothing() {
    if !bench::root() {
        return;
    }
    for choice in [GateChoice::None, GateChoice::Fence, GateChoice::Freezer] {
        let (disk, demo, mut worker) = scene("ext4");
        worker.ask("write /srv/f 0 8192 1").unwrap();
        worker.ask("write /srv/other 0 100 1").unwrap();
        let mut session = session(&disk, &demo, Policy { probe: Some(meddle), ..bench::policy(choice) });
        session.cut(&Quiet).unwrap();
        let outside = |file: &str| fs::OpenOptions::new().write(true).open(demo.upper().join(file)).unwrap();
        *TAKEN.lock().unwrap() = Some(outside("srv/other"));
        *MEDDLED.lock().unwrap() = Some(outside("srv/f"));
        MEDDLE_TIMES.store(3, SeqCst);
        let made = session.cut(&Quiet).unwrap();
        *MEDDLED.lock().unwrap() = None;
        assert!(made.attempts >= 4, "{choice}: {made:?}");
        // Without the putting back it would be the sweep that finds it (T6).
        assert_eq!(made.misses, 0, "{choice}: {made:?}");
        assert!(made.abandoned.keys().any(|(_, why)| why.contains("a writer got in")), "{choice}: {made:?}");
        let to = disk.path().join("frozen");
        session.freeze(&to, &Quiet).unwrap();
        for file in ["srv/f", "srv/other"] {
            let (live, cut) = (fs::read(demo.upper().join(file)).unwrap(), fs::read(to.join(file)).unwrap());
            assert!(live == cut, "{choice}: {file} differs");
        }
    }
}

fn spins(tracker: &Tracker) -> u64 {
    tracker.live().felt().spins
}

/// G3: an engine that hangs with the fence up. Breaks without the comparison with the clock in `count::turn`; the second half breaks
/// when a call that outlasts the loop is counted out without having been counted in.
#[test]
fn g3_the_fence_falls_by_itself() {
    if !bench::root() {
        return;
    }
    let (_disk, demo, mut worker) = scene("ext4");
    let tracker = bench::tracker(&[&demo.target().unwrap()]).unwrap();
    worker.ask("writes /srv/f 10").unwrap();
    tracker.live().clear_felt();
    tracker.live().raise_fence(now() + 5_000_000);
    let longest: u64 = worker.ask("writes /srv/f 100").unwrap().parse().unwrap();
    let felt = tracker.live().felt();
    assert!(felt.spins >= 1 && felt.expired >= 1, "{felt:?}");
    let slack = u64::from(bench::slack());
    assert!(felt.longest <= 5_000_000 + slack * 1_000_000, "{felt:?}, {longest}");
    assert!(longest < slack * 500_000_000, "{felt:?}, {longest}");
    eventually("nothing is in flight", || tracker.live().in_flight() == 0);

    // A deadline that no engine sets: the loop's own end is the last resort, and the counts stay right.
    tracker.live().raise_fence(now() + 600_000_000);
    worker.ask("writes /srv/f 2").unwrap();
    tracker.live().lower_fence();
    worker.ask("writes /srv/f 100").unwrap();
    eventually("the count is right afterwards", || tracker.live().in_flight() == 0);
}

/// An engine that is to die; killed on drop.
struct Doomed(Child);

impl Doomed {
    /// Starts it and waits until it is where it dies.
    fn start(disk: &Disk, demo: &Running, how: &str) -> Doomed {
        let work = disk.path().join(bench::unique("doomed"));
        let mut child = Command::new(DOOMED)
            .arg(demo.0.name())
            .arg(work)
            .arg(how)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let doomed = Doomed(child);
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "now\n", "{how}");
        doomed
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// G3: an engine that is killed while it holds the fence. Breaks when programs outlive the engine and the fence has no deadline.
#[test]
fn g3_a_killed_engine_holds_nobody() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    let doomed = Doomed::start(&disk, &demo, "fence");
    worker.tell("writes /srv/f 100").unwrap();
    drop(doomed);
    let answer = worker.answer(Duration::from_secs(10)).unwrap();
    assert!(answer.is_some(), "the writer is still held");
}

/// G4: killed while the container is frozen. Breaks without arming the watchdog in `Attempts::attempt`.
#[test]
fn g4_an_engine_killed_in_the_freezer_leaves_no_frozen_container() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    for how in ["kill-raised", "kill-captured"].repeat(3) {
        let mut doomed = Doomed::start(&disk, &demo, how);
        doomed.0.wait().unwrap();
        let died = Instant::now();
        eventually(how, || !demo.frozen());
        worker.ask("writes /srv/f 10").unwrap();
        println!("{how}: thawed and writing {:?} after the death", died.elapsed());
    }
}

/// G4: stopped while the container is frozen. Breaks without the watchdog's limit.
#[test]
fn g4_an_engine_stopped_in_the_freezer_lets_go() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    let _doomed = Doomed::start(&disk, &demo, "stop-captured");
    let stopped = Instant::now();
    eventually("thawed", || !demo.frozen());
    worker.ask("writes /srv/f 10").unwrap();
    // The limit is the budget of 20 ms and 100 ms more; a noisy machine gets a second.
    assert!(stopped.elapsed() < Duration::from_secs(2) * bench::slack(), "{:?}", stopped.elapsed());
}

/// G4: who was paused stays paused, and gets a snapshot. Breaks without `paused` in `Session::open`.
#[test]
fn g4_a_paused_container_stays_paused_and_gets_a_snapshot() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    worker.ask("write /srv/f 0 5000 3").unwrap();
    let control = demo.cgroup().unwrap().join("cgroup.freeze");
    for choice in [GateChoice::Auto, GateChoice::None] {
        fs::write(&control, "1").unwrap();
        eventually("frozen", || demo.frozen());
        let mut session = session(&disk, &demo, bench::policy(choice));
        let made = session.cut(&Quiet).unwrap();
        assert_eq!(made.pause.pause(), Duration::ZERO, "{made:?}");
        assert_eq!(frozen(session, &disk, "srv/f"), vec![3; 5000]);
        assert!(demo.frozen(), "it was thawed");
        fs::write(&control, "0").unwrap();
        worker.ask("hello").unwrap();
    }
}

/// G5: with a budget that nothing large fits, nobody is held longer than it, whether the cut comes or not. Breaks without the deadline in
/// `Window::attempt`, or without `look_ahead`.
#[test]
fn g5_the_budget_is_kept() {
    if !bench::root() {
        return;
    }
    let budget = Duration::from_micros(300);
    for choice in [GateChoice::Fence, GateChoice::Auto] {
        let (disk, demo, mut worker) = scene("ext4");
        let mut session = session(&disk, &demo, Policy { budget, ..bench::policy(choice) });
        worker.ask("causal /srv/causal 2").unwrap();
        for n in 0..10 {
            // More than can be read within the budget becomes dirty just before.
            worker.ask(&format!("write /srv/big 0 {} {n}", 8 << 20)).unwrap();
            let (stops, what) = match session.cut(&Quiet) {
                Ok(made) => {
                    assert!(made.pause.gate == Gate::None || made.pause.window <= budget, "{made:?}");
                    let mut stops = made.other_stops.clone();
                    stops.push((made.pause.gate, made.pause.longest_stop));
                    (stops, format!("{made:?}"))
                }
                Err(e) => (Vec::new(), e.to_string()),
            };
            for (gate, stop) in stops {
                // The deadline is looked at between pieces, and a thaw and an interrupt take their time on a busy machine.
                let slack = if gate == Gate::Freezer { 20 } else { 4 };
                let slack = Duration::from_millis(slack) * bench::slack();
                assert!(stop <= budget + slack, "{gate:?} {stop:?}: {what}");
            }
        }
        worker.ask("quiet").unwrap();
    }
}

/// Makes a window long enough for writers to run into the fence.
fn linger(moment: Moment) {
    let until = now() + 300_000;
    while moment == Moment::Captured && now() < until {
        std::hint::spin_loop();
    }
}

/// What the engine itself does to copy a file leaves nothing to capture. Breaks if cloning a file makes its source dirty: then no file that the
/// budget does not cover ever gets a cut.
#[test]
fn g5_copying_a_file_does_not_make_it_dirty() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let (disk, demo, mut worker) = scene(kind);
        worker.ask(&format!("write /large.bin 0 {} 7", 64 << 20)).unwrap();
        let mut session = session(&disk, &demo, bench::policy(GateChoice::Fence));
        let made = session.cut(&Quiet).unwrap();
        assert_eq!(made.bytes, 0, "{kind}: {made:?}");
    }
}

/// G6: an idle container is cut by gate none and nobody is paused; with the fence the window that is reported is no shorter than any task's
/// spin, but for the moment a spinner needs to notice.
#[test]
fn g6_the_pause_is_measured() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    let mut idle = session(&disk, &demo, bench::policy(GateChoice::Auto));
    for _ in 0..5 {
        let made = idle.cut(&Quiet).unwrap();
        assert_eq!(
            (made.pause.gate, made.pause.pause(), made.attempts),
            (Gate::None, Duration::ZERO, 1),
            "{made:?}"
        );
        assert_eq!(made.pause.longest_stop, Duration::ZERO);
    }
    drop(idle);
    let policy = Policy { probe: Some(linger), ..bench::policy(GateChoice::Fence) };
    let mut busy = session(&disk, &demo, policy);
    worker.ask("causal /srv/causal 2").unwrap();
    let (mut held, mut windows, mut refused) = (0, Vec::new(), BTreeMap::<String, u32>::new());
    for n in 0..400 {
        // On a busy machine a writer has a core in few of the windows only.
        if n >= 40 && held > 0 {
            break;
        }
        let made = match busy.cut(&Quiet) {
            Ok(made) => made,
            Err(why) => {
                *refused.entry(format!("{:#}", anyhow::Error::from(why))).or_default() += 1;
                continue;
            }
        };
        assert!(made.pause.window > Duration::ZERO && made.pause.window <= policy.fence_max, "{made:?}");
        let slack = Duration::from_millis(1) * bench::slack();
        assert!(made.pause.longest_stop <= made.pause.window + slack, "{made:?}");
        held += made.pause.held;
        windows.push(made.pause.window);
        std::thread::sleep(Duration::from_millis(3));
    }
    windows.sort_unstable();
    println!("{} windows, median {:?}, {held} calls held", windows.len(), windows.get(windows.len() / 2));
    let wanted = bench::share(10) as usize;
    assert!(windows.len() >= wanted, "the fence made {} cuts: {refused:#?}", windows.len());
    assert!(held > 0, "the fence never held anybody");
    worker.ask("quiet").unwrap();
}

/// G7: one fence, two containers. Breaks when `membership` looks at the first target only.
#[test]
fn g7_one_gate_holds_the_containers_of_a_pod() {
    if !bench::root() {
        return;
    }
    let disk = Disk::new("ext4").unwrap();
    let pod = [(); 2].map(|()| Running::start(INIT, &disk, Workload::idle()).unwrap());
    let stranger = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let targets = [pod[0].target().unwrap(), pod[1].target().unwrap()];
    let tracker = bench::tracker(&[&targets[0], &targets[1]]).unwrap();
    for demo in &pod {
        let mut worker = Worker::start(WORKER, demo).unwrap();
        let before = tracker.live().stamp().entered;
        worker.ask("writes /srv/f 50").unwrap();
        assert!(tracker.live().stamp().entered >= before + 50, "its calls are not counted");
        tracker.live().clear_felt();
        tracker.live().raise_fence(now() + 10_000_000);
        worker.ask("writes /srv/f 1").unwrap();
        tracker.live().lower_fence();
        assert!(spins(&tracker) >= 1, "its calls are not held");
    }
    let mut worker = Worker::start(WORKER, &stranger).unwrap();
    let before = tracker.live().stamp().entered;
    worker.ask("writes /srv/f 50").unwrap();
    assert_eq!(tracker.live().stamp().entered, before, "a stranger's calls are counted");
}

/// T4 in a whole session: while the container maps a file shared and writable only the freezer is used, and what was stored first is never
/// missing when what was stored later is there.
#[test]
fn t4_shared_mappings_take_the_freezer() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let (disk, demo, mut worker) = scene(kind);
        if bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap().is_none() {
            continue;
        }
        worker.ask("map /srv/map 16384").unwrap();
        worker.ask("storing /srv/map").unwrap();
        for n in 0..bench::share(8).max(3) {
            let mut session = session(&disk, &demo, bench::policy(GateChoice::Auto));
            for _ in 0..=n % 3 {
                let made = session.cut(&Quiet).unwrap();
                assert_eq!(made.pause.gate, Gate::Freezer, "{kind}: {made:?}");
            }
            let bytes = frozen(session, &disk, "srv/map");
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let (first, last) = (word(0), word(bytes.len() - 8));
            assert!(first == last || first == last + 1, "{kind}: first {first}, last {last}");
            assert!(first > 0, "{kind}");
        }
        // Mapped while a session is open.
        worker.ask("stored").unwrap();
        worker.ask("unmap /srv/map").unwrap();
        let mut session = session(&disk, &demo, bench::policy(GateChoice::Auto));
        assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::None);
        worker.ask("map /srv/map 16384").unwrap();
        worker.ask("store /srv/map 9000 77").unwrap();
        assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::Freezer);
        worker.ask("store /srv/map 9001 78").unwrap();
        assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::Freezer);
        let bytes = frozen(session, &disk, "srv/map");
        assert_eq!((bytes[9000 * 8], bytes[9001 * 8]), (77, 78), "{kind}");
    }
}

/// A file that was opened for reading only can be mapped as shared as it likes: the C library does so with its caches, in every program that starts.
#[test]
fn mappings_that_can_only_be_read_do_not_matter() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    worker.ask("write /srv/cache 0 4096 1").unwrap();
    let mut session = session(&disk, &demo, bench::policy(GateChoice::Auto));
    let mappings = session.stamp().mappings;
    worker.ask("map_to_read /srv/cache").unwrap();
    assert_eq!(session.stamp().mappings, mappings);
    assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::None);
}

/// T4: so does a mapping made by a 32-bit program, whose calls have other numbers.
#[cfg(target_arch = "x86_64")]
#[test]
fn t4_a_mapping_of_a_32_bit_program_takes_the_freezer() {
    if !bench::root() {
        return;
    }
    let (disk, demo, mut worker) = scene("ext4");
    worker.ask("write /srv/map 0 4096 1").unwrap();
    let mut session = session(&disk, &demo, bench::policy(GateChoice::Auto));
    assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::None);
    if let Err(e) = worker.ask("map32 /srv/map") {
        return eprintln!("this kernel runs no 32-bit programs: not tested ({e})");
    }
    assert_eq!(session.cut(&Quiet).unwrap().pause.gate, Gate::Freezer);
}

/// T5: without a tracker the container stands still, the long pause is what is reported, and it is one instant all the same; also on
/// a file system the tracker does not know.
#[test]
fn t5_without_a_tracker_the_long_pause_is_reported() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "tmpfs"] {
        let (disk, demo, mut worker) = scene(kind);
        worker.ask("causal /srv/causal 2").unwrap();
        let id: SnapshotId = "snapshot-1752857512540089368".parse().unwrap();
        let request = |name: &str, options: CommitOptions| {
            let directory = disk.path().join(name);
            fs::create_dir(&directory).unwrap();
            CutRequest { id, directory, container: ContainerRef::Name(demo.0.name().into()), options }
        };
        let seconds = snapshot_engine::model::nanos::Nanos(5_000_000_000);
        let options = CommitOptions::default().tracker(TrackerChoice::None).max_pause(seconds);
        let wanted = request("still", options.clone());
        let cut = Engine::default().cut(&wanted, &Quiet).unwrap();
        assert_eq!((cut.pause.gate, cut.tracker), (Gate::Freezer, Some(Backend::None)));
        assert!(cut.pause.window.0 > 0 && cut.pause.longest_stop == cut.pause.window, "{:?}", cut.pause);
        println!("{kind}: {:?}", cut.pause);
        causal::judge(&wanted.frozen().join("srv/causal").as_path().into(), 2).unwrap();
        assert!(!demo.frozen());
        // A budget that is too small is kept, and said.
        let tiny = snapshot_engine::model::nanos::Nanos(1_000);
        let error = Engine::default().cut(&request("tiny", options.max_pause(tiny)), &Quiet).unwrap_err();
        assert!(!demo.frozen() && !disk.path().join("tiny/frozen").exists(), "{error}");
        worker.ask("quiet").unwrap();
        if kind == "tmpfs" {
            if bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap().is_some() {
                let cut = Engine::default().cut(&request("auto", CommitOptions::default()), &Quiet).unwrap();
                assert_eq!(cut.tracker, Some(Backend::Fentry));
                continue;
            }
            let error =
                Engine::default().cut(&request("auto", CommitOptions::default()), &Quiet).unwrap_err();
            let text = format!("{:#}", anyhow::Error::from(error));
            assert!(text.contains("tmpfs") && text.contains("--tracker none"), "{text}");
            assert!(!Path::new(&disk.path()).join("auto/frozen").exists());
        }
    }
}
