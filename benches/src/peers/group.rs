//! The cgroups of a room: one name below the root of every hierarchy, with a child for each container.
//!
//! ```text
//!   /sys/fs/cgroup/snapshot-peers-PID-NUMBER-docker/0/...              version 2
//!   /sys/fs/cgroup/freezer/snapshot-peers-PID-NUMBER-docker/0/...      version 1, each controller
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use snapshot_engine::container::cgroup::{Hierarchies, members};
use snapshot_engine::container::process;
use snapshot_engine::model::pid::Pid;

const PREFIX: &str = "snapshot-peers-";

/// How long killed tasks may take to leave.
const DEATH: Duration = Duration::from_secs(20);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Group {
    name: String,
}

impl Group {
    /// A name that nobody else uses. Runtimes make the cgroups.
    pub(super) fn new(purpose: &str) -> Group {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Group { name: format!("{PREFIX}{}-{number}-{purpose}", std::process::id()) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its directory in the hierarchy of the version 1 freezer; nowhere if there is none.
    pub(super) fn freezer(&self) -> PathBuf {
        let found = Hierarchies::find().unwrap_or_default().freezer_v1;
        found.map_or_else(|| PathBuf::from("/nowhere"), |(point, _)| point.join(&self.name))
    }

    /// Lets everybody go on who is frozen.
    pub(super) fn thaw(&self) {
        directories(&self.name).iter().for_each(|top| thaw(top));
    }
}

/// The container's init: of the processes in and below this cgroup, the first of its own PID namespace.
///
/// # Errors
/// When there is none.
pub(super) fn init(cgroup: &str) -> Result<Pid> {
    let is_init = |pid: &Pid| {
        let status = fs::read_to_string(process::dir(*pid).join("status")).unwrap_or_default();
        // The process's number in each namespace, ours first (proc_pid_status(5)).
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        numbers.split_whitespace().next_back() == Some("1")
    };
    for dir in directories(cgroup) {
        if let Some(init) = members(&dir)?.into_iter().find(is_init) {
            return Ok(init);
        }
    }
    bail!("no container in the cgroup {cgroup}")
}

/// Kills whoever is in and below this cgroup, in every hierarchy, and removes it. What has joined a container from outside ends with it.
///
/// # Errors
/// When somebody does not die, or does not leave.
pub(super) fn end(path: &str) -> Result<()> {
    let deadline = Instant::now() + DEATH;
    loop {
        let tops = directories(path);
        let Some(first) = tops.first() else { return Ok(()) };
        ensure!(Instant::now() < deadline, "the cgroup {} is busy", first.display());
        // In all hierarchies before the next step in any: a task in a frozen version 1 cgroup does not even die.
        tops.iter().for_each(|top| thaw(top));
        for top in &tops {
            for pid in members(top)?.into_iter().filter(|pid| *pid != Pid::own()) {
                if let Some(pid) = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw) {
                    // It may have died meanwhile.
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            for dir in descendants(top).iter().rev() {
                let _ = fs::remove_dir(dir);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends what is left in cgroups whose harness was killed.
pub(super) fn sweep() {
    for top in hierarchies() {
        for entry in fs::read_dir(top).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| is_dead(name))
                && let Err(error) = end(name)
            {
                eprintln!("left behind by an earlier run: {error:#}");
            }
        }
    }
}

/// Whether a name is that of a room whose process is gone.
pub(super) fn is_dead(name: &str) -> bool {
    let pid =
        name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| !process::is_alive(Pid(pid), None))
}

/// Where cgroup hierarchies are mounted here.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = process::mounts(Pid::own()).unwrap_or_default();
    let of_cgroups = mounts.into_iter().filter(|m| matches!(m.fs_type.as_str(), "cgroup" | "cgroup2"));
    of_cgroups.map(|mount| mount.point).collect()
}

fn directories(path: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|top| top.join(path)).filter(|dir| dir.is_dir()).collect()
}

/// A cgroup and all below it, each before its children.
fn descendants(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let mut at = 0;
    while let Some(dir) = all.get(at) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = entries.map(|e| e.path()).filter(|path| path.is_dir()).collect();
        all.extend(below);
        at += 1;
    }
    all
}

/// Lets everybody in and below this cgroup go on, by the freezer that its hierarchy has.
fn thaw(top: &Path) {
    for dir in descendants(top) {
        for (file, text) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            // Opened as it is: none must come into being where there is none.
            let file = fs::OpenOptions::new().write(true).open(dir.join(file));
            let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cgroups_of_the_dead_are_swept() {
        let own = Group::new("x");
        assert!(!is_dead(own.name()));
        // Beyond the largest pid_max.
        assert!(is_dead(&format!("{PREFIX}{}-0-docker", 1 << 23)));
        assert!(!is_dead(PREFIX) && !is_dead("docker"));
        assert_ne!(own.name(), Group::new("x").name());
    }

    #[test]
    fn children_come_after_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        let all = descendants(dir.path());
        assert_eq!(all, [dir.path().to_owned(), dir.path().join("a"), dir.path().join("a/b")]);
    }
}
