//! Containers of the built-in demo runtime.

use std::path::Path;

use super::{Candidate, Resolver, fits};
use crate::container::config::Config;
use crate::container::error::Error;
use crate::demo::state::{self, STATE_ROOT};
use crate::model::pid::Pid;

/// Reads the demo runtime's state files.
pub(super) struct Demo;

impl Resolver for Demo {
    fn name(&self) -> &'static str {
        "demo"
    }

    fn find(&self, reference: &str) -> Result<Vec<Candidate>, Error> {
        let root = Path::new(STATE_ROOT);
        let names = state::names().map_err(|e| Error::io(root, e))?;
        let mut found = Vec::new();
        for name in names.into_iter().filter(|n| fits(n, reference)) {
            // A demo that is just being stopped has no state any more.
            let Ok(demo) = state::read(&name) else { continue };
            found.push(Candidate {
                runtime: self.name(),
                exact: name == reference,
                id: name.clone(),
                name: Some(name.clone()),
                init: demo.init.unwrap_or(Pid(0)),
                start: demo.start,
                state: state::dir(&name),
                config: Some(Config {
                    command: vec!["demo".to_owned(), demo.workload.to_string()],
                    user: "0:0".to_owned(),
                    workdir: "/".to_owned(),
                    ..Config::default()
                }),
            });
        }
        Ok(found)
    }

    fn places(&self) -> Vec<String> {
        vec![STATE_ROOT.to_owned()]
    }
}
