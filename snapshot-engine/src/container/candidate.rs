//! A container as a runtime tells of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::process;
use crate::model::pid::Pid;
use crate::model::reference::Runtime;

/// What a runtime says that a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// Its owner has paused it.
    Paused,
    /// It was made and never started.
    Created,
    /// It has ended.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Created => "created",
            State::Stopped => "stopped",
        })
    }
}

/// The image a container was started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// As it was named: `docker.io/library/redis:7`.
    pub name: String,
    /// `sha256:..` of its manifest or index at containerd and CRI, of its config (the image's id) at docker and podman; empty if the runtime does not say.
    pub digest: String,
    /// Names by which registries have it: `docker.io/library/redis@sha256:..`.
    #[serde(default)]
    pub at: Vec<String>,
}

/// A container's snapshot at containerd: with it the layers can be asked for, mounted or pushed by containerd itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotKey {
    /// containerd's socket; empty where docker says that there is one, and nobody who was asked is it.
    pub address: PathBuf,
    /// The namespace at containerd: `default`, `k8s.io`, `moby`.
    pub namespace: String,
    /// `overlayfs`, `nydus` ...
    pub snapshotter: String,
    /// The active snapshot's key, mostly the container's id.
    pub key: String,
}

/// The layers of a container as its runtime keeps them, with paths that the engine can open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// The writable one.
    pub upper: PathBuf,
    /// Overlayfs' work directory.
    pub work: PathBuf,
    /// The read-only ones, top first.
    pub lowers: Vec<PathBuf>,
    /// Whether overlayfs keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
}

/// A container that a reference may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The runtime that knows it.
    pub runtime: Runtime,
    /// Its full id there.
    pub id: String,
    /// Its names there, the one to show first; none where the runtime has only ids.
    pub names: Vec<String>,
    /// What the runtime says that it does.
    pub state: State,
    /// Its init as the engine numbers processes; `None` if it has none or the engine cannot see it.
    pub init: Option<Pid>,
    /// The init's start time in clock ticks since boot, against reuse of its number.
    pub start: Option<u64>,
    /// Where the runtime keeps its state, or the socket it was asked at.
    pub kept: PathBuf,
    /// How it was started, if the runtime says.
    pub config: Option<Config>,
    /// What it was started from, if the runtime says.
    pub image: Option<ImageRef>,
    /// The labels or annotations that its runtime or orchestrator gave it.
    pub labels: BTreeMap<String, String>,
    /// Its layers, if the runtime says. Of a running container the mount itself tells, which cannot be stale.
    pub layers: Option<Layers>,
    /// Its snapshot at containerd.
    pub snapshot: Option<SnapshotKey>,
    /// The reference is its whole id, name or number, not a prefix.
    pub exact: bool,
}

impl Candidate {
    /// One of which nothing more is known.
    #[must_use]
    pub fn new(runtime: Runtime, id: String, kept: PathBuf) -> Candidate {
        Candidate {
            runtime,
            id,
            names: Vec::new(),
            state: State::Stopped,
            init: None,
            start: None,
            kept,
            config: None,
            image: None,
            labels: BTreeMap::new(),
            layers: None,
            snapshot: None,
            exact: false,
        }
    }

    /// The same with an init, which says whether it runs: for runtimes whose state does not.
    pub(super) fn with_init(mut self, init: Option<Pid>, start: Option<u64>) -> Candidate {
        (self.init, self.start) = (init, start);
        self.state = if self.is_alive() { State::Running } else { State::Stopped };
        self
    }

    /// Its name, or its id where it has none.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }

    /// Whether its init runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.init.is_some_and(|init| process::is_alive(init, self.start))
    }
}

impl fmt::Display for Candidate {
    /// For a list to choose from: what can be given back as a reference, the name, and the state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Candidate { runtime, id, names, state, init, .. } = self;
        if *runtime == Runtime::Pid {
            return write!(f, "pid:{id}");
        }
        write!(f, "{runtime}://{id} (")?;
        if let Some(name) = names.iter().find(|name| *name != id) {
            write!(f, "{name}, ")?;
        }
        write!(f, "{state}")?;
        match init {
            Some(init) => write!(f, ", process {init})"),
            None => write!(f, ")"),
        }
    }
}
