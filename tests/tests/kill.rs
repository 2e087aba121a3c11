//! The engine is killed, two hundred times, anywhere on its way; whatever it was doing, the container goes on and nothing half made is shown.
//!
//! `SNAPSHOT_KILL_SEED` repeats the moments of a run (as far as the machine does), `SNAPSHOT_KILLS` makes it longer or shorter. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use snapshot_engine::demo::Seed;
use snapshot_tests::engine::{self, Ended, Started, engine};
use snapshot_tests::host;
use snapshot_tests::listing::{self, Depth, Listing};
use snapshot_tests::root_or_skip;
use snapshot_tests::running::Running;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");

/// Every way to make a cut. The pauses allowed are long: here it matters that it is killed, not that it is quick.
const WAYS: [&[&str]; 4] = [
    &["--gate", "fence", "--max-pause", "20ms"],
    &["--gate", "freezer", "--max-pause", "200ms"],
    &["--gate", "auto", "--max-pause", "50ms"],
    &["--tracker", "none", "--max-pause", "5s"],
];

/// Random numbers that a seed repeats (splitmix64).
struct Random(u64);

impl Random {
    fn new() -> Random {
        let given = std::env::var("SNAPSHOT_KILL_SEED").ok().and_then(|s| s.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = given.unwrap_or(now.as_secs());
        println!("SNAPSHOT_KILL_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }

    fn within(&mut self, span: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A container, a work directory and a layout that engines are killed over.
struct Lab {
    demo: Running,
    /// Of a container that writes nothing: its upperdir, inode by inode, and what a copy of it must be.
    quiet: Option<(Listing, Listing)>,
    mounts: String,
    work: tempfile::TempDir,
    programs: BTreeSet<u32>,
    tags: u32,
    /// By way: until the cut is durable, and until the image is complete.
    spans: Vec<(Duration, Duration)>,
}

impl Lab {
    fn new(name: &str, workload: &str, quiet: bool) -> Result<Lab> {
        let programs = host::programs();
        let demo = Running::start(INIT, name, workload, Seed { files: 40, bytes: 2 << 20 })?;
        let upper = demo.demo.upper();
        let quiet = if quiet {
            Some((listing::list(&upper, Depth::Untouched)?, listing::list(&upper, Depth::Copy)?))
        } else {
            None
        };
        let mounts = demo.mounts()?;
        let work = tempfile::Builder::new().prefix("snapshot-kill-").tempdir()?;
        Ok(Lab { demo, quiet, mounts, work, programs, tags: 0, spans: Vec::new() })
    }

    fn work_dir(&self) -> String {
        self.work.path().to_string_lossy().into_owned()
    }

    fn layout(&self) -> PathBuf {
        self.work.path().join("layout")
    }

    fn snapshots(&self) -> PathBuf {
        self.work.path().join("snapshot-engine/snapshots")
    }

    /// Starts a commit to a tag of its own.
    fn start(&mut self, way: &[&str], wait: bool) -> Result<Started> {
        self.tags += 1;
        let target = format!("oci:{}:t{}", self.layout().display(), self.tags);
        let mut command = engine(["commit", self.demo.name(), &target, "--work-dir", &self.work_dir()]);
        command.args(way).args(wait.then_some("--wait"));
        Started::new(&mut command)
    }

    fn whole(&mut self, way: &[&str], wait: bool) -> Result<Ended> {
        let mut last = None;
        // A busy container may refuse a gate for a while; that is not what is tested here.
        for _ in 0..5 {
            let ended = self.start(way, wait)?.end()?;
            if ended.code == Some(0) {
                return Ok(ended);
            }
            last = Some(ended);
        }
        bail!("no commit succeeds: {last:#?}")
    }

    /// Measures whole commits: the kills are spread over their length.
    fn measure(&mut self) -> Result<()> {
        for way in WAYS {
            let began = Instant::now();
            let ended = self.whole(way, false)?;
            let cut = began.elapsed();
            let id = ended.stdout.split("Snapshot ID: ").nth(1).and_then(|s| s.split_whitespace().next());
            engine::until_completed(self.work.path(), id.context("no id")?)?;
            self.spans.push((cut, began.elapsed()));
        }
        self.settle()
    }

    /// The background processes that work for us.
    fn background(&self) -> Vec<u32> {
        let all = host::processes(&self.work_dir());
        all.into_iter().filter(|(_, line)| line.contains("__background")).map(|(pid, _)| pid).collect()
    }

    /// Everything that must hold after a kill, and the way back to order: what is listed is finished and removed.
    fn settle(&mut self) -> Result<()> {
        self.demo.goes_on()?;
        let began = Instant::now();
        while !self.background().is_empty() {
            ensure!(began.elapsed() < engine::PATIENCE, "the background process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        host::must_be_clean(&self.programs, self.work.path())?;
        ensure!(self.demo.mounts()? == self.mounts, "the container's mounts have changed");
        if let Some((untouched, _)) = &self.quiet {
            listing::must_equal(untouched, &listing::list(&self.demo.demo.upper(), Depth::Untouched)?)
                .context("the upperdir was touched")?;
        }
        // A killed process loses its command line (exit_mm) before its descriptors (exit_files): for an instant nobody is seen, and
        // the lock is still held.
        let mut listed = engine::list(self.work.path())?;
        let free = |s: &Value| s["state"] == "completed" || s["interrupted"] == true;
        while !listed.iter().all(free) && began.elapsed() < engine::PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            listed = engine::list(self.work.path())?;
        }
        for snapshot in listed {
            self.finish(&snapshot).with_context(|| format!("{snapshot:#}"))?;
        }
        Ok(())
    }

    /// A snapshot that is listed is whole, and can be finished.
    fn finish(&self, snapshot: &Value) -> Result<()> {
        let id = snapshot["snapshot_id"].as_str().context("no id")?;
        let frozen = self.snapshots().join(id).join("frozen");
        ensure!(frozen.is_dir(), "no frozen upperdir");
        if let Some((_, copy)) = &self.quiet {
            listing::must_equal(copy, &listing::list(&frozen, Depth::Copy)?)
                .context("it is half a snapshot")?;
        }
        let done = snapshot["state"] == "completed";
        ensure!(done || snapshot["interrupted"] == true, "nobody works on it, and it does not say so");
        let target = snapshot["record"]["target"]["tag"].as_str().context("no tag")?;
        if done {
            ensure!(self.in_layout(target)?, "completed, but its tag is not in the layout");
        } else {
            engine::run(["resume", id, "--wait", "--work-dir", &self.work_dir()])?.must_succeed()?;
            ensure!(self.in_layout(target)?, "resumed, but its tag is not in the layout");
        }
        engine::run(["remove", id, "--work-dir", &self.work_dir()])?.must_succeed()?;
        Ok(())
    }

    /// Whether a tag is in the layout's index, with all its blobs.
    fn in_layout(&self, tag: &str) -> Result<bool> {
        let layout = self.layout();
        let read = |path: &Path| -> Result<Value> {
            Ok(serde_json::from_slice(&fs::read(path).with_context(|| path.display().to_string())?)?)
        };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            layout.join("blobs").join(digest.replace(':', "/"))
        };
        let index = read(&layout.join("index.json"))?;
        let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
        let ours = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let Some(found) = manifests.iter().find(ours) else { return Ok(false) };
        let manifest = read(&blob(found))?;
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        for descriptor in layers.iter().chain([&manifest["config"]]) {
            let len = fs::metadata(blob(descriptor)).with_context(|| format!("{descriptor:#}"))?.len();
            ensure!(Some(len) == descriptor["size"].as_u64(), "{descriptor:#} has {len} bytes");
        }
        Ok(true)
    }

    /// A later commit works, and sweeps what the killed ones left.
    fn sweep(&mut self, way: &[&str]) -> Result<()> {
        self.whole(way, true)?;
        let listed: BTreeSet<String> = engine::list(self.work.path())?
            .iter()
            .filter_map(|s| s["snapshot_id"].as_str().map(str::to_owned))
            .collect();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(self.snapshots())? {
            found.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        ensure!(found == listed, "directories {found:?}, listed are {listed:?}");
        self.settle()
    }

    /// Half made files of killed engines beside the finished ones, after a commit that had the chance to remove them.
    fn must_hold_no_scraps(&self) -> Result<()> {
        let mut scraps = Vec::new();
        let mut stack = vec![self.layout(), self.work.path().join("snapshot-engine")];
        while let Some(dir) = stack.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') || name.ends_with(".tmp") {
                    scraps.push(entry.path());
                } else if entry.file_type()?.is_dir() {
                    stack.push(entry.path());
                }
            }
        }
        ensure!(scraps.is_empty(), "left in the layout or the store: {scraps:?}");
        Ok(())
    }
}

/// What the kills hit.
#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    too_late: u32,
    before_the_record: u32,
    after_the_record: u32,
    background: u32,
}

fn kills() -> u32 {
    std::env::var("SNAPSHOT_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(200)
}

fn kill_at_random(lab: &mut Lab, random: &mut Random, tally: &mut Tally) -> Result<()> {
    let way = usize::try_from(random.below(WAYS.len() as u64))?;
    let wait = random.below(2) == 0;
    let (cut, whole) = lab.spans[way];
    // Half of them before the cut is made: that is where the container could be hurt. An eighth in the background process.
    let background = !wait && random.below(4) == 0;
    let span = if random.below(2) == 0 { cut } else { whole + whole / 10 };
    let after = random.within(span);
    let mut run = lab.start(WAYS[way], wait)?;
    let pid = run.pid();
    let (mut hit, mut hit_background) = (false, false);
    if background {
        while run.runs()? && lab.background().is_empty() {}
        std::thread::sleep(random.within(whole.saturating_sub(cut)));
        for pid in lab.background() {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no process")?;
            hit_background |= rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
        }
    } else {
        std::thread::sleep(after);
        hit = run.kill()?;
    }
    let ended = run.end()?;
    let killed = hit || hit_background;
    tally.kills += u32::from(killed);
    tally.too_late += u32::from(!killed);
    if !killed && !background {
        // Measured while the machine was busier than now: kills that come too late cost time and prove little.
        lab.spans[way] = (cut * 9 / 10, whole * 9 / 10);
    }
    tally.background += u32::from(hit_background);
    let listed = !engine::list(lab.work.path())?.is_empty();
    *if listed { &mut tally.after_the_record } else { &mut tally.before_the_record } += 1;
    lab.settle().with_context(|| {
        format!(
            "{:?} wait {wait}, killed ({hit}, background {hit_background}) after {after:?} of {cut:?} and {whole:?}, {pid}: {ended:#?}",
            WAYS[way]
        )
    })
}

#[test]
fn killed_anywhere_it_leaves_the_container_and_the_store_in_order() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut random = Random::new();
    let mut labs = [Lab::new("kill-quiet", "idle,tick", true)?, Lab::new("kill-busy", BUSY, false)?];
    for lab in &mut labs {
        lab.measure()?;
        println!("spans of {}: {:?}", lab.demo.name(), lab.spans);
    }
    let mut tally = Tally::default();
    let mut turn = 0;
    while tally.kills < kills() {
        turn += 1;
        let lab = &mut labs[turn % 2];
        kill_at_random(lab, &mut random, &mut tally)?;
        ensure!(turn < 4000, "most kills come too late: {tally:?}");
        if turn % 40 < 2 {
            println!("{turn} turns: {tally:?}");
            lab.sweep(WAYS[2])?;
        }
    }
    println!("{tally:?}");
    for lab in &mut labs {
        lab.sweep(WAYS[2])?;
        lab.must_hold_no_scraps()?;
    }
    ensure!(tally.before_the_record > 10 && tally.after_the_record > 10, "one sided: {tally:?}");
    Ok(())
}

const BUSY: &str = "log=1:light,database=1:light,churn:light,write-tick,tick";

/// The moment that matters most is hit on purpose.
#[test]
fn killed_while_the_container_is_frozen_it_is_thawed() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::new("kill-frozen", "idle,tick,sleepers=50", true)?;
    for way in [WAYS[1], WAYS[3]] {
        let mut hits = 0;
        for _ in 0..15 {
            let mut run = lab.start(way, true)?;
            while !lab.demo.frozen()? && run.runs()? {}
            // Frozen at the kill, as far as can be known: the window may end in between.
            let killed = run.kill()?;
            hits += u32::from(killed);
            run.end()?;
            lab.settle().with_context(|| format!("{way:?}"))?;
        }
        ensure!(hits >= 5, "{way:?}: only {hits} of 15 kills hit a frozen container");
    }
    lab.sweep(WAYS[1])
}

/// Not dead but stopped: the watchdog thaws the container, the fence expires; and what is then cut is not called a snapshot.
#[test]
fn stopped_while_the_container_is_frozen_it_is_thawed_and_the_attempt_is_void() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::new("kill-stopped", "idle,write-tick,sleepers=50", false)?;
    let signal = |run: &Started, signal| -> Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(run.pid())?).context("no process")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    };
    for way in [&["--gate", "freezer", "--max-pause", "100ms", "--maximum-times", "1"][..], WAYS[3]] {
        let limit = Duration::from_secs(if way[0] == "--tracker" { 5 } else { 1 });
        let mut tries = 0;
        let run = loop {
            let mut run = lab.start(way, true)?;
            while !lab.demo.frozen()? && run.runs()? {}
            if signal(&run, rustix::process::Signal::STOP).is_ok() {
                break run;
            }
            // It was quicker than we are: it has ended.
            run.end()?;
            lab.settle()?;
            tries += 1;
            ensure!(tries < 50, "{way:?}: it is never seen while the container is frozen");
        };
        let frozen = lab.demo.frozen()?;
        let began = Instant::now();
        while lab.demo.frozen()? {
            ensure!(began.elapsed() < limit + Duration::from_secs(1), "{way:?}: it stays frozen");
            std::thread::sleep(Duration::from_millis(1));
        }
        lab.demo.goes_on()?;
        signal(&run, rustix::process::Signal::CONT)?;
        let ended = run.end()?;
        // Without a tracker nobody would see the writes made after the thaw: only the time tells.
        if frozen && way[0] == "--tracker" {
            ended.must_fail(1, &["the budget of 5s", "--max-pause"])?;
        }
        lab.settle().with_context(|| format!("{way:?}: {ended:#?}"))?;
    }
    Ok(())
}
