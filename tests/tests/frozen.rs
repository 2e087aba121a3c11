//! Whether everybody stands still when the freezer gate says so, in a cgroup that has tasks of its own and a cgroup with tasks below it (G1). The
//! kernel says `frozen 1` of such a cgroup too early: see `freeze/everybody.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::container::cgroup::Hierarchies;
use snapshot_engine::freeze::freezer::{Freezer, Place};
use snapshot_tests::bench::{self, Disk, eventually, unique};

/// A cgroup with one below, and a file system whose writers wait in the middle of a call (`fsfreeze`). All is let go on drop.
struct Scene {
    top: PathBuf,
    below: PathBuf,
    disk: Disk,
    tasks: Vec<Child>,
}

impl Scene {
    fn new() -> Result<Scene> {
        let (point, root) = Hierarchies::find()?.v2.context("no cgroup2 is mounted")?;
        ensure!(root == Path::new("/"), "cgroup2 is mounted with the root {}", root.display());
        let top = point.join(unique("snapshot-test-frozen"));
        let below = top.join("below");
        fs::create_dir_all(&below)?;
        let scene = Scene { top, below, disk: Disk::new("ext4")?, tasks: Vec::new() };
        // Opening it makes nothing then, so that the write is the first call to wait.
        fs::write(scene.file(), "")?;
        scene.stop_writers(true)?;
        Ok(scene)
    }

    fn file(&self) -> PathBuf {
        self.disk.path().join("file")
    }

    fn stop_writers(&self, stop: bool) -> Result<()> {
        let how = if stop { "-f" } else { "-u" };
        let status =
            Command::new("fsfreeze").arg(how).arg(self.disk.path()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "fsfreeze {how}: {status}");
        Ok(())
    }

    fn start(&mut self, cgroup: &Path, script: &str) -> Result<u32> {
        let enter = format!("echo $$ > {}/cgroup.procs; {script}", cgroup.display());
        let child = Command::new("sh").arg("-c").arg(enter).stdin(Stdio::null()).spawn()?;
        let id = child.id();
        self.tasks.push(child);
        Ok(id)
    }

    /// One task that can be frozen at once in `sleeps`, one in the middle of a write in `writes`: no freeze is claimed before the write has ended, and
    /// one is after that.
    fn judge(&mut self, sleeps: &Path, writes: &Path) -> Result<()> {
        let state = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
        };
        let sleeper = self.start(sleeps, "exec sleep 600")?;
        let file = self.file();
        let writer = self.start(writes, &format!("echo bytes >> {}; exec sleep 600", file.display()))?;
        eventually("one sleeps, the other waits in his write", || {
            state(sleeper) == Some('S') && state(writer) == Some('D')
        });

        let freezer = Freezer::open(
            &Place::V2(self.top.clone()),
            Duration::from_secs(60),
            &self.disk.path().join(".."),
        )?;
        freezer.arm()?;
        let claimed = freezer.freeze(Instant::now() + Duration::from_millis(300));
        ensure!(
            claimed.is_err(),
            "everybody is said to be frozen, and pid {writer} is in the middle of a write"
        );
        drop(claimed);

        self.stop_writers(false)?;
        let frozen = freezer.freeze(Instant::now() + Duration::from_secs(20))?;
        ensure!(fs::read(&file)? == b"bytes\n", "the write had not ended");
        frozen.thaw()?;
        freezer.disarm();
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.stop_writers(false);
        let _ = fs::write(self.top.join("cgroup.freeze"), "0");
        for task in &mut self.tasks {
            let _ = task.kill();
            let _ = task.wait();
        }
        for dir in [&self.below, &self.top] {
            for _ in 0..100 {
                if fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// `cgroup_update_frozen` looks at the own tasks only.
#[test]
fn g1_a_writer_in_a_cgroup_below_is_waited_for() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let (top, below) = (scene.top.clone(), scene.below.clone());
    scene.judge(&top, &below)
}

/// `cgroup_propagate_frozen` looks at the cgroups below only.
#[test]
fn g1_a_writer_above_a_frozen_cgroup_is_waited_for() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let (top, below) = (scene.top.clone(), scene.below.clone());
    scene.judge(&below, &top)
}
