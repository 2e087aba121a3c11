//! The first stage: from a name to a [`Target`], or to a [`Stopped`] container.
//!
//! ```text
//!                 ┌ docker podman cri containerd ┐  asked at once, each with a deadline
//! reference ──────┤ storage crun runc demo pid   ├─► candidates ─► one ─► its init runs ─► /proc ─► Target { cgroup, overlay }
//!                 └──────────────────────────────┘                   └──► it has none ──────────────► Stopped { layers }
//! ```
//!
//! Of a running container a resolver only finds the init process, and what no kernel knows: name, image, how it was started. Cgroup and overlay are
//! read from the kernel, which is the same for every runtime and cannot be stale. Of a stopped one the runtime must say where the layers are.

pub mod added;
pub mod candidate;
pub mod cgroup;
mod choose;
mod complete;
pub mod config;
pub mod error;
mod locate;
pub mod mountinfo;
mod options;
pub mod overlay;
pub mod places;
pub mod process;
pub mod resolver;
mod stopped;
pub mod tasks;
mod vantage;

pub use added::{Added, added};
pub use candidate::{Candidate, ImageRef, Layers, SnapshotKey, State};
pub use cgroup::{Cgroup, Freezer};
pub use config::Config;
pub use error::Error;
pub use overlay::Overlay;
pub use places::Places;
pub use stopped::Stopped;
pub use tasks::{Task, tasks};

use std::path::PathBuf;

use crate::model::ids::Ids;
use crate::model::pid::Pid;
use crate::model::reference::{ContainerRef, Runtime};

/// A running container that a snapshot can be taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What the user called it.
    pub reference: String,
    /// Who knows it.
    pub runtime: Runtime,
    /// Its name at its runtime, or its id there; `None` when it was given by process number.
    pub name: Option<String>,
    /// Its init, or the process that was named.
    pub init: Pid,
    /// Start time of the init in clock ticks since boot: with it the number identifies the process.
    pub start: u64,
    /// Its control groups.
    pub cgroup: Cgroup,
    /// Inode number of its mount namespace (`/proc/PID/ns/mnt`).
    pub mount_namespace: u64,
    /// How it sees owners.
    pub ids: Ids,
    /// Its root.
    pub overlay: Overlay,
    /// How it was started.
    pub config: Config,
    /// What it was started from, if its runtime says.
    pub image: Option<ImageRef>,
    /// Its snapshot, if it is containerd's.
    pub snapshot: Option<SnapshotKey>,
}

/// What a reference means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A container that runs, or that its owner has paused.
    Running(Box<Target>),
    /// One that was made but does not run.
    Stopped(Box<Stopped>),
}

impl Target {
    /// The target whose init is this process.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of_process(init: Pid) -> Result<Target, Error> {
        let candidate = Candidate::new(Runtime::Pid, init.to_string(), process::dir(init));
        Target::of(&init.to_string(), &candidate.with_init(Some(init), None))
    }

    /// Whether the init still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::is_alive(self.init, Some(self.start))
    }

    /// The target that a candidate is, if its init runs.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and whatever is wrong with its root.
    pub fn of(reference: &str, candidate: &Candidate) -> Result<Target, Error> {
        let init = candidate.init.unwrap_or(Pid(0));
        let dead =
            || Error::NotRunning { reference: reference.to_owned(), init, kept: candidate.kept.clone() };
        let start = match process::stat(init) {
            Ok(stat) if stat.alive() && candidate.start.is_none_or(|s| s == stat.start) => stat.start,
            _ => return Err(dead()),
        };
        let namespace = process::dir(init).join("ns/mnt");
        let read = || {
            let overlay = Overlay::of(init)?;
            // A number that a runtime remembers may have another owner by now; with its start time that is seen, and without it by its root.
            if candidate.start.is_none()
                && let Some(layers) = &candidate.layers
                && stopped::identity(&layers.upper).is_ok_and(|found| found != overlay.upper_identity)
            {
                return Err(dead());
            }
            Ok(Target {
                reference: reference.to_owned(),
                runtime: candidate.runtime,
                name: (candidate.runtime != Runtime::Pid).then(|| candidate.shown().to_owned()),
                init,
                start,
                cgroup: Cgroup::of(init)?,
                mount_namespace: process::namespace(init, "mnt").map_err(|e| Error::io(&namespace, e))?,
                ids: process::ids(init).map_err(|e| Error::io(&process::dir(init), e))?,
                overlay,
                config: candidate.config.clone().unwrap_or_else(|| Config::from_process(init)),
                image: candidate.image.clone(),
                snapshot: candidate.snapshot.clone(),
            })
        };
        let target = read();
        // Whatever was read of a number that changed hands meanwhile is worth nothing, and so is the error it gave.
        if process::is_alive(init, Some(start)) { target } else { Err(dead()) }
    }
}

