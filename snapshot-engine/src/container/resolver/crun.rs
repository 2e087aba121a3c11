//! Containers of crun.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Candidate, Resolver, Wanted, matching};
use crate::container::config::Config;
use crate::container::error::Error;
use crate::container::process;
use crate::container::vantage::Vantage;
use crate::model::reference::Runtime;

/// Reads `ROOT/ID/status`.
pub(super) struct Crun {
    pub(super) roots: Vec<PathBuf>,
    pub(super) vantage: Vantage,
}

/// The part of `status` that is read here (crun, `src/libcrun/status.c`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    pid: u32,
    #[serde(default)]
    process_start_time: u64,
    bundle: Option<PathBuf>,
}

impl Resolver for Crun {
    fn runtime(&self) -> Runtime {
        Runtime::Crun
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let mut found = Vec::new();
        for root in &self.roots {
            for (id, file, exact) in matching(root, "status", wanted) {
                let text = match fs::read(&file) {
                    Ok(text) => text,
                    Err(e) if process::is_gone(&e) => continue,
                    Err(e) => return Err(Error::io(&file, e)),
                };
                let status: Status = serde_json::from_slice(&text).map_err(|e| Error::State {
                    runtime: self.runtime(),
                    path: file.clone(),
                    detail: e.to_string(),
                })?;
                let start = (status.process_start_time != 0).then_some(status.process_start_time);
                let candidate = Candidate::new(self.runtime(), id, file)
                    .with_init(self.vantage.process(status.pid), start);
                let bundle = status.bundle.map(|bundle| self.vantage.path(&bundle));
                let config = bundle.as_deref().and_then(Config::from_bundle);
                found.push(Candidate { config, exact, ..candidate });
            }
        }
        Ok(found)
    }

    fn places(&self) -> Vec<String> {
        self.roots.iter().map(|r| r.display().to_string()).collect()
    }
}
