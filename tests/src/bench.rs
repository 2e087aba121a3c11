//! File systems, containers and sessions that clean up after themselves, also when a test fails.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_ebpf::TargetId;
use snapshot_engine::CommitOptions;
use snapshot_engine::container::{self, Target, process};
use snapshot_engine::demo::{self, Demo, Seed, StartOptions, Workload};
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Session;
use snapshot_engine::track::{Scope, Tracker};

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
    /// Makes and mounts one of 4 GiB: `ext4`, `xfs` or `tmpfs`.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub fn new(kind: &str) -> Result<Disk> {
        // In memory where that is possible: the tests wait for `syncfs` some hundred times.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let place = tempfile::Builder::new().prefix("snapshot-test-").tempdir_in(parent)?;
        let (image, mount) = (place.path().join("image"), place.path().join("mount"));
        std::fs::create_dir(&mount)?;
        if kind == "tmpfs" {
            run(Command::new("mount").args(["-t", "tmpfs", "snapshot-test"]).arg(&mount))?;
            return Ok(Disk { place });
        }
        std::fs::File::create(&image)?.set_len(4 << 30)?;
        let options: &[&str] = match kind {
            "ext4" => &["-q", "-F", "-N", "300000"],
            _ => &["-q", "-f", "-m", "reflink=1"],
        };
        run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
        Ok(Disk { place })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.path().join("mount")
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
        fault,
    })
}

/// A tracker on these containers.
///
/// # Errors
/// See [`snapshot_engine::track::Error`].
pub fn tracker(targets: &[&Target]) -> Result<Tracker> {
    Ok(Tracker::start(&scope(targets, 0)?)?)
}

/// How sessions of the tests go unless they want it otherwise: with time for a noisy machine.
#[must_use]
pub fn policy(choice: GateChoice) -> Policy {
    Policy { choice, budget: Duration::from_millis(20), ..Policy::default() }
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
/// When it has not come true after 20 seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
