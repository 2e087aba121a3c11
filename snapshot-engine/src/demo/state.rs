//! The state file of a demo container: `STATE_ROOT/NAME/state.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layers::Seed;
use super::workload::Workload;
use crate::model::pid::Pid;

/// One directory a demo container.
pub const STATE_ROOT: &str = "/run/snapshot-engine/demo";

/// What there is to know of a demo container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Its init; `None` while it is being started.
    pub init: Option<Pid>,
    /// The init's start time in clock ticks since boot.
    pub start: Option<u64>,
    /// The directory of its layers: `lower1` (the base) to `lowerN`, `upper`, `work`, `merged`.
    pub layers: PathBuf,
    /// How many lower layers.
    pub lowers: u32,
    /// Whether its overlay is mounted with `redirect_dir=on`.
    #[serde(default)]
    pub redirect_dir: bool,
    /// Its v2 cgroup.
    pub cgroup_v2: Option<PathBuf>,
    /// Its cgroup in the v1 freezer hierarchy.
    pub freezer_v1: Option<PathBuf>,
    /// The init's descriptor of the tickers' memory.
    pub ticks_fd: Option<i32>,
    /// What lies in its upperdir from the start.
    pub seed: Seed,
    /// What it does.
    pub workload: Workload,
    /// The processors it may use; all if empty.
    pub cpus: Vec<usize>,
}

/// The state directory of a demo.
#[must_use]
pub fn dir(name: &str) -> PathBuf {
    Path::new(STATE_ROOT).join(name)
}

/// The state file of a demo.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    dir(name).join("state.json")
}

/// Names of all demos, running or not, sorted.
///
/// # Errors
/// When the state root is there but cannot be listed.
pub fn names() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(STATE_ROOT) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Reads a demo's state.
///
/// # Errors
/// When there is none, or none that can be read.
pub fn read(name: &str) -> io::Result<State> {
    Ok(serde_json::from_slice(&fs::read(file(name))?)?)
}

/// Writes a demo's state so that a reader sees the old or the new one.
///
/// # Errors
/// When the state directory cannot be written.
pub fn write(state: &State) -> io::Result<()> {
    let new = dir(&state.name).join("state.json.new");
    fs::write(&new, serde_json::to_vec_pretty(state)?)?;
    fs::rename(new, file(&state.name))
}
