//! Many containers one after another, each with other writers, each cut many times with each gate in turn.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use snapshot_ebpf::{
    FAULT_DROP_FEW, FAULT_EARLY_READ, FAULT_IGNORE_MMAP, FAULT_NO_COUNT, FAULT_NO_SETTLE, FAULT_NO_SWEEP,
    FAULT_SLOW_FAULTS,
};
use snapshot_engine::CommitOptions;
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::kernel::signals;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::{GateChoice, TrackerChoice};
use snapshot_engine::model::reference::ContainerRef;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Session;
use snapshot_engine::pipeline::{CutRequest, Engine, Stages as _};

use super::dice::Dice;
use super::op::Kind;
use super::post::Post;
use super::report::Report;
use super::scene::Scene;
use super::tree::Room;
use super::writer::{Crew, Pace};
use super::writers;
use crate::bench::{self, Disk};

/// Refusals in a row after which a session has had its chance.
const PATIENCE: u64 = 4;

/// A fault to plant, with the guards that would mask it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// T2: what is taken is read without waiting for the calls under way.
    NoSettle,
    /// T1: one event in a thousand is dropped. Without the sweeps (T6), which are there to find just that.
    DropEvents,
    /// T4: nobody asks whether a file is mapped.
    IgnoreMmap,
    /// G1: the residual is read before the gate is up.
    EarlyRead,
    /// G1: calls are not counted, so nobody waits for their end.
    NoCount,
}

impl Plant {
    /// All of them, with their words.
    pub const ALL: [(Plant, &'static str); 5] = [
        (Plant::NoSettle, "no-settle"),
        (Plant::DropEvents, "drop-events"),
        (Plant::IgnoreMmap, "ignore-mmap"),
        (Plant::EarlyRead, "early-read"),
        (Plant::NoCount, "no-count"),
    ];

    /// What the engine is told. The sweeps (T6) are off with each: a change without an event, which most of these faults come down to, is what they look for.
    #[must_use]
    pub fn fault(self) -> u32 {
        FAULT_NO_SWEEP
            | match self {
                Plant::NoSettle => FAULT_NO_SETTLE,
                Plant::DropEvents => FAULT_DROP_FEW,
                Plant::IgnoreMmap => FAULT_IGNORE_MMAP,
                Plant::EarlyRead => FAULT_EARLY_READ,
                Plant::NoCount => FAULT_NO_COUNT,
            }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything comes from it.
    pub seed: u64,
    /// The first scene; the ones before it are left out.
    pub scene: u64,
    /// The end, if the cuts are not made before.
    pub time: Duration,
    /// The end, if the time is not up before.
    pub cuts: u64,
    /// Cuts of one session, before the last of them is frozen as a user's would be.
    pub session: u64,
    /// Kinds of writers; all, in changing mixes, if empty.
    pub kinds: Vec<Kind>,
    /// File systems, in turn.
    pub file_systems: Vec<String>,
    /// Gates, in turn.
    pub gates: Vec<GateChoice>,
    /// Where the processes stand, in turn; changing if empty.
    pub posts: Vec<Post>,
    /// Threads; a changing number if 0.
    pub threads: u64,
    /// A fault to plant: the run ends when it is found.
    pub plant: Option<Plant>,
    /// Page faults take a millisecond between the event and what it tells of (T4).
    pub slow_faults: bool,
    /// The program that calls `init_if_asked` and `write_if_asked`.
    pub program: PathBuf,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new(program: &Path) -> Options {
        Options {
            seed: 1,
            scene: 0,
            time: Duration::from_secs(300),
            cuts: u64::MAX,
            session: 12,
            kinds: Vec::new(),
            file_systems: vec!["ext4".into(), "xfs".into()],
            gates: vec![GateChoice::Fence, GateChoice::Freezer, GateChoice::Auto, GateChoice::None],
            posts: Vec::new(),
            threads: 0,
            plant: None,
            slow_faults: false,
            program: program.to_owned(),
        }
    }
}

/// Runs.
///
/// # Errors
/// When the harness itself fails; a violation is no error but in the report.
pub fn run(options: &Options, say: &mut dyn FnMut(&str)) -> Result<Report> {
    let mut run = Run { options, report: Report::new(options.seed), began: Instant::now(), say };
    let mut disks: Vec<(String, Disk)> = Vec::new();
    for n in options.scene.. {
        if run.over() {
            break;
        }
        let count = options.file_systems.len() as u64;
        let Some(kind) = options.file_systems.get(usize::try_from(n % count.max(1))?) else {
            bail!("no file system is given");
        };
        if !disks.iter().any(|(name, _)| name == kind) {
            disks.push((kind.clone(), Disk::new(kind)?));
        }
        if let Some((_, disk)) = disks.iter().find(|(name, _)| name == kind) {
            run.scene(n, kind, disk)?;
        }
    }
    run.report.took = run.began.elapsed();
    Ok(run.report)
}

/// The crew of a scene: a mix of kinds, a number of threads, a pace.
fn crew(options: &Options, n: u64, dice: &mut Dice) -> Crew {
    let mut kinds = options.kinds.clone();
    if kinds.is_empty() {
        // Kinds that only the freezer holds keep the other gates from being tried at all: every third scene has them.
        let all = || writers::ALL.iter().copied();
        kinds = all().filter(|kind| !kind.freezer_only).collect();
        // Few kinds at a time meet in ways that all at once do not (swarm testing); something to work on is always made.
        if dice.one_in(2) {
            kinds.retain(|kind| ["create", "write"].contains(&kind.name) || dice.one_in(2));
        }
        if n % 3 == 2 {
            kinds.extend(all().filter(|kind| kind.freezer_only));
        }
    }
    let threads = match options.threads {
        0 => *dice.pick(&[1, 2, 2, 3, 4, 4, 8, 8, 16, 64]).unwrap_or(&2),
        n => n,
    };
    let pace = match threads {
        1..=2 => *dice.pick(&[Pace::Flat, Pace::Bursts, Pace::Bursts]).unwrap_or(&Pace::Bursts),
        3..=8 => *dice.pick(&[Pace::Bursts, Pace::Slow]).unwrap_or(&Pace::Bursts),
        _ => Pace::Slow,
    };
    let room = Room {
        names: if threads > 8 { 44 } else { 70 },
        bytes: ((24 << 20) / threads).clamp(256 << 10, 10 << 20),
    };
    let processes = 1 + dice.below(threads.min(8));
    let mut posts = options.posts.clone();
    if posts.is_empty() {
        // Where the first process stands changes from scene to scene; every other scene has only one post.
        posts = Post::ALL.iter().map(|(post, _)| *post).collect();
        let first = dice.below(posts.len() as u64);
        posts.rotate_left(usize::try_from(first).unwrap_or(0));
        if dice.one_in(2) {
            posts.truncate(1);
        }
    }
    Crew { seed: Dice::new(&[options.seed, n]).roll(), threads, kinds, pace, room, processes, posts }
}

/// A violation with the verdict on the live tree: if that does not fit the model either, the harness is to blame.
fn audited(scene: &mut Scene, verdict: Result<(), String>) -> Result<Result<(), String>> {
    let Err(why) = verdict else { return Ok(verdict) };
    Ok(Err(match scene.audit()? {
        Ok(()) => why,
        Err(live) => {
            format!("{why}\nThe live tree does not fit the model either, so the model is wrong:\n{live}")
        }
    }))
}

fn posts(crew: &Crew) -> String {
    crew.posts.iter().map(|post| post.word()).collect::<Vec<_>>().join(",")
}

struct Run<'a> {
    options: &'a Options,
    report: Report,
    began: Instant,
    say: &'a mut dyn FnMut(&str),
}

/// Where a cut was made; for messages.
struct Place<'a> {
    n: u64,
    file_system: &'a str,
    asked: &'a str,
    crew: &'a Crew,
}

