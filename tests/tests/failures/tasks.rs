//! Tasks that cannot be frozen, that are stopped, traced, stuck, multiplying, dying or flooded with signals.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_tests::bench::{self, eventually};
use snapshot_tests::inmate::Inmate;
use snapshot_tests::silent::Silent;

use super::{INMATE, Scene, cut, say, times};

const ALL: [GateChoice; 3] = [GateChoice::Auto, GateChoice::Fence, GateChoice::Freezer];

fn pid(of: u32) -> Pid {
    Pid::from_raw(i32::try_from(of).unwrap())
}

/// A writer that was stopped before the tracker came. Breaks without `stopped` in `track/evidence.rs`: its last call looks as if it were under way.
#[test]
fn a_stopped_writer_is_in_nobodys_way() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    for n in 0..6 {
        let writer = Inmate::start(INMATE, &scene.demo, &["write", "srv/written"]).unwrap();
        std::thread::sleep(Duration::from_millis(3 + n));
        kill(pid(writer.pid()), Signal::SIGSTOP).unwrap();
        eventually("it stops", || writer.state().unwrap() == b'T');
        let mut session = scene.session(bench::policy(ALL[n as usize % 3]));
        let before = scene.live();
        cut(&mut session);
        let frozen = scene.frozen(session, &before);
        let live = fs::read(scene.demo.upper().join("srv/written")).unwrap();
        assert!(fs::read(frozen.join("srv/written")).unwrap() == live, "it did not write meanwhile");
        assert_eq!(writer.state().unwrap(), b'T', "it was woken up");
        kill(pid(writer.pid()), Signal::SIGCONT).unwrap();
        assert!(writer.end().unwrap());
    }
    scene.goes_on();
}

/// A writer in the hands of a debugger: interrupted anywhere, and at the entry and exit of its writes. Stopped after the tracker came it is in nobody's
/// way; before, it may be inside a call that nobody counts, and is named.
#[test]
fn a_traced_writer_never_makes_a_wrong_cut() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let (mut cuts, mut refused) = (0, 0);
    for n in 0..8usize {
        let writer = Inmate::start(INMATE, &scene.demo, &["write", "srv/written"]).unwrap();
        let traced = pid(writer.pid());
        let stop = || {
            ptrace::seize(traced, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
            ptrace::interrupt(traced).unwrap();
            assert!(matches!(waitpid(traced, None).unwrap(), WaitStatus::PtraceEvent(..)));
            // To the entry of the next call, or to its exit.
            for _ in 0..n % 3 {
                ptrace::syscall(traced, None).unwrap();
                assert!(matches!(waitpid(traced, None).unwrap(), WaitStatus::PtraceSyscall(_)));
            }
        };
        let early = n >= 6;
        if early {
            stop();
        }
        let mut session = scene.session(bench::policy(ALL[n % 3]));
        if !early {
            stop();
        }
        let before = scene.live();
        let first = session.cut(&Quiet);
        if let (Err(e), true) = (&first, early) {
            let text = say(e);
            assert!(text.contains("began before the tracker"), "{text}");
            refused += 1;
        } else {
            if first.is_err() {
                cut(&mut session);
            }
            let frozen = scene.frozen(session, &before);
            let live = fs::read(scene.demo.upper().join("srv/written")).unwrap();
            assert!(fs::read(frozen.join("srv/written")).unwrap() == live, "it did not write meanwhile");
            cuts += 1;
        }
        assert!(!scene.demo.frozen());
        ptrace::detach(traced, None).unwrap();
        assert!(writer.end().unwrap());
    }
    println!("{cuts} cuts, {refused} refused");
    assert!(cuts >= 6);
    scene.goes_on();
}

