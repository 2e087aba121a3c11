//! G1 with real databases: every frozen tree is opened by the database itself, which recovers, finds nothing wrong, has every transaction that was
//! acknowledged before the cut and none that was begun after it.
//!
//! `SNAPSHOT_DATABASE_CUTS=50 cargo xtask test --tier root database` makes 50 cuts a database instead of 5; a third of them on XFS, the rest on ext4.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use snapshot_engine::demo::Workload;
use snapshot_engine::demo::content::noise;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Made;
use snapshot_tests::bench::{self, Disk, Running};
use snapshot_tests::database::git::Git;
use snapshot_tests::database::journal::{History, Load, explain};
use snapshot_tests::database::lmdb::Lmdb;
use snapshot_tests::database::postgres::Postgres;
use snapshot_tests::database::redis::Redis;
use snapshot_tests::database::sqlite::Sqlite;
use snapshot_tests::database::{self, DIRECTORY, Database};
use snapshot_tests::inside::Inside;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const INSIDE: &str = env!("CARGO_BIN_EXE_inside");
const CLIENTS: usize = 3;
/// How often each judge has to find something out.
const ROUNDS: usize = 2;

/// A database under load in a container. Dropped in this order.
struct Scene {
    load: Load,
    database: Box<dyn Database>,
    demo: Running,
    disk: Disk,
}

/// A frozen tree of it.
struct Frozen {
    at: PathBuf,
    made: Made,
    history: History,
}

impl Scene {
    fn new(kind: &str, mut database: Box<dyn Database>) -> Scene {
        let disk = Disk::new(kind).unwrap();
        // The judges of PostgreSQL are no root, and go through it.
        fs::set_permissions(disk.path().parent().unwrap(), PermissionsExt::from_mode(0o711)).unwrap();
        let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
        let inside = Inside::new(INSIDE, &demo).unwrap();
        let site = database::place(&inside).unwrap();
        let started = database.start(&site, CLIENTS);
        assert!(started.is_ok(), "{started:#?}; what is missing is installed by: cargo xtask setup --tests");
        let clients = (0..CLIENTS).map(|k| database.client(&site, k).unwrap()).collect();
        let load = Load::start(clients, database.pace()).unwrap();
        Scene { load, database, demo, disk }
    }

    fn live(&self) -> PathBuf {
        self.demo.upper().join(DIRECTORY)
    }

    /// One session, one cut, frozen to `name`; or why not.
    fn freeze(&mut self, name: &str, choice: GateChoice, moment: Duration) -> Result<Frozen, String> {
        let say = |what: &str, e: anyhow::Error| format!("{what}: {e:#}");
        let work = self.disk.path().join("engine");
        let mut session = bench::session(self.demo.target().unwrap(), &work, bench::policy(choice), 0)
            .map_err(|e| say("no session", e))?;
        std::thread::sleep(moment);
        let made = session.cut(&Quiet).map_err(|e| say("no cut", e.into()))?;
        let at = self.disk.path().join(name);
        session.freeze(&at, &Quiet).map_err(|e| say("not frozen", e.into()))?;
        let at_work = self.load.check();
        assert!(at_work.is_ok(), "a client cannot go on: {at_work:#?}");
        Ok(Frozen { at: at.join(DIRECTORY), made, history: self.load.history() })
    }

    /// The same with the gate that holds everybody, a while after the one before.
    fn surely(&mut self, name: &str) -> Frozen {
        for _ in 0..10 {
            match self.freeze(name, GateChoice::Freezer, Duration::from_millis(300)) {
                Ok(frozen) => return frozen,
                Err(why) => assert!(why.starts_with("no cut"), "{why}"),
            }
        }
        panic!("ten times no cut with the freezer");
    }

    /// What the database says of a copy of a tree, and whether one instant of a window explains it.
    fn judge(
        &self,
        tree: &Path,
        spoil: &dyn Fn(&Path),
        history: &History,
        window: (u64, u64),
    ) -> anyhow::Result<()> {
        let copy = self.disk.path().join("judged");
        assert!(Command::new("cp").arg("-a").args([tree, &copy]).status().unwrap().success());
        spoil(&copy);
        let verdict = self.database.judge(&copy, CLIENTS);
        fs::remove_dir_all(&copy).unwrap();
        Ok(explain(history, &verdict?, Nanos(window.0), Nanos(window.1))?)
    }

