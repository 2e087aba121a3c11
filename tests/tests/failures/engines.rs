//! Engines that are stopped, watchdogs that are killed, both killed together, and two engines on one container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshot_engine::demo::Seed;
use snapshot_engine::freeze::attempt::{FENCE_MAX, Policy};
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::model::options::GateChoice;
use snapshot_tests::bench;
use snapshot_tests::engine::{self, Started, engine};
use snapshot_tests::host;
use snapshot_tests::running;

use super::{DOOMED, INIT, Scene, cut, times};

fn children(of: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// The watchdogs of a process: children that never executed anything else.
fn watchdogs(of: u32) -> Vec<Pid> {
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = program(of);
    children(of)
        .into_iter()
        .filter(|pid| program(*pid) == own)
        .map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect()
}

static KILLED: Mutex<u32> = Mutex::new(0);

fn kill_watchdogs(moment: Moment) {
    if moment == Moment::Drained {
        for watchdog in watchdogs(std::process::id()) {
            kill(watchdog, Signal::SIGKILL).unwrap();
            *KILLED.lock().unwrap() += 1;
        }
    }
}

/// Killed before the freeze, another one is started; killed while the container is frozen, the engine itself thaws, and the next window has another. Breaks
/// without the replacement in `Freezer::arm`.
#[test]
fn a_killed_watchdog_is_replaced() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let mut session = scene.session(bench::policy(GateChoice::Freezer));
    let mut before = Vec::new();
    for _ in 0..3 {
        let found = watchdogs(std::process::id());
        assert!(!found.is_empty(), "no watchdog");
        found.iter().for_each(|watchdog| kill(*watchdog, Signal::SIGKILL).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        before = scene.live();
        cut(&mut session);
        assert!(!scene.demo.frozen());
    }
    scene.frozen(session, &before);
    let policy = Policy { probe: Some(kill_watchdogs), ..bench::policy(GateChoice::Freezer) };
    let mut session = scene.session(policy);
    // The list of children that the kernel gives may lack one while another one is going, and a busy machine lets it go slowly.
    for _ in 0..300 {
        if *KILLED.lock().unwrap() >= 3 {
            break;
        }
        before = scene.live();
        let made = cut(&mut session);
        assert!(made.pause.window <= policy.budget, "{made:?}");
        assert!(!scene.demo.frozen());
    }
    let killed = *KILLED.lock().unwrap();
    assert!(killed >= 3, "only {killed} watchdogs were killed in a window");
    scene.frozen(session, &before);
    scene.goes_on();
}

/// Both at once, while the container is frozen: nobody is left to thaw it but the next engine that opens the same work directory. Breaks without
/// `held::thaw_left` in `store/sweep.rs`.
#[test]
fn an_engine_and_its_watchdog_killed_together_are_cleared_up_after() {
    if !bench::root() {
        return;
    }
    let programs = host::programs();
    let seed = Seed { files: 10, bytes: 1 << 20 };
    let demo = running::Running::start(INIT, "both-killed", "write-tick,sleepers=50", seed).unwrap();
    let work = tempfile::Builder::new().prefix("snapshot-both-").tempdir().unwrap();
    let text = work.path().to_string_lossy().into_owned();
    let target = format!("oci:{}:t", work.path().join("layout").display());
    let (mut hit, mut tried) = (0, 0);
    while hit < times("SNAPSHOT_BOTH_KILLED", 2) {
        tried += 1;
        assert!(tried < 400, "only {hit} of {tried} hit a frozen container");
        let mut command =
            engine(["commit", demo.name(), &target, "--work-dir", &text, "--wait", "--overwrite"]);
        let way = [&["--gate", "freezer"][..], &["--tracker", "none"]][tried % 2];
        let mut run = Started::new(command.args(way).args(["--max-pause", "5s"])).unwrap();
        while !demo.frozen().unwrap() && run.runs().unwrap() {}
        let engine_pid = Pid::from_raw(run.pid().cast_signed());
        let _ = kill(engine_pid, Signal::SIGSTOP);
        for watchdog in watchdogs(run.pid()) {
            let _ = kill(watchdog, Signal::SIGKILL);
        }
        run.kill().unwrap();
        run.end().unwrap();
        if !demo.frozen().unwrap() {
            // The window had ended, or the watchdog was quicker.
            let _ = demo.freeze(false);
            continue;
        }
        hit += 1;
        std::thread::sleep(Duration::from_millis(100));
        assert!(demo.frozen().unwrap(), "somebody thawed it: this test proves nothing");
        // What only looks changes nothing.
        engine::list(work.path()).unwrap();
        assert!(demo.frozen().unwrap());
        // Any writer of the work directory will do, and says what it found.
        let ended = engine::run(["resume", "snapshot-2", "--work-dir", &text]).unwrap();
        assert!(ended.code == Some(1), "{ended:#?}");
        let ended =
            engine::run(["commit", "nobody-has-this-name", &target, "--work-dir", &text, "--overwrite"])
                .unwrap();
        ended.must_fail(3, &["was left frozen by a killed engine"]).unwrap();
        demo.goes_on().unwrap();
        host::must_be_clean(&programs, work.path()).unwrap();
    }
    println!("{hit} of {tried} kills left it frozen; all were thawed by the next engine");
    // A pause by its owner is not taken for one of ours.
    demo.freeze(true).unwrap();
    let _ = engine::run(["commit", "nobody-has-this-name", &target, "--work-dir", &text]).unwrap();
    assert!(demo.frozen().unwrap(), "its owner's pause was undone");
    demo.freeze(false).unwrap();
    engine::run([
        "commit",
        demo.name(),
        &target,
        "--work-dir",
        &text,
        "--wait",
        "--max-pause",
        "100ms",
        "--overwrite",
    ])
    .unwrap()
    .must_succeed()
    .unwrap();
}

/// An engine in another process; killed on drop.
struct Other(Child, BufReader<std::process::ChildStdout>);

impl Other {
    /// Starts it and waits until it is inside its window.
    fn start(scene: &Scene, how: &str) -> Other {
        let work = scene.disk.path().join(bench::unique("other"));
        let mut command = Command::new(DOOMED);
        command.arg(scene.demo.0.name()).arg(work).arg(how).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut other = Other(child, output);
        assert_eq!(other.line(), "now\n", "{how}");
        other
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// While one engine has the container frozen, another neither takes that for a pause by its owner nor thaws it: it waits for its turn. Breaks without
/// `pipeline/turn.rs`.
#[test]
fn two_engines_take_turns_at_the_freezer() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    let mut mine = scene.session(bench::policy(GateChoice::Freezer));
    for opened_before in [true, false] {
        let mut other = Other::start(&scene, "linger");
        let began = Instant::now();
        assert!(scene.demo.frozen());
        if !opened_before {
            // The look whether it is paused comes while it is frozen by the other one.
            mine = scene.session(bench::policy(GateChoice::Freezer));
        }
        let before = scene.live();
        let made = cut(&mut mine);
        assert_eq!(made.pause.gate, Gate::Freezer, "{made:?}");
        println!("the other's window: {}, ours after {:?}: {made:?}", other.line().trim(), began.elapsed());
        assert!(began.elapsed() > Duration::from_millis(200), "it did not wait: {:?}", began.elapsed());
        assert!(other.0.wait().unwrap().success(), "the other engine made no cut");
        assert!(!scene.demo.frozen());
        if !opened_before {
            scene.frozen(mine, &before);
            break;
        }
    }
    scene.goes_on();
}

/// Two commands at once, again and again, on a container that stores through a shared mapping, where no event would tell that the other engine has thawed it:
/// every frozen tree is one instant.
#[test]
fn two_engines_at_once_make_two_right_snapshots() {
    if !bench::root() {
        return;
    }
    let programs = host::programs();
    let mut scene = Scene::busy(1);
    scene.worker.ask("map /srv/map 262144").unwrap();
    scene.worker.ask("storing /srv/map").unwrap();
    let root = scene.disk.path().join("work");
    let (mut made, mut refused) = (0, 0);
    let wanted = times("SNAPSHOT_TWO_ENGINES", 4);
    for n in 0.. {
        if made >= wanted {
            break;
        }
        assert!(refused < 40, "{made} made, {refused} refused");
        // In one work directory and in two.
        let works = [root.join("a"), root.join(if n % 2 == 0 { "a" } else { "b" })];
        let start = |work: &Path| {
            fs::create_dir_all(work).unwrap();
            let target = format!("oci:{}:t{}", work.join("layout").display(), bench::unique(""));
            let mut command = engine(["commit", scene.demo.0.name(), &target, "--wait", "--gate", "freezer"]);
            command.args(["--max-pause", "500ms", "--output", "json", "--work-dir"]).arg(work);
            Started::new(&mut command).unwrap()
        };
        let before = scene.live();
        let runs = works.each_ref().map(|work| start(work));
        let ended = runs.map(|run| run.end().unwrap());
        let after = scene.live();
        for ended in ended {
            if ended.code != Some(0) {
                ended.must_fail(1, &["budget", "help: "]).unwrap();
                refused += 1;
                continue;
            }
            let result = ended.json().unwrap();
            assert_eq!(result["gate"], "freezer", "{result:#}");
            let frozen = Path::new(result["old_upper_dir"].as_str().unwrap());
            scene.judge(frozen, &before, &after);
            let bytes = fs::read(frozen.join("srv/map")).unwrap();
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let (first, last) = (word(0), word(bytes.len() - 8));
            assert!(first == last || first == last + 1, "first {first}, last {last}: {result:#}");
            made += 1;
        }
        assert!(!scene.demo.frozen());
    }
    println!("{made} snapshots in pairs, {refused} refused");
    host::must_be_clean(&programs, &root).unwrap();
    scene.worker.ask("stored").unwrap();
    scene.goes_on();
}

/// Stopped with the fence up: the held go on at its deadline, without the engine.
#[test]
fn an_engine_stopped_with_the_fence_up_holds_nobody() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::busy(2);
    for _ in 0..5 {
        let _other = Other::start(&scene, "stop-fence");
        let longest: u64 = scene.worker.ask("writes /srv/f 50").unwrap().parse().unwrap();
        // The writer may lose its processor besides.
        assert!(Duration::from_nanos(longest) < FENCE_MAX + Duration::from_millis(300), "{longest} ns");
        println!("the longest write: {:?}", Duration::from_nanos(longest));
    }
    scene.goes_on();
}