impl Run<'_> {
    fn over(&self) -> bool {
        let found = self.options.plant.is_some() && !self.report.violations.is_empty();
        found
            || signals::caught().is_some()
            || self.began.elapsed() >= self.options.time
            || self.report.cuts() >= self.options.cuts
    }

    fn scene(&mut self, n: u64, file_system: &str, disk: &Disk) -> Result<()> {
        let mut dice = Dice::new(&[self.options.seed, n, 1]);
        let crew = crew(self.options, n, &mut dice);
        let redirect_dir = dice.one_in(2);
        let mut scene = Scene::start(&self.options.program, disk, &crew, redirect_dir)?;
        let mut gates = self.options.gates.clone();
        let turn = usize::try_from(n / self.options.file_systems.len().max(1) as u64)?;
        let count = gates.len().max(1);
        gates.rotate_left(turn % count);
        if crew.kinds.iter().any(|kind| kind.freezer_only) && self.options.plant.is_none() {
            // The others would be refused.
            gates.retain(|gate| gate.allows(Gate::Freezer));
        }
        for gate in gates {
            if self.over() {
                break;
            }
            let asked = gate.to_string();
            let place = Place { n, file_system, asked: &asked, crew: &crew };
            if !self.report.untracked.contains(file_system) {
                self.session(&mut scene, gate, &place, &mut dice)?;
            }
            if self.report.untracked.contains(file_system) {
                self.still(&mut scene, &place)?;
                break;
            }
            scene.alive()?;
        }
        if let Err(why) = scene.audit()? {
            bail!("--seed {} --scene {n}: the live tree does not fit the model: {why}", self.options.seed);
        }
        self.report.done(&crew.kinds, &scene.checker.tally);
        let line = format!(
            "scene {n}: {file_system}, {} threads of {} processes ({}), {}, {} kinds: {} cuts, {} violations, {} refusals, {:.1} s",
            crew.threads,
            crew.processes,
            posts(&crew),
            crew.pace.word(),
            crew.kinds.len(),
            self.report.cuts(),
            self.report.violations.len(),
            self.report.refusals(),
            self.began.elapsed().as_secs_f64()
        );
        (self.say)(&line);
        Ok(())
    }

    /// A session with its cuts, each looked at; the last is frozen and looked at again.
    fn session(
        &mut self,
        scene: &mut Scene,
        gate: GateChoice,
        place: &Place<'_>,
        dice: &mut Dice,
    ) -> Result<()> {
        let slow = if self.options.slow_faults { FAULT_SLOW_FAULTS } else { 0 };
        let fault = self.options.plant.map_or(slow, Plant::fault);
        let work = scene.place().join("engine");
        let mut session: Session = match bench::session(scene.target()?, &work, bench::policy(gate), fault) {
            Ok(session) => session,
            Err(e) => {
                let why = format!("{e:#}");
                if why.contains("--tracker none") {
                    ensure!(!bench::fentry_is_known(), "this kernel is known to allow a tracker: {why}");
                    // T5: said, and then done the other way.
                    (self.say)(&format!(
                        "{}: no tracker here, so `--tracker none`: {why}",
                        place.file_system
                    ));
                    self.report.untracked.insert(place.file_system.to_owned());
                } else {
                    self.report.refused(place.file_system, place.asked, &why);
                }
                return Ok(());
            }
        };
        let to = scene.place().join("frozen");
        let (mut last, mut refusals) = (None, 0);
        for _ in 0..self.options.session {
            if self.over() || refusals >= PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_micros(dice.below(15_000)));
            match session.cut(&Quiet) {
                Ok(made) => {
                    let window = (made.pause.between.from.0, made.pause.between.to.0);
                    session.replica(&to)?;
                    let verdict = scene.judge(&to, window)?;
                    self.count(place, made.pause.gate, audited(scene, verdict)?, "");
                    self.report.misses += made.misses;
                    (last, refusals) = (Some((window, made.pause.gate)), 0);
                }
                Err(e) => {
                    let error = anyhow::Error::from(e);
                    self.report.refused(place.file_system, place.asked, &format!("{error:#}"));
                    (last, refusals) = (None, refusals + 1);
                }
            }
        }
        if let Some((window, gate)) = last {
            session.freeze(&to, &Quiet)?;
            let verdict = scene.judge(&to, window)?;
            self.report.whole += 1;
            if verdict.is_err() {
                self.count(place, gate, verdict, ", frozen");
            }
        }
        Ok(())
    }

    /// Without a tracker each cut is a commit's first half.
    fn still(&mut self, scene: &mut Scene, place: &Place<'_>) -> Result<()> {
        for _ in 0..self.options.session {
            if self.over() {
                break;
            }
            let directory = scene.place().join("snapshot");
            std::fs::create_dir(&directory)?;
            let request = CutRequest {
                id: "snapshot-1752857512540089368".parse()?,
                directory: directory.clone(),
                container: ContainerRef::Name(scene.name().to_owned()),
                options: CommitOptions::default()
                    .tracker(TrackerChoice::None)
                    .max_pause(Nanos(10_000_000_000)),
            };
            let from = now();
            match Engine::default().cut(&request, &Quiet) {
                Ok(cut) => {
                    let verdict = scene.judge(&request.frozen(), (from, now()))?;
                    self.report.whole += 1;
                    self.count(place, cut.pause.gate, verdict, "");
                }
                Err(e) => {
                    let error = anyhow::Error::from(e);
                    self.report.refused(place.file_system, place.asked, &format!("{error:#}"));
                }
            }
            std::fs::remove_dir_all(&directory)?;
        }
        Ok(())
    }

    fn count(&mut self, place: &Place<'_>, gate: Gate, verdict: Result<(), String>, how: &str) {
        self.report.cut(place.file_system, place.asked, gate, verdict.is_ok());
        if let Err(why) = verdict {
            let kinds: Vec<&str> = place.crew.kinds.iter().map(|kind| kind.name).collect();
            let text = format!(
                "VIOLATION: --seed {} --scene {}, cut {}{how}, {} by {} (asked: {}), {} threads of {} processes ({}), {}, writers {}\n{why}",
                self.options.seed,
                place.n,
                self.report.cuts(),
                place.file_system,
                super::report::word(gate),
                place.asked,
                place.crew.threads,
                place.crew.processes,
                posts(place.crew),
                place.crew.pace.word(),
                kinds.join(",")
            );
            (self.say)(&text);
            self.report.violations.push(text);
        }
    }
}
