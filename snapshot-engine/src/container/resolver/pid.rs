//! A container named by the process number of its init.

use super::{Candidate, Resolver};
use crate::container::error::Error;
use crate::container::process;
use crate::model::pid::Pid;

/// Takes `1234` and `pid:1234`.
pub(super) struct ByPid;

impl Resolver for ByPid {
    fn name(&self) -> &'static str {
        "pid"
    }

    fn find(&self, reference: &str) -> Result<Vec<Candidate>, Error> {
        let explicit = reference.strip_prefix("pid:");
        let Ok(number) = explicit.unwrap_or(reference).parse::<u32>() else { return Ok(Vec::new()) };
        let init = Pid(number);
        match process::stat(init) {
            Ok(stat) => Ok(vec![Candidate {
                runtime: self.name(),
                id: number.to_string(),
                name: None,
                init,
                start: Some(stat.start),
                state: process::dir(init),
                config: None,
                exact: true,
            }]),
            Err(e) if process::is_gone(&e) => Ok(Vec::new()),
            Err(e) => Err(Error::io(&process::dir(init), e)),
        }
    }

    fn places(&self) -> Vec<String> {
        vec!["/proc".to_owned()]
    }
}
