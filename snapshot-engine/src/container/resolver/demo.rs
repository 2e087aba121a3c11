//! Containers of the built-in demo runtime.

use std::path::Path;

use super::{Candidate, Resolver, Wanted};
use crate::container::config::Config;
use crate::container::error::Error;
use crate::demo::state::{self, STATE_ROOT};
use crate::model::reference::Runtime;

/// Reads the demo runtime's state files.
pub(super) struct Demo;

impl Resolver for Demo {
    fn runtime(&self) -> Runtime {
        Runtime::Demo
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let root = Path::new(STATE_ROOT);
        let names = state::names().map_err(|e| Error::io(root, e))?;
        let mut found = Vec::new();
        for name in names {
            let Some(exact) = wanted.fits(&name, &[]) else { continue };
            // A demo that is just being stopped has no state any more.
            let Ok(demo) = state::read(&name) else { continue };
            let config = Config {
                command: vec!["demo".to_owned(), demo.workload.to_string()],
                user: "0:0".to_owned(),
                workdir: "/".to_owned(),
                ..Config::default()
            };
            let kept = state::dir(&name);
            let candidate = Candidate::new(self.runtime(), name, kept).with_init(demo.init, demo.start);
            found.push(Candidate { config: Some(config), exact, ..candidate });
        }
        Ok(found)
    }

    fn places(&self) -> Vec<String> {
        vec![STATE_ROOT.to_owned()]
    }
}