    fn remove(&self, name: &str) {
        fs::remove_dir_all(self.disk.path().join(name)).unwrap();
    }
}

fn window(made: &Made) -> (u64, u64) {
    (made.pause.between.from.0, made.pause.between.to.0)
}

fn random(n: u64, below: u64) -> u64 {
    u64::from_le_bytes(noise(n, 8).try_into().unwrap()) % below
}

fn wanted() -> u32 {
    std::env::var("SNAPSHOT_DATABASE_CUTS").map_or(5, |text| text.parse().unwrap())
}

/// So many cuts with the three gates in turn, each judged.
fn recovers(make: &dyn Fn() -> Box<dyn Database>) {
    if !bench::root() {
        return;
    }
    let all = wanted();
    let on_xfs = all.div_ceil(3).min(all - 1);
    for (kind, cuts) in [("ext4", all - on_xfs), ("xfs", on_xfs)] {
        cut(kind, cuts, make());
    }
}

fn cut(kind: &str, cuts: u32, database: Box<dyn Database>) {
    let began = Instant::now();
    let mut scene = Scene::new(kind, database);
    let (mut used, mut refused) = (BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
    let (mut stood, mut misses, mut longest) = (0, 0, Duration::ZERO);
    for turn in 0u64.. {
        if stood == cuts {
            break;
        }
        assert!(turn < u64::from(cuts) * 4 + 12, "too many attempts came to nothing: {refused:#?}");
        let choice = [GateChoice::Auto, GateChoice::Fence, GateChoice::Freezer][(turn % 3) as usize];
        match scene.freeze("frozen", choice, Duration::from_micros(random(turn, 50_000))) {
            Ok(Frozen { at, made, history }) => {
                let verdict = scene.judge(&at, &|_| {}, &history, window(&made));
                assert!(
                    verdict.is_ok(),
                    "{kind}, cut {turn}, {choice}: {:#}: {made:?}",
                    verdict.unwrap_err()
                );
                assert!(choice.allows(made.pause.gate), "{made:?}");
                scene.remove("frozen");
                stood += 1;
                misses += made.misses;
                longest = longest.max(made.pause.pause());
                *used.entry(format!("{choice} -> {}", made.pause.gate)).or_default() += 1;
            }
            // Nothing wrong is made; and who stores through a mapping is never held by the fence (T4).
            Err(why) => {
                assert!(why.starts_with("no cut"), "{why}");
                *refused.entry(format!("{choice}: {why}")).or_default() += 1;
            }
        }
        if scene.database.mapped() {
            assert!(used.keys().all(|k| k.ends_with("-> freezer")), "{used:?}");
        }
    }
    let database = format!("{:?}", scene.database);
    let done: usize = scene.load.stop().unwrap().iter().map(Vec::len).sum();
    println!(
        "{} on {kind}: {stood} cuts recovered in {:.0} s under {done} transactions; gates asked and used {used:?}; longest pause {longest:?}; \
         misses {misses}; refused {refused:?}",
        database.split(' ').next().unwrap(),
        began.elapsed().as_secs_f64()
    );
    assert_eq!(misses, 0, "T6: the tracker missed changes");
}

/// The judge is sharp: one vital file of a later cut in an earlier tree is found out, and so is a copy that takes its time. Either may come out
/// right by luck; so the former must be found at least once, and the latter is counted.
fn found_out(database: Box<dyn Database>) {
    if !bench::root() {
        return;
    }
    let mut scene = Scene::new("ext4", database);
    let vital = scene.database.vital();
    let (mut tried, mut found) = (0, Vec::new());
    while tried < ROUNDS {
        let (early, late) = (scene.surely("early"), scene.surely("late"));
        let read = |frozen: &Frozen| fs::read(frozen.at.join(vital)).ok();
        // A file that is not written all the time may need another pair.
        if read(&early).is_some() && read(&late).is_some() && read(&early) != read(&late) {
            let verdict =
                |spoil: &dyn Fn(&Path)| scene.judge(&early.at, spoil, &late.history, window(&early.made));
            verdict(&|_| {}).unwrap();
            let swap = |copy: &Path| {
                fs::copy(late.at.join(vital), copy.join(vital)).unwrap();
            };
            found.extend(verdict(&swap).err().map(|why| in_short(&why)));
            tried += 1;
        }
        scene.remove("early");
        scene.remove("late");
    }
    println!("{vital} of a later moment is found out {} times of {ROUNDS}: {found:#?}", found.len());
    assert!(!found.is_empty(), "{vital} of a later moment is never found out");

    let mut wrong = Vec::new();
    let to = scene.disk.path().join("slow");
    for _ in 0..ROUNDS {
        let began = now();
        slow_copy(&scene.live(), &to);
        let ended = now();
        let history = scene.load.history();
        wrong.extend(scene.judge(&to, &|_| {}, &history, (began, ended)).err().map(|why| in_short(&why)));
        scene.remove("slow");
    }
    println!("{} of {ROUNDS} slow copies are wrong: {wrong:#?}", wrong.len());
    scene.load.stop().unwrap();
}

/// The first line of a reason that says something, without the command that gave it.
fn in_short(why: &anyhow::Error) -> String {
    let text = format!("{why:#}");
    let from = ["PANIC", "exit status"].iter().find_map(|word| text.find(word)).unwrap_or(0);
    text[from..].lines().next().unwrap_or_default().chars().take(200).collect()
}

/// Everything below a directory, in the order of names, parents first. What vanishes meanwhile is passed over.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, fs::FileType)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        visit(&entry.path(), kind);
        if kind.is_dir() {
            walk(&entry.path(), visit);
        }
    }
}

