//! The runtimes a container may belong to: one file each.

use std::path::{Path, PathBuf};

use super::config::Config;
use super::error::Error;
use crate::model::pid::Pid;

mod crun;
mod demo;
mod pid;
mod runc;

/// A container that a reference may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The runtime that knows it.
    pub runtime: &'static str,
    /// Its full id there.
    pub id: String,
    /// Its name, where the runtime has one besides the id.
    pub name: Option<String>,
    /// Its init.
    pub init: Pid,
    /// The init's start time in clock ticks since boot, against reuse of its number.
    pub start: Option<u64>,
    /// Where the runtime keeps its state.
    pub state: PathBuf,
    /// How it was started, if the runtime says.
    pub config: Option<Config>,
    /// The reference is its whole id, name or number, not a prefix.
    pub exact: bool,
}

/// One runtime's knowledge of containers.
pub trait Resolver {
    /// The runtime's name, for messages.
    fn name(&self) -> &'static str;

    /// Every container whose id or name is the reference, or whose id starts with it. Those whose init is dead are
    /// listed too: that they are stale is an answer.
    ///
    /// # Errors
    /// When the runtime's state is there but cannot be read.
    fn find(&self, reference: &str) -> Result<Vec<Candidate>, Error>;

    /// The places it looks at, for the message that nothing was found.
    fn places(&self) -> Vec<String>;
}

/// Where the runtimes keep their state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Directories with one directory a container holding runc's `state.json`.
    pub runc: Vec<PathBuf>,
    /// Directories with one directory a container holding crun's `status`.
    pub crun: Vec<PathBuf>,
}

impl Default for Roots {
    /// The places of runc, podman, containerd (every namespace) and docker, and of crun.
    fn default() -> Roots {
        let mut runc = vec![PathBuf::from("/run/runc"), PathBuf::from("/run/docker/runtime-runc/moby")];
        runc.extend(subdirectories(Path::new("/run/containerd/runc")));
        Roots { runc, crun: vec![PathBuf::from("/run/crun")] }
    }
}

/// All resolvers.
pub(super) fn all(roots: &Roots) -> Vec<Box<dyn Resolver>> {
    vec![
        Box::new(pid::ByPid),
        Box::new(demo::Demo),
        Box::new(runc::Runc { roots: roots.runc.clone() }),
        Box::new(crun::Crun { roots: roots.crun.clone() }),
    ]
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

/// The containers of a state root whose id fits the reference: id, state file, exact.
fn matching(root: &Path, file: &str, reference: &str) -> Vec<(String, PathBuf, bool)> {
    subdirectories(root)
        .into_iter()
        .filter_map(|dir| {
            let id = dir.file_name()?.to_str()?.to_owned();
            let state = dir.join(file);
            (fits(&id, reference) && state.exists()).then(|| (id.clone(), state, id == reference))
        })
        .collect()
}

/// An id fits if the reference is it, or a prefix of at least three characters.
fn fits(id: &str, reference: &str) -> bool {
    id == reference || (reference.len() >= 3 && id.starts_with(reference))
}
