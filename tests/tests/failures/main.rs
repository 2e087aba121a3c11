//! What happens when something goes wrong. For every fault: nothing wrong is called a snapshot, nobody is held longer than allowed, no container
//! is left frozen, the error says what to do. `docs/reliability.md` has the table. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

mod abandoned;
mod disk;
mod engines;
mod losses;
mod many;
mod signals;
mod tasks;

use std::path::{Path, PathBuf};

use snapshot_engine::CommitOptions;
use snapshot_engine::demo::Workload;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::model::fault::Fault;
use snapshot_engine::pipeline::progress::{Progress, Quiet};
use snapshot_engine::pipeline::session::{Made, Session, Tracking};
use snapshot_engine::pipeline::{self};
use snapshot_engine::track::Tables;
use snapshot_tests::bench::{self, Disk, Running};
use snapshot_tests::causal;
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const INMATE: &str = env!("CARGO_BIN_EXE_inmate");
const DOOMED: &str = env!("CARGO_BIN_EXE_doomed");
const CAUSAL: &str = "srv/causal";

/// How often something is repeated: a little in CI, more when asked for.
fn times(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// A container with a worker in it, and writers if wanted.
struct Scene {
    // Dropped in this order.
    worker: Worker,
    demo: Running,
    disk: Disk,
    threads: usize,
}

impl Scene {
    fn new(kind: &str) -> Scene {
        let disk = Disk::new(kind).unwrap();
        let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
        let worker = Worker::start(WORKER, &demo).unwrap();
        Scene { worker, demo, disk, threads: 0 }
    }

    /// The same with writers whose tree can be judged.
    fn busy(threads: usize) -> Scene {
        let mut scene = Scene::new("ext4");
        scene.worker.ask(&format!("causal /{CAUSAL} {threads}")).unwrap();
        scene.threads = threads;
        scene
    }

    fn open(
        &self,
        policy: Policy,
        tables: Tables,
        progress: &dyn Progress,
    ) -> Result<Session, pipeline::Error> {
        let options = CommitOptions::default().gate(policy.choice);
        let work = self.disk.path().join(bench::unique("engine"));
        let tracking = Tracking { tables, fault: 0 };
        Session::open_with(self.demo.target().unwrap(), &options, &work, policy, tracking, progress)
    }

    fn session(&self, policy: Policy) -> Session {
        self.open(policy, Tables::default(), &Quiet).unwrap()
    }

    fn live(&self) -> Vec<i64> {
        causal::newest(&self.demo.upper().join(CAUSAL).as_path().into(), self.threads)
    }

    /// Freezes the shadow. What `before` says was complete must be there, no later instant may, and it is one instant.
    fn frozen(&self, session: Session, before: &[i64]) -> PathBuf {
        let after = self.live();
        let to = self.disk.path().join(bench::unique("frozen"));
        session.freeze(&to, &Quiet).unwrap();
        self.judge(&to, before, &after);
        to
    }

    fn judge(&self, tree: &Path, before: &[i64], after: &[i64]) {
        if self.threads == 0 {
            return;
        }
        let rounds = causal::judge(&tree.join(CAUSAL).as_path().into(), self.threads).unwrap();
        let late = rounds.iter().zip(before).any(|(cut, before)| cut + 1 < *before);
        let early = rounds.iter().zip(after).any(|(cut, after)| *cut > *after);
        assert!(!late && !early, "{before:?} before, {after:?} after, and the tree has {rounds:?}");
    }

    /// Nobody wishes it frozen, and it writes.
    fn goes_on(&mut self) {
        let wish = std::fs::read_to_string(self.demo.cgroup().unwrap().join("cgroup.freeze")).unwrap();
        assert_eq!(wish.trim(), "0", "it is or will be frozen");
        self.worker.ask("writes /srv/goes-on 3").unwrap();
    }
}

/// A cut, in a few goes: a busy machine uses up budgets.
fn cut(session: &mut Session) -> Made {
    let mut refused = Vec::new();
    for _ in 0..5 {
        match session.cut(&Quiet) {
            Ok(made) => return made,
            Err(e) => refused.push(say(&e)),
        }
    }
    panic!("no cut: {refused:#?}")
}

/// An error with its causes and its remedy, as the command prints it.
fn say(error: &pipeline::Error) -> String {
    format!("{}; help: {}", error.chain(), error.remedy().unwrap_or_default())
}