/// Whether a container's lowers come from a Nydus image: by containerd's word for the snapshotter, or because a daemon serves them (FUSE).
#[must_use]
pub fn is_nydus(snapshot: Option<&SnapshotKey>, lowers: &[PathBuf]) -> bool {
    // `FUSE_SUPER_MAGIC` (linux/magic.h).
    let is_served = |dir: &PathBuf| rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type as u64 == 0x6573_5546);
    snapshot.is_some_and(|snapshot| snapshot.snapshotter == "nydus") || lowers.iter().any(is_served)
}

/// The container that a reference means, running or not. Without a scheme every runtime in these places is asked at once; one that does not answer
/// is named in a warning.
///
/// # Errors
/// See [`Error`].
pub fn find(reference: &ContainerRef, places: &Places) -> Result<Found, Error> {
    let shown = reference.to_string();
    let candidate = resolver::one(reference, places)?;
    match Target::of(&shown, &candidate) {
        Err(Error::NotRunning { .. }) if candidate.layers.is_some() || candidate.snapshot.is_some() => {
            Ok(Found::Stopped(Box::new(Stopped::of(&shown, candidate)?)))
        }
        other => Ok(Found::Running(Box::new(other?))),
    }
}

/// The running target that a name, an id, a unique prefix of an id (3 characters or more), `RUNTIME://NAME`, `1234` or `pid:1234` means, at the
/// runtimes' usual places.
///
/// # Errors
/// See [`Error`]; [`Error::NotRunning`] also for a stopped container that could be snapshotted.
pub fn resolve(reference: &str) -> Result<Target, Error> {
    let parsed = reference.parse().unwrap_or_else(|_| ContainerRef::Name(reference.to_owned()));
    match find(&parsed, &Places::usual(None))? {
        Found::Running(target) => Ok(*target),
        Found::Stopped(stopped) => Err(stopped.not_running()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_init_is_said_to_be_dead() {
        let candidate = |init, start| {
            Candidate::new(Runtime::Runc, "x".to_owned(), "/state".into()).with_init(Some(init), start)
        };
        let error = Target::of("x", &candidate(Pid(u32::MAX), None)).unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }));
        let reused = candidate(Pid::own(), Some(1));
        assert!(matches!(Target::of("x", &reused), Err(Error::NotRunning { .. })));
    }

    #[test]
    fn unknown_names_where_it_looked() {
        let error = resolve("no-such-container").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFound { .. }));
        for place in ["/proc", "/run/runc", "/run/crun", "/run/docker.sock"] {
            assert!(text.contains(place), "{text}");
        }
        let one = resolve("runc://no-such-container").unwrap_err().to_string();
        assert!(one.contains("/run/runc") && !one.contains("docker.sock"), "{one}");
    }

    #[test]
    fn a_process_of_the_host_is_no_container() {
        // On the host its root is no overlay; in a container that has none of its own upper it is still an error or a target, never a panic.
        let _ = Target::of_process(Pid::own());
    }
}
