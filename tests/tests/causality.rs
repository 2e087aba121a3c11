//! G1: no frozen tree shows B without A. Threads in a container count in a known order (see `snapshot_tests::causal`) while 200
//! snapshots are cut at random moments with every gate; each is frozen to a plain directory and judged.
//!
//! What breaks it: leaving out the comparison of stamps in `Window::inside`, the reading of what is dirty, or any of the file systems' events
//! together with the sweeps. A single fault in the counting or the fence is caught by that comparison, or by the sweeps, and costs
//! attempts instead of truth; the tests at the end show it with planted faults, and that the judge is sharp.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use snapshot_ebpf::{FAULT_DROP_EVENTS, FAULT_NO_FENCE};
use snapshot_engine::demo::Workload;
use snapshot_engine::demo::content::noise;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Made;
use snapshot_tests::bench::{self, Disk, Running};
use snapshot_tests::causal;
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const ROOT: &str = "srv/causal";

/// A container with writers in it.
struct Scene {
    disk: Disk,
    demo: Running,
    worker: Option<Worker>,
    threads: usize,
}

impl Scene {
    fn new(kind: &str) -> Scene {
        let disk = Disk::new(kind).unwrap();
        let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
        Scene { disk, demo, worker: None, threads: 0 }
    }

    /// Other writers, from the beginning.
    fn begin(&mut self, threads: usize) {
        if let Some(mut worker) = self.worker.take() {
            worker.ask("quiet").unwrap();
            fs::remove_dir_all(self.demo.root().unwrap().join(ROOT)).unwrap();
        }
        let mut worker = Worker::start(WORKER, &self.demo).unwrap();
        worker.ask(&format!("causal /{ROOT} {threads}")).unwrap();
        self.worker = Some(worker);
        self.threads = threads;
    }

    fn live(&self) -> Vec<i64> {
        causal::newest(&self.demo.upper().join(ROOT).as_path().into(), self.threads)
    }

    /// One session: `cuts` cuts, the last of them frozen and judged. What is wrong with the tree, or why there was no cut.
    fn snapshot(
        &self,
        policy: Policy,
        cuts: u32,
        fault: u32,
        moment: Duration,
    ) -> Result<(Vec<Made>, Verdict), String> {
        let work = self.disk.path().join("engine");
        let frozen = self.disk.path().join("frozen");
        let target = self.demo.target().unwrap();
        let mut session =
            bench::session(target, &work, policy, fault).map_err(|e| format!("no session: {e:#}"))?;
        let mut made = Vec::new();
        let mut before = Vec::new();
        for _ in 0..cuts {
            std::thread::sleep(moment);
            before = self.live();
            made.push(session.cut(&Quiet).map_err(|e| format!("no cut: {:#}", anyhow::Error::from(e)))?);
        }
        let after = self.live();
        session.freeze(&frozen, &Quiet).map_err(|e| format!("not frozen: {:#}", anyhow::Error::from(e)))?;
        let verdict = causal::judge(&frozen.join(ROOT).as_path().into(), self.threads).and_then(|rounds| {
            // Whatever was complete before the cut is there, and nothing that began after it.
            let late = rounds.iter().zip(&before).any(|(cut, before)| cut + 1 < *before);
            let early = rounds.iter().zip(&after).any(|(cut, after)| *cut > *after);
            if late || early {
                Err(format!("{before:?} were complete before, {after:?} after, and the tree has {rounds:?}"))
            } else {
                Ok(())
            }
        });
        fs::remove_dir_all(&frozen).unwrap();
        Ok((made, verdict))
    }
}

type Verdict = Result<(), String>;

fn random(n: u64, below: u64) -> u64 {
    u64::from_le_bytes(noise(n, 8).try_into().unwrap()) % below
}

/// Counts of cuts by gate asked for and gate used.
#[derive(Default)]
struct Tally {
    trees: u32,
    cuts: BTreeMap<(String, &'static str), u32>,
    refused: BTreeMap<String, u32>,
    misses: u64,
}

fn name(gate: Gate) -> &'static str {
    match gate {
        Gate::None => "none",
        Gate::Fence => "fence",
        Gate::Freezer => "freezer",
    }
}