/// What an ordinary backup program does with a tree that is written to, file after file and piece after piece.
fn slow_copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["-a", "--attributes-only"]).args([from, to]).output().is_ok());
    walk(from, &mut |path, kind| {
        let target = to.join(path.strip_prefix(from).unwrap());
        if !kind.is_file() || !target.exists() {
            return;
        }
        let Ok(mut source) = fs::File::open(path) else { return };
        let mut target = fs::File::create(target).unwrap();
        let mut piece = vec![0; 256 << 10];
        while let Ok(len) = source.read(&mut piece)
            && len > 0
        {
            target.write_all(&piece[..len]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

#[test]
fn database_sqlite_with_a_rollback_journal_recovers_from_every_cut() {
    recovers(&|| Box::new(Sqlite::Rollback));
}

#[test]
fn database_sqlite_with_a_log_recovers_from_every_cut() {
    recovers(&|| Box::new(Sqlite::Wal));
}

#[test]
fn database_postgres_recovers_from_every_cut() {
    recovers(&|| Box::new(Postgres::default()));
}

#[test]
fn database_redis_recovers_from_every_cut() {
    recovers(&|| Box::new(Redis::default()));
}

#[test]
fn database_lmdb_recovers_from_every_cut() {
    recovers(&|| Box::new(Lmdb::Written));
}

#[test]
fn database_lmdb_with_a_writable_map_recovers_from_every_cut() {
    recovers(&|| Box::new(Lmdb::Mapped));
}

#[test]
fn database_git_recovers_from_every_cut() {
    recovers(&|| Box::new(Git));
}

#[test]
fn database_judge_of_sqlite_with_a_rollback_journal_is_sharp() {
    found_out(Box::new(Sqlite::Rollback));
}

#[test]
fn database_judge_of_sqlite_with_a_log_is_sharp() {
    found_out(Box::new(Sqlite::Wal));
}

#[test]
fn database_judge_of_postgres_is_sharp() {
    found_out(Box::new(Postgres::default()));
}

#[test]
fn database_judge_of_redis_is_sharp() {
    found_out(Box::new(Redis::default()));
}

#[test]
fn database_judge_of_lmdb_is_sharp() {
    found_out(Box::new(Lmdb::Written));
}

#[test]
fn database_judge_of_lmdb_with_a_writable_map_is_sharp() {
    found_out(Box::new(Lmdb::Mapped));
}

#[test]
fn database_judge_of_git_is_sharp() {
    found_out(Box::new(Git));
}
