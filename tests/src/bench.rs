//! File systems, containers and sessions that clean up after themselves, also when a test fails.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_ebpf::TargetId;
use snapshot_engine::CommitOptions;
use snapshot_engine::container::{self, Target, process};
use snapshot_engine::demo::{self, Demo, Seed, StartOptions, Workload};
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::model::dirty::Watch as _;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Session;
use snapshot_engine::track::{self, Scope, Tables, Tracker};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name nobody else on this machine uses.
#[must_use]
pub fn unique(what: &str) -> String {
    format!("{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed))
}

/// Whether the test can run at all; a missing privilege is a failure where the machine is meant to have it.
#[must_use]
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "root is needed, and this is CI");
    root
}

/// A fresh file system on a loop device; unmounted on drop. Declare it before the container whose layers lie on it.
#[derive(Debug)]
pub struct Disk {
    place: tempfile::TempDir,
}

impl Disk {
    /// Makes and mounts one of 4 GiB: `ext4`, `xfs`, `btrfs` or `tmpfs`.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub fn new(kind: &str) -> Result<Disk> {
        // In memory where that is possible: the tests wait for `syncfs` some hundred times.
        let memory = Path::new("/dev/shm");
        Disk::sized(kind, 4 << 30, if memory.is_dir() { memory } else { Path::new("/var/tmp") })
    }

    /// The same of so many bytes, its image below `parent`; the image is sparse.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub fn sized(kind: &str, bytes: u64, parent: &Path) -> Result<Disk> {
        let place = tempfile::Builder::new().prefix("snapshot-test-").tempdir_in(parent)?;
        let (image, mount) = (place.path().join("image"), place.path().join("mount"));
        std::fs::create_dir(&mount)?;
        if kind == "tmpfs" {
            run(Command::new("mount").args(["-t", "tmpfs", "snapshot-test"]).arg(&mount))?;
            return Ok(Disk { place });
        }
        std::fs::File::create(&image)?.set_len(bytes)?;
        // An inode for each 14 KiB: 300,000 for the tests' 4 GiB.
        let inodes = (bytes / 14_316).to_string();
        let options: &[&str] = match kind {
            "ext4" => &["-q", "-F", "-N", &inodes],
            "btrfs" => &["-q", "-f"],
            _ => &["-q", "-f", "-m", "reflink=1"],
        };
        run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image))?;
        // btrfs writes everything to another place, and gives back none of the image's memory without being told to: by itself since Linux 6.2.
        let how = if kind == "btrfs" { "loop,discard" } else { "loop" };
        run(Command::new("mount").args(["-o", how]).arg(&image).arg(&mount))?;
        Ok(Disk { place })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.path().join("mount")
    }

    /// Drops the image from the page cache, so that what is read from it comes from the machine's disk. What is not written back stays.
    ///
    /// # Errors
    /// When it cannot be written back.
    pub fn forget_image(&self) -> Result<()> {
        let image = std::fs::File::open(self.place.path().join("image"))?;
        image.sync_data()?;
        Ok(rustix::fs::fadvise(&image, 0, None, rustix::fs::Advice::DontNeed)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmount = |flags: &[&str]| {
            let mut command = Command::new("umount");
            command.args(flags).arg(self.path()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        for _ in 0..20 {
            if unmount(&[]) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        unmount(&["-l"]);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A container that is stopped whatever happens.
#[derive(Debug)]
pub struct Running(pub Demo);

impl Running {
    /// Starts one with its layers on a disk. `program` is `demo-init`.
    ///
    /// # Errors
    /// See [`demo::Error`].
    pub fn start(program: &str, disk: &Disk, workload: Workload) -> Result<Running> {
        let mut options = StartOptions::new(&unique("proof"));
        options.program = Some(PathBuf::from(program));
        options.layers_root = disk.path().join("layers");
        options.workload = workload;
        options.seed = Seed { files: 4, bytes: 4 << 10 };
        Ok(Running(demo::start(&options)?))
    }

    /// The container as the engine finds it.
    ///
    /// # Errors
    /// See [`container::Error`].
    pub fn target(&self) -> Result<Target> {
        Ok(container::resolve(self.0.name())?)
    }

    /// Its root, as whoever is outside reaches it: every call on a path below it goes through the overlay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(process::root(self.0.init().context("the container is dead")?))
    }

    /// Its upperdir.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.0.upper()
    }

    /// Its v2 cgroup.
    ///
    /// # Errors
    /// When it has none.
    pub fn cgroup(&self) -> Result<PathBuf> {
        self.0.state.cgroup_v2.clone().context("no v2 cgroup")
    }

    /// Whether its cgroup is frozen.
    #[must_use]
    pub fn frozen(&self) -> bool {
        self.cgroup()
            .and_then(|c| Ok(std::fs::read_to_string(c.join("cgroup.events"))?))
            .is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(cgroup) = self.cgroup() {
            let _ = std::fs::write(cgroup.join("cgroup.freeze"), "0");
        }
        if let Err(e) = demo::stop(self.0.name()) {
            eprintln!("{e}");
        }
    }
}

/// What the tracker is told of a container.
///
/// # Errors
/// When a number does not fit.
pub fn target_id(target: &Target) -> Result<TargetId> {
    let path = target.cgroup.v2.as_ref().context("no v2 cgroup")?;
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    let depth = path.ancestors().take_while(|p| device(p) == device(path)).count() - 1;
    Ok(TargetId {
        cgroup: target.cgroup.v2_id.context("no v2 cgroup")?,
        cgroup_level: depth.try_into()?,
        mount_namespace: target.mount_namespace.try_into()?,
        overlay_device: target.overlay.device.try_into()?,
        _pad: 0,
    })
}

/// A scope of containers whose upperdirs lie on one file system.
///
/// # Errors
/// When there is none.
pub fn scope(targets: &[&Target], fault: u32) -> Result<Scope> {
    let first = targets.first().context("no target")?;
    Ok(Scope {
        targets: targets.iter().map(|t| target_id(t)).collect::<Result<_>>()?,
        upper_device: first.overlay.upper_device.try_into()?,
        file_system: first.overlay.upper_fs.clone(),
        inodes: 1000,
        large_bytes: 1 << 20,
        tables: Tables::default(),
        fault,
    })
}

/// A tracker on these containers, or `None` where the kernel refuses the programs that the upper's file system takes: a hardened host does
/// so for btrfs and tmpfs, and says what to do. In the guests of `cargo xtask vm-test`, which allow them, a refusal is a failure.
///
/// # Errors
/// See [`snapshot_engine::track::Error`].
pub fn tracker_if_allowed(targets: &[&Target]) -> Result<Option<Tracker>> {
    match Tracker::start(&scope(targets, 0)?) {
        Ok(tracker) => Ok(Some(tracker)),
        Err(e @ track::Error::FentryRefused { .. }) => {
            let text = e.to_string();
            println!("not tested on this kernel: {text}");
            ensure!(!fentry_is_known(), "this kernel is known to allow it: {e:?}");
            ensure!(text.contains("fentry") && text.contains("--tracker none"), "no remedy: {text}");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether this kernel is known to allow fentry programs (`SNAPSHOT_TEST_FENTRY`), so that a refusal is a failure.
#[must_use]
pub fn fentry_is_known() -> bool {
    std::env::var_os("SNAPSHOT_TEST_FENTRY").is_some()
}

/// A tracker on these containers.
///
/// # Errors
/// See [`snapshot_engine::track::Error`].
pub fn tracker(targets: &[&Target]) -> Result<Tracker> {
    Ok(Tracker::start(&scope(targets, 0)?)?)
}

/// How much longer things may take than on the machines the tests' times were chosen on: `SNAPSHOT_TEST_SLACK`, 1 if it is not set. Only times
/// that depend on the machine's speed are stretched, never what must be true. `cargo xtask vm-test` sets it for its guests and says so.
///
/// # Panics
/// When the variable is no number of at least 1.
#[must_use]
pub fn slack() -> u32 {
    static SLACK: LazyLock<u32> = LazyLock::new(|| number("SNAPSHOT_TEST_SLACK"));
    *SLACK
}

/// How many of `n` repetitions are made: one of `SNAPSHOT_TEST_SHARE`, all if it is not set. Only how often something is tried is divided,
/// never what must be true each time. `cargo xtask vm-test` sets it for its guests and says so.
///
/// # Panics
/// When the variable is no number of at least 1.
#[must_use]
pub fn share(n: u32) -> u32 {
    n.div_ceil(number("SNAPSHOT_TEST_SHARE"))
}

fn number(variable: &str) -> u32 {
    let Some(text) = std::env::var_os(variable) else { return 1 };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|n| *n >= 1);
    number.unwrap_or_else(|| panic!("{variable}={text:?} is no number of at least 1"))
}

/// How sessions of the tests go unless they want it otherwise: with time for a noisy machine.
#[must_use]
pub fn policy(choice: GateChoice) -> Policy {
    let Policy { fence_max, drain, .. } = Policy::default();
    let slack = slack();
    let budget = Duration::from_millis(20) * slack;
    Policy { choice, budget, fence_max: fence_max * slack, drain: drain * slack, ..Policy::default() }
}

/// A session with its shadow in `work`.
///
/// # Errors
/// See [`Session::open`].
pub fn session(target: Target, work: &Path, policy: Policy, fault: u32) -> Result<Session> {
    let options = CommitOptions::default().gate(policy.choice);
    Ok(Session::open(target, &options, work, policy, fault, &Quiet)?)
}

/// Waits for a condition.
///
/// # Panics
/// When it has not come true after 20 seconds (stretched by [`slack`]).
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20) * slack();
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes until nothing is dirty any more.
///
/// # Panics
/// When that does not come true.
pub fn clean(tracker: &mut Tracker) {
    for _ in 0..100 {
        if tracker.take().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never clean");
}