/// A task in uninterruptible sleep outside the tree: none and fence do without it. The freezer cannot, says so, and lets go of the others within the budget.
/// Inside a call that may change the tree nobody can do without it.
#[test]
fn a_task_in_uninterruptible_sleep() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let silent = Silent::new().unwrap();
    let path = silent.path();
    let budget = bench::policy(GateChoice::Auto).budget;
    for (job, gates) in [("stat", &[GateChoice::Auto, GateChoice::Fence][..]), ("create", &[])] {
        let sleeper = Inmate::start(INMATE, &scene.demo, &[job, path.to_str().unwrap()]).unwrap();
        eventually("it sleeps", || sleeper.state().unwrap() == b'D');
        for &choice in gates {
            let mut session = scene.session(bench::policy(choice));
            let before = scene.live();
            let made = cut(&mut session);
            assert_ne!(made.pause.gate, Gate::Freezer);
            scene.frozen(session, &before);
        }
        for &choice in ALL.iter().filter(|choice| !gates.contains(choice)) {
            let mut session = scene.session(bench::policy(choice));
            let watched = Watched::start(&scene);
            let text = say(&session.cut(&Quiet).unwrap_err());
            let longest = watched.longest();
            assert!(
                text.contains("state D") || text.contains("began before the tracker"),
                "{job} {choice}: {text}"
            );
            // Watched from outside, by somebody who may lose the processor himself.
            assert!(longest < budget + Duration::from_millis(200), "{job} {choice}: {longest:?}");
            println!("{job} {choice}: frozen for {longest:?} at most; {text}");
            drop(session);
            scene.goes_on();
        }
        assert_eq!(sleeper.state().unwrap(), b'D', "it was woken up");
        assert!(sleeper.end().unwrap());
    }
    drop(silent);
    // A parent that waits for its child in vfork(2) sleeps uninterruptibly too, but the freezer knows it (`wait_for_vfork_done`).
    scene.worker.ask("fifo /srv/pipe").unwrap();
    let parent = Inmate::start(INMATE, &scene.demo, &["vfork", "srv/pipe"]).unwrap();
    eventually("it waits", || parent.state().unwrap() == b'D');
    for choice in ALL {
        let mut session = scene.session(bench::policy(choice));
        let before = scene.live();
        cut(&mut session);
        scene.frozen(session, &before);
    }
    scene.goes_on();
}

/// Looks at the container's wish to be frozen from outside, as often as it can.
struct Watched {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Watched {
    fn start(scene: &Scene) -> Watched {
        let control = scene.demo.cgroup().unwrap().join("cgroup.freeze");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut longest, mut since) = (Duration::ZERO, None::<Instant>);
            while !stopped.load(SeqCst) {
                let frozen = fs::read_to_string(&control).is_ok_and(|text| text.trim() == "1");
                since = frozen.then(|| since.unwrap_or_else(Instant::now));
                longest = longest.max(since.map(|at| at.elapsed()).unwrap_or_default());
                std::thread::sleep(Duration::from_micros(300));
            }
            longest
        });
        Watched { stop, thread }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

/// Blocked for ever in the opening of a FIFO of the overlay for writing, which is a call that may change the tree: the freezer makes it leave. The fence alone
/// cannot, and says what can.
#[test]
fn a_writer_blocked_for_ever_in_the_opening_of_a_fifo() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    scene.worker.ask("fifo /srv/pipe").unwrap();
    let blocked = Inmate::start(INMATE, &scene.demo, &["open-to-write", "srv/pipe"]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    // It blocks before the tracker comes, and after: a signal that changes nothing makes it enter the call again.
    for again in [false, true] {
        for choice in [GateChoice::Auto, GateChoice::Freezer] {
            let mut session = scene.session(bench::policy(choice));
            if again {
                kill(pid(blocked.pid()), Signal::SIGSTOP).unwrap();
                eventually("it stops", || blocked.state().unwrap() == b'T');
                kill(pid(blocked.pid()), Signal::SIGCONT).unwrap();
                eventually("it is blocked again", || blocked.state().unwrap() == b'S');
            }
            let before = scene.live();
            let made = cut(&mut session);
            assert!(!again || made.pause.gate == Gate::Freezer, "{choice}: {made:?}");
            scene.frozen(session, &before);
        }
    }
    let mut session = scene.session(bench::policy(GateChoice::Fence));
    kill(pid(blocked.pid()), Signal::SIGSTOP).unwrap();
    eventually("it stops", || blocked.state().unwrap() == b'T');
    kill(pid(blocked.pid()), Signal::SIGCONT).unwrap();
    eventually("it is blocked again", || blocked.state().unwrap() == b'S');
    let text = say(&session.cut(&Quiet).unwrap_err());
    assert!(text.contains("a call that was under way") && text.contains("--gate freezer"), "{text}");
    assert!(blocked.end().unwrap(), "it is not blocked any more");
    scene.goes_on();
}

