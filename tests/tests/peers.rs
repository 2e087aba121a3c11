//! The peers of the benchmark that are on this machine: each starts, does what it can to a container, and leaves nothing.
//!
//! docker, podman and containerd are not installed for the tests: where they are absent their test says so. With `SNAPSHOT_REQUIRE_PEERS` set an
//! absent one is a failure, whoever it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_benches::peers::{self, Layer, Load, Peer, Running};
use snapshot_engine::container::Target;
use snapshot_tests::bench::{eventually, root, slack, unique};
use snapshot_tests::host;

/// One at a time: what a test has left is known by the number of this process, which is in the names of all their cgroups.
static TURN: Mutex<()> = Mutex::new(());

/// A directory for one test, on a file system that can hold an upperdir.
struct Place {
    path: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Result<Place> {
        let path = Path::new("/var/lib/snapshot-engine").join(unique("peers-test"));
        fs::create_dir_all(&path)?;
        Ok(Place::at(path))
    }

    fn at(path: PathBuf) -> Place {
        Place { path, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Nothing is left of whoever worked here: no process, no mount, no cgroup, no file.
    fn must_be_clean(&self) -> Result<()> {
        let place = self.path.to_string_lossy().into_owned();
        eventually("no process and no mount of theirs is left", || {
            host::processes(&place).is_empty() && host::mounts(&place).is_empty()
        });
        let ours = format!("snapshot-peers-{}-", std::process::id());
        let cgroups = Path::new("/sys/fs/cgroup");
        let left = |dir: &Path| -> Vec<String> {
            let names = fs::read_dir(dir).into_iter().flatten().flatten();
            names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.contains(&ours)).collect()
        };
        for dir in fs::read_dir(cgroups)?.flatten().map(|e| e.path()).chain([cgroups.to_owned()]) {
            ensure!(left(&dir).is_empty(), "cgroups left in {}: {:?}", dir.display(), left(&dir));
        }
        let files: Vec<_> = fs::read_dir(&self.path)?.flatten().map(|e| e.path()).collect();
        ensure!(files.is_empty(), "left behind: {files:?}");
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        // Only if it is empty: others may be at work there.
        let _ = fs::remove_dir("/var/lib/snapshot-engine");
    }
}

/// The peer, unless the machine lacks it. What CI's setup installs must be there.
fn peer(name: &'static str, place: &Place) -> Result<Option<Box<dyn Peer>>> {
    if !root() {
        return Ok(None);
    }
    let init = Path::new(env!("CARGO_BIN_EXE_demo-init"));
    match peers::one(name, &place.path, Some(init)) {
        Ok(peer) => Ok(Some(peer)),
        Err(absent) => {
            let installed = ["runc", "freezer"].contains(&name) && std::env::var_os("CI").is_some();
            ensure!(
                !installed && std::env::var_os("SNAPSHOT_REQUIRE_PEERS").is_none(),
                "{name} is absent: {}",
                absent.reason
            );
            eprintln!("skipped: {name}: {}", absent.reason);
            Ok(None)
        }
    }
}

/// Regular files below a directory, and their bytes.
fn content(dir: &Path) -> Result<(u32, u64)> {
    let (mut files, mut bytes, mut dirs) = (0, 0, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.is_file() {
                (files, bytes) = (files + 1, bytes + meta.len());
            }
        }
    }
    Ok((files, bytes))
}

/// Whether the container was seen standing still while the operation was done; it goes on afterwards.
fn stops(container: &mut dyn Running, operation: &str) -> Result<bool> {
    let (target, ended, stood) = (container.target().clone(), AtomicBool::new(false), AtomicBool::new(false));
    let looking = Barrier::new(2);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            looking.wait();
            while !ended.load(Ordering::Relaxed) {
                if target.cgroup.is_frozen().unwrap_or(false) {
                    stood.store(true, Ordering::Relaxed);
                }
            }
        });
        // On a busy machine a thread may not have begun when a freezer's round trip is over.
        looking.wait();
        let took = container.perform(operation);
        ended.store(true, Ordering::Relaxed);
        took
    })?;
    let parts: Duration = took.phases.iter().map(|(_, time)| *time).sum();
    ensure!(parts <= took.wall && !parts.is_zero(), "{operation}: {took:?}");
    ensure!(!target.cgroup.is_frozen()?, "{operation} leaves the container frozen");
    ensure!(target.is_alive(), "{operation} kills the container");
    Ok(stood.into_inner())
}

