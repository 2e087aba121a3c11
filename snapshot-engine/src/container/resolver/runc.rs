//! Containers of runc, and of whatever drives it: containerd, docker, podman.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Candidate, Resolver, Wanted, matching};
use crate::container::config::Config;
use crate::container::error::Error;
use crate::container::process;
use crate::container::vantage::Vantage;
use crate::model::reference::Runtime;

/// Reads `ROOT/ID/state.json`.
pub(super) struct Runc {
    pub(super) roots: Vec<PathBuf>,
    pub(super) vantage: Vantage,
}

/// The part of `state.json` that is read here (runc, `libcontainer/container.go`, `BaseState`).
#[derive(Deserialize)]
struct State {
    init_process_pid: u32,
    #[serde(default)]
    init_process_start: u64,
    #[serde(default)]
    config: StateConfig,
}

#[derive(Deserialize, Default)]
struct StateConfig {
    /// `key=value`; `bundle` is one of them.
    labels: Option<Vec<String>>,
}

impl Resolver for Runc {
    fn runtime(&self) -> Runtime {
        Runtime::Runc
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let mut found = Vec::new();
        for root in &self.roots {
            for (id, file, exact) in matching(root, "state.json", wanted) {
                let text = match fs::read(&file) {
                    Ok(text) => text,
                    Err(e) if process::is_gone(&e) => continue,
                    Err(e) => return Err(Error::io(&file, e)),
                };
                let state: State = serde_json::from_slice(&text).map_err(|e| Error::State {
                    runtime: self.runtime(),
                    path: file.clone(),
                    detail: e.to_string(),
                })?;
                let labels = state.config.labels.unwrap_or_default();
                let bundle = labels.iter().find_map(|l| l.strip_prefix("bundle="));
                let start = (state.init_process_start != 0).then_some(state.init_process_start);
                let candidate = Candidate::new(self.runtime(), id, file)
                    .with_init(self.vantage.process(state.init_process_pid), start);
                let config = bundle.and_then(|b| Config::from_bundle(&self.vantage.path(Path::new(b))));
                found.push(Candidate { config, exact, ..candidate });
            }
        }
        Ok(found)
    }

    fn places(&self) -> Vec<String> {
        self.roots.iter().map(|r| r.display().to_string()).collect()
    }
}