/// The container's writers are stopped and let go on thousands of times a second while windows are made.
#[test]
fn a_storm_of_signals_in_the_windows() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(3);
    let writer = Inmate::start(INMATE, &scene.demo, &["write", "srv/written"]).unwrap();
    let root = scene.demo.upper().join("srv/causal");
    let victims: Vec<Pid> = tasks_with(&root).into_iter().chain([writer.pid()]).map(pid).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let storm = std::thread::spawn(move || {
        let mut sent = 0u64;
        while !stopped.load(SeqCst) {
            for signal in [Signal::SIGSTOP, Signal::SIGCONT, Signal::SIGWINCH] {
                for victim in &victims {
                    let _ = kill(*victim, signal);
                }
                sent += victims.len() as u64;
                std::thread::sleep(Duration::from_micros(150));
            }
        }
        for victim in &victims {
            let _ = kill(*victim, Signal::SIGCONT);
        }
        sent
    });
    let (mut cuts, mut refused) = (0, 0);
    let wanted = times("SNAPSHOT_STORMS", 6);
    while cuts < wanted && refused < 60 {
        let mut session = scene.session(bench::policy(ALL[cuts as usize % 3]));
        let before = scene.live();
        if session.cut(&Quiet).is_ok() {
            scene.frozen(session, &before);
            cuts += 1;
        } else {
            refused += 1;
        }
    }
    stop.store(true, SeqCst);
    println!("{cuts} cuts, {refused} refused, {} signals", storm.join().unwrap());
    assert_eq!(cuts, wanted);
    scene.goes_on();
}

/// Processes that have a file below a directory open: the worker with the writers.
fn tasks_with(root: &std::path::Path) -> Vec<u32> {
    let ino = fs::metadata(root.join("t0/a.db")).unwrap().ino();
    let holds = |pid: &u32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| fs::metadata(fd.path()).is_ok_and(|m| m.ino() == ino)))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(holds).collect()
}

/// Processes that fork without end, each of which writes a file and goes. Every file of a frozen tree is one that was written whole.
#[test]
fn a_container_that_forks_without_end() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(1);
    let script = "mkdir -p srv/forks; echo ready; n=0; while :; do n=$((n+1)); \
                  (echo whole >srv/forks/$n; rm -f srv/forks/$((n-40))) & (:) & wait; done";
    let _forks = [(); 2].map(|()| Inmate::sh(&scene.demo, script).unwrap());
    let (mut cuts, mut refused, mut files) = (0, 0, 0);
    let wanted = times("SNAPSHOT_FORKS", 3);
    while cuts < wanted && refused < 60 {
        let mut session = scene.session(bench::policy(ALL[cuts as usize % 3]));
        let before = scene.live();
        if session.cut(&Quiet).is_err() {
            refused += 1;
            continue;
        }
        let frozen = scene.frozen(session, &before);
        for entry in fs::read_dir(frozen.join("srv/forks")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            // The opening that creates it and the write are two calls.
            assert!(text.is_empty() || text == "whole\n", "{text:?}");
            files += 1;
        }
        cuts += 1;
    }
    println!("{cuts} cuts with {files} files of forked tasks, {refused} refused");
    assert!(cuts == wanted && files > 0);
    scene.goes_on();
}

static VICTIM: Mutex<Option<(Moment, Pid)>> = Mutex::new(None);

/// Kills the container's init, and with it everybody in it.
fn murder(moment: Moment) {
    let mut victim = VICTIM.lock().unwrap();
    if let Some((_, init)) = victim.take_if(|(at, _)| *at == moment) {
        kill(init, Signal::SIGKILL).unwrap();
    }
}

/// The container ends inside the window, in each phase: either the cut stands and is right, or there is none and an error; nothing hangs.
#[test]
fn a_container_that_exits_in_the_window() {
    if !bench::root() {
        return;
    }
    let (mut stood, mut refused) = (0, 0);
    for choice in [GateChoice::Fence, GateChoice::Freezer] {
        for at in [Moment::Raised, Moment::Drained, Moment::Captured, Moment::Validated] {
            let scene = Scene::busy(2);
            let policy = Policy { probe: Some(murder), ..bench::policy(choice) };
            let mut session = scene.session(policy);
            cut(&mut session);
            let before = scene.live();
            *VICTIM.lock().unwrap() = Some((at, pid(scene.demo.0.init().unwrap().0)));
            let began = Instant::now();
            let made = session.cut(&Quiet);
            assert!(VICTIM.lock().unwrap().take().is_none(), "{choice} {at:?}: nobody was killed");
            assert!(began.elapsed() < Duration::from_secs(20), "{choice} {at:?}");
            match made {
                Ok(_) => {
                    scene.frozen(session, &before);
                    stood += 1;
                }
                Err(e) => {
                    println!("{choice} {at:?}: {}", say(&e));
                    refused += 1;
                }
            }
            assert!(!scene.demo.frozen(), "{choice} {at:?}");
        }
    }
    println!("{stood} cuts of dead containers stood, {refused} were refused");
}