fn trees(kind: &str, wanted: u32) {
    if !bench::root() {
        return;
    }
    let began = Instant::now();
    // Each gate has its turn twice at least.
    let wanted = bench::share(wanted).max(8);
    let mut scene = Scene::new(kind);
    if bench::tracker_if_allowed(&[&scene.demo.target().unwrap()]).unwrap().is_none() {
        return;
    }
    let mut tally = Tally::default();
    let choices = [GateChoice::Fence, GateChoice::Freezer, GateChoice::Auto, GateChoice::None];
    let mut tried = 0u64;
    while tally.trees < wanted {
        assert!(tried < u64::from(wanted) * 3, "too many attempts came to nothing: {:?}", tally.refused);
        let crew = u64::from(bench::share(25).max(4));
        if tried.is_multiple_of(crew) {
            scene.begin(2 + (tried / crew % 3) as usize);
        }
        let choice = choices[(tried % 4) as usize];
        let moment = Duration::from_micros(random(tried, 20_000));
        let cuts = 1 + random(tried ^ 77, 3) as u32;
        tried += 1;
        match scene.snapshot(bench::policy(choice), cuts, 0, moment) {
            Ok((made, verdict)) => {
                assert_eq!(verdict, Ok(()), "{kind}, snapshot {tried}: {made:?}");
                tally.trees += 1;
                for made in made {
                    *tally.cuts.entry((choice.to_string(), name(made.pause.gate))).or_default() += 1;
                    tally.misses += made.misses;
                    assert!(choice.allows(made.pause.gate), "{made:?}");
                }
            }
            // A busy container has no moment for gate none, or no fence that drains: said, and nothing wrong is made.
            Err(why) => {
                assert!(why.starts_with("no cut"), "{why}");
                *tally.refused.entry(format!("{choice}: {why}")).or_default() += 1;
            }
        }
    }
    println!(
        "{kind}: {} trees in {:.1} s; cuts (asked, used): {:?}",
        tally.trees,
        began.elapsed().as_secs_f64(),
        tally.cuts
    );
    println!("{kind}: attempts that came to nothing: {:?}; tracker misses: {}", tally.refused, tally.misses);
    for gate in ["fence", "freezer", "none"] {
        let used: u32 = tally.cuts.iter().filter(|((_, used), _)| *used == gate).map(|(_, n)| n).sum();
        assert!(used > 0, "no cut was made with gate {gate}");
    }
    // T6: the tracker has an event for everything these writers do.
    assert_eq!(tally.misses, 0, "the tracker missed changes");
}

#[test]
fn no_tree_of_120_on_ext4_shows_b_without_a() {
    trees("ext4", 120);
}

#[test]
fn no_tree_of_80_on_xfs_shows_b_without_a() {
    trees("xfs", 80);
}

#[test]
fn no_tree_of_40_on_btrfs_shows_b_without_a() {
    trees("btrfs", 40);
}

#[test]
fn no_tree_of_40_on_tmpfs_shows_b_without_a() {
    trees("tmpfs", 40);
}

/// The workload and the judge are sharp: a plain copy of the live tree is found out.
#[test]
fn a_copy_without_a_cut_is_found_out() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::new("ext4");
    scene.begin(3);
    let to = scene.disk.path().join("copy");
    let mut found = Vec::new();
    for _ in 0..20 {
        // Files that vanish on the way make it fail, which is not what is judged here.
        fs::create_dir(&to).unwrap();
        for k in (0..3).rev() {
            let from = scene.demo.upper().join(ROOT).join(format!("t{k}"));
            let _ = Command::new("cp").arg("-a").arg(from).arg(&to).output().unwrap();
        }
        if let Err(why) = causal::judge(&to.as_path().into(), 3) {
            found.push(why);
        }
        fs::remove_dir_all(&to).unwrap();
    }
    println!("{} of 20 plain copies are wrong, such as: {:?}", found.len(), found.first());
    assert!(found.len() >= 10, "the judge finds nothing wrong with {} of 20 plain copies", 20 - found.len());
}