fn works(name: &'static str, operations: &[&str]) -> Result<()> {
    let place = Place::new()?;
    let Some(peer) = peer(name, &place)? else { return Ok(()) };
    ensure!(
        peer.name() == name && peer.version().contains(|c: char| c.is_ascii_digit()),
        "{}",
        peer.version()
    );
    let layer = Layer { files: 128, bytes: 6 << 20, tasks: 12, load: Load::Log };
    let mut container = peer.start(&layer)?;
    // What the engine finds by itself is what the runtime has made.
    let target = container.target().clone();
    ensure!(target == Target::of_process(target.init)?, "another target");
    ensure!(target.overlay.upper.starts_with(&place.path), "{} is elsewhere", target.overlay.upper.display());
    ensure!(target.cgroup.freezer().is_some(), "no cgroup of its own: {:?}", target.cgroup);
    let (files, bytes) = content(&target.overlay.upper.join("data"))?;
    ensure!(files >= 128 && bytes >= 6 << 20, "the upperdir has {files} files, {bytes} bytes");
    let tasks = snapshot_engine::container::tasks(&target)?.len();
    ensure!(tasks > 12, "only {tasks} tasks");

    let offered: BTreeSet<&str> = container.operations().into_iter().collect();
    for operation in operations {
        ensure!(offered.contains(operation), "{operation} is not among {offered:?}");
    }
    for operation in container.operations() {
        // A stop of some microseconds can pass between two looks on a busy machine, but not every time.
        let deadline = Instant::now() + Duration::from_secs(20) * slack();
        while !stops(container.as_mut(), operation)? {
            ensure!(Instant::now() < deadline, "{operation} was never seen to stop the container");
        }
    }
    ensure!(container.perform("no such operation").is_err(), "it does what it does not know");

    // Another one beside it, and the peer goes before its containers.
    let second = peer.start(&Layer::default())?;
    ensure!(second.target().overlay.upper != target.overlay.upper, "two containers share an upperdir");
    drop(peer);
    drop(container);
    ensure!(!target.is_alive(), "the container outlives its end");
    ensure!(!target.overlay.upper.exists(), "its upperdir is still there");
    ensure!(second.target().is_alive(), "one container's end is the other's");
    drop(second);
    place.must_be_clean()
}

#[test]
fn docker_commits_and_pauses() -> Result<()> {
    works("docker", &["docker commit", "docker pause; unpause"])
}

#[test]
fn podman_commits_and_pauses() -> Result<()> {
    works("podman", &["podman commit", "podman pause; unpause"])
}

#[test]
fn containerd_diffs_and_pauses() -> Result<()> {
    works("containerd", &["ctr pause; diff; resume", "ctr pause; diff (tar); resume", "ctr pause; resume"])
}

#[test]
fn runc_pauses() -> Result<()> {
    works("runc", &["runc pause; resume"])
}

#[test]
fn the_kernels_freezers_freeze() -> Result<()> {
    works("freezer", &["cgroup.freeze"])
}

/// A process of its own that starts runc and the freezer and then hangs: see [`a_killed_harness_leaves_no_process_and_the_next_one_clears_up`].
fn harness(place: &Place) -> Result<std::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "a_killed_harness_leaves_no_process_and_the_next_one_clears_up", "--nocapture"]);
    command.env("SNAPSHOT_PEERS_PLACE", &place.path).stdout(Stdio::null());
    Ok(command.spawn()?)
}

#[test]
fn a_killed_harness_leaves_no_process_and_the_next_one_clears_up() -> Result<()> {
    if let Some(path) = std::env::var_os("SNAPSHOT_PEERS_PLACE") {
        // The harness itself, killed while its container is paused: nothing in it can die then.
        let place = Place::at(path.into());
        let runc = peer("runc", &place)?.context("no runc")?;
        let container = runc.start(&Layer { tasks: 5, ..Layer::default() })?;
        let cgroup = &container.target().cgroup;
        if let Some(dir) = &cgroup.freezer_v1 {
            fs::write(dir.join("freezer.state"), "FROZEN")?;
        }
        if let Some(dir) = &cgroup.v2 {
            fs::write(dir.join("cgroup.freeze"), "1")?;
        }
        fs::write(place.path.join("init"), container.target().init.to_string())?;
        loop {
            std::thread::park();
        }
    }
    let place = Place::new()?;
    if peer("runc", &place)?.is_none() {
        return Ok(());
    }
    let mut child = harness(&place)?;
    let told = place.path.join("init");
    eventually("the harness starts its container", || {
        fs::read_to_string(&told).is_ok_and(|text| !text.is_empty())
    });
    let init = snapshot_engine::model::pid::Pid(fs::read_to_string(&told)?.parse()?);
    fs::remove_file(&told)?;
    child.kill()?;
    child.wait()?;
    eventually("the container ends with its harness", || {
        !snapshot_engine::container::process::is_alive(init, None)
    });
    drop(peer("runc", &place)?);
    place.must_be_clean()?;
    let dead = format!("snapshot-peers-{}-", child.id());
    for dir in fs::read_dir("/sys/fs/cgroup")?.flatten().map(|e| e.path()).filter(|path| path.is_dir()) {
        let names = fs::read_dir(&dir)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names.filter(|name| name.starts_with(&dead)).collect();
        ensure!(left.is_empty(), "cgroups left in {}: {left:?}", dir.display());
    }
    Ok(())
}
