//! The built-in demo runtime: a real container on any machine with root, without a container runtime, an image or a network.
//!
//! ```text
//! start: state dir, layers, cgroups -> program __demo-init NAME -> namespaces, overlay, jobs -> Demo
//! stop:  kill the cgroup -> wait -> remove cgroups, layers, state
//! ```
//!
//! The overlay is mounted in the container's own mount namespace, so it is gone when the last process is.

pub mod content;
mod fault;
mod init;
mod jobs;
mod layers;
mod lifecycle;
pub mod state;
pub mod ticks;
pub mod workload;

use std::io;
use std::path::PathBuf;

pub use init::init_if_asked;
pub use layers::{Seed, fill};
pub use lifecycle::{start, stop};
pub use state::State;
pub use ticks::{TickReport, Tickers};
pub use workload::{Job, Rate, TickMode, Workload};

use crate::container::process;
use crate::model::pid::Pid;

/// Where the layers go unless told otherwise; it must not be an overlay itself.
pub const LAYERS_ROOT: &str = "/var/lib/snapshot-engine/demo";

/// What kind of demo to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOptions {
    /// Letters, digits, `-`, `_` and `.`, at most 64; its id as well.
    pub name: String,
    /// The layers go to a new directory NAME below this one, on a file system that can hold an upperdir.
    pub layers_root: PathBuf,
    /// Lower layers, 1 to 32.
    pub lowers: u32,
    /// What lies in the upperdir from the start.
    pub seed: Seed,
    /// What it does.
    pub workload: Workload,
    /// The processors it may use; all if empty.
    pub cpus: Vec<usize>,
    /// A directory on the file system of `layers_root` that becomes the topmost lower layer; it is moved there.
    pub top: Option<PathBuf>,
    /// Whether the overlay can rename directories of its lower layers (`redirect_dir=on`).
    pub redirect_dir: bool,
    /// The program to execute, whose `main` calls [`init_if_asked`]; `None`: this one.
    pub program: Option<PathBuf>,
}

impl StartOptions {
    /// Three lower layers, a little seed and the default workload.
    #[must_use]
    pub fn new(name: &str) -> StartOptions {
        StartOptions {
            name: name.to_owned(),
            layers_root: PathBuf::from(LAYERS_ROOT),
            lowers: 3,
            seed: Seed { files: 20, bytes: 1 << 20 },
            workload: Workload::default(),
            cpus: Vec::new(),
            top: None,
            redirect_dir: false,
            program: None,
        }
    }
}

/// A demo container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demo {
    /// Its state file.
    pub state: State,
    /// Whether its init runs. If not, [`stop`] clears what is left.
    pub running: bool,
}

impl Demo {
    fn from_state(state: State) -> Demo {
        let running = state.init.is_some_and(|init| process::is_alive(init, state.start));
        Demo { state, running }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its init, if it runs.
    #[must_use]
    pub fn init(&self) -> Option<Pid> {
        self.state.init.filter(|_| self.running)
    }

    /// Its upperdir.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.state.layers.join("upper")
    }
}

/// Why a demo cannot be started, stopped or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a name.
    #[error(
        "{0:?} cannot be a demo's name: use letters, digits, '-', '_' and '.', at most 64, the first a letter or digit"
    )]
    BadName(String),
    /// Not a number of layers.
    #[error("a demo cannot have {0} lower layers: use 1 to 32")]
    BadLowers(u32),
    /// The name is taken.
    #[error("there is a demo {0:?} already: stop it, or choose another name")]
    Exists(String),
    /// No such demo.
    #[error("there is no demo {0:?}: start it first")]
    NotFound(String),
    /// Its init is gone.
    #[error("the demo {0:?} is dead: stop it to clear what is left, then start it again")]
    Dead(String),
    /// The container could not be made.
    #[error(
        "the demo {name:?} did not start: {why}; root with CAP_SYS_ADMIN and a file system that can hold an upperdir are needed"
    )]
    NotStarted {
        /// The demo.
        name: String,
        /// What its init said.
        why: String,
    },
    /// Processes that do not die.
    #[error(
        "processes of the demo {0:?} do not end after SIGKILL: look for one in state D, then stop it again"
    )]
    Undead(String),
    /// Anything else the kernel said.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// What was being done it to.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A demo by name, running or dead.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Io`] when its state cannot be read.
pub fn load(name: &str) -> Result<Demo, Error> {
    lifecycle::check_name(name)?;
    match state::read(name) {
        Ok(state) => Ok(Demo::from_state(state)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NotFound(name.to_owned())),
        Err(source) => Err(Error::Io { path: state::file(name), source }),
    }
}

/// Every demo, running or dead, by name. One that is just being made or removed is left out.
///
/// # Errors
/// When the state root cannot be listed.
pub fn list() -> Result<Vec<Demo>, Error> {
    let names = state::names().map_err(|source| Error::Io { path: state::STATE_ROOT.into(), source })?;
    Ok(names.iter().filter_map(|name| state::read(name).ok()).map(Demo::from_state).collect())
}

/// The tickers of a running demo.
///
/// # Errors
/// [`Error::Dead`], and as [`load`].
pub fn tickers(name: &str) -> Result<Tickers, Error> {
    let demo = load(name)?;
    let (Some(init), Some(fd)) = (demo.init(), demo.state.ticks_fd) else {
        return Err(Error::Dead(name.to_owned()));
    };
    let path = process::dir(init).join("fd").join(fd.to_string());
    Tickers::open(&path, demo.state.workload.tickers()).map_err(|source| Error::Io { path, source })
}

/// What each ticker of a running demo saw, in the order of its workload.
///
/// # Errors
/// As [`tickers`].
pub fn ticks(name: &str) -> Result<Vec<TickReport>, Error> {
    Ok(tickers(name)?.reports())
}