/// The judge takes no two instants for one, and no torn record for a whole one.
#[test]
fn the_judge_is_sharp() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let roots = live.as_path().into();
    let writers = causal::Writers::start(&roots, 2).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    writers.stop().unwrap();
    assert!(causal::judge(&roots, 2).is_ok(), "{:?}", causal::judge(&roots, 2));
    let spoilt = |what: &str, spoil: &dyn Fn(&Path)| {
        let copy = dir.path().join(what);
        assert!(Command::new("cp").arg("-a").arg(&live).arg(&copy).status().unwrap().success());
        spoil(&copy.join("t0"));
        let verdict = causal::judge(&copy.as_path().into(), 2);
        assert!(verdict.is_err(), "{what}");
    };
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    spoilt("a torn page", &|d| edit(&d.join("a.db"), &|b| b[4000] ^= 1));
    spoilt("a lost page", &|d| edit(&d.join("d.db"), &|b| b.copy_within(0..4096, 4096)));
    spoilt("a torn line", &|d| edit(&d.join("b.log"), &|b| b.truncate(b.len() - 1)));
    spoilt("a lost tail", &|d| edit(&d.join("b.log"), &|b| b.truncate(b.len() - 400)));
    spoilt("a file half in place", &|d| edit(&d.join("c"), &|b| b.truncate(100)));
    spoilt("b without a", &|d| {
        edit(&d.join("b.log"), &|b| {
            let n = causal::newest(&d.parent().unwrap().into(), 1)[0].unsigned_abs();
            b.extend(snapshot_engine::demo::content::line(n + 1));
        });
    });
    spoilt("an unlink without its create", &|d| {
        for entry in fs::read_dir(d).unwrap().flatten() {
            if entry.file_name().to_str().unwrap().starts_with("u-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    });
    spoilt("what another thread has seen", &|d| {
        fs::write(d.join("x"), snapshot_engine::demo::content::page(1 << 40)).unwrap();
    });
}

/// T6: a tracker that loses one event in 16 is noticed by the sweeps: what is frozen is right all the same, or nothing is, and the
/// misses are counted. Breaks without `sweep_before` and `sweep_after` in `Session::cut`.
#[test]
fn t6_dropped_events_are_swept_up() {
    if !bench::root() {
        return;
    }
    let scene = Scene::new("ext4");
    let dir = scene.demo.root().unwrap().join("srv");
    for n in 0..100 {
        fs::write(dir.join(format!("file{n}")), "x").unwrap();
    }
    let work = scene.disk.path().join("engine");
    let policy = bench::policy(GateChoice::Auto);
    let mut session = bench::session(scene.demo.target().unwrap(), &work, policy, FAULT_DROP_EVENTS).unwrap();
    let mut misses = 0;
    for turn in ["1", "2", "3"] {
        // One event each.
        for n in 0..100 {
            let file = dir.join(format!("file{n}"));
            rustix::fs::lsetxattr(file, "user.turn", turn.as_bytes(), XattrFlags::empty()).unwrap();
        }
        misses += session.cut(&Quiet).unwrap().misses;
    }
    assert!(misses > 0, "nobody noticed that events were dropped");
    let frozen = scene.disk.path().join("frozen");
    session.freeze(&frozen, &Quiet).unwrap();
    for n in 0..100 {
        let mut value = [0; 8];
        let file = frozen.join(format!("srv/file{n}"));
        assert_eq!(rustix::fs::lgetxattr(file, "user.turn", &mut value[..]).unwrap(), 1, "file{n}");
        assert_eq!(value[0], b'3', "file{n}");
    }
    println!("{misses} misses");
}

/// T6 under load: right, or nothing.
#[test]
fn t6_dropped_events_under_load_make_no_wrong_tree() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::new("ext4");
    scene.begin(2);
    let (mut misses, mut right, mut refused) = (0, 0, BTreeMap::<String, u32>::new());
    for n in 0..bench::share(30) {
        let choice = [GateChoice::Auto, GateChoice::Fence, GateChoice::Freezer][n as usize % 3];
        match scene.snapshot(bench::policy(choice), 2, FAULT_DROP_EVENTS, Duration::from_millis(3)) {
            Ok((made, verdict)) => {
                assert_eq!(verdict, Ok(()), "{made:?}");
                misses += made.iter().map(|m| m.misses).sum::<u64>();
                right += 1;
            }
            Err(why) => *refused.entry(why).or_default() += 1,
        }
    }
    println!("{right} right with {misses} misses, refused: {refused:#?}");
}

/// A fence that holds nobody: validation (G2) voids what it lets through, so it costs cuts and never makes a wrong one.
#[test]
fn a_fence_that_holds_nobody_makes_no_wrong_cut() {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::new("ext4");
    scene.begin(3);
    let (mut void, mut cuts) = (0, 0);
    for _ in 0..bench::share(15) {
        match scene.snapshot(bench::policy(GateChoice::Fence), 2, FAULT_NO_FENCE, Duration::from_millis(2)) {
            Ok((made, verdict)) => {
                assert_eq!(verdict, Ok(()), "{made:?}");
                void += made.iter().map(|m| m.attempts - 1).sum::<u32>();
                cuts += 1;
            }
            Err(_) => void += 1,
        }
    }
    println!("{cuts} cuts stood, {void} attempts were void");
    assert!(void > 0, "a fence that holds nobody was never noticed");
}
