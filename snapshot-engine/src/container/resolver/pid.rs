//! A container named by the process number of its init.

use super::{Candidate, Resolver, Wanted};
use crate::container::error::Error;
use crate::container::process;
use crate::model::pid::Pid;
use crate::model::reference::Runtime;

/// Takes `1234`. Of all processes none is a container by itself.
pub(super) struct ByPid;

impl Resolver for ByPid {
    fn runtime(&self) -> Runtime {
        Runtime::Pid
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let Wanted::Named(name) = wanted else { return Ok(Vec::new()) };
        let Ok(number) = name.parse::<u32>() else { return Ok(Vec::new()) };
        let init = Pid(number);
        match process::stat(init) {
            Ok(stat) => {
                let candidate = Candidate::new(self.runtime(), number.to_string(), process::dir(init));
                Ok(vec![Candidate { exact: true, ..candidate.with_init(Some(init), Some(stat.start)) }])
            }
            Err(e) if process::is_gone(&e) => Ok(Vec::new()),
            Err(e) => Err(Error::io(&process::dir(init), e)),
        }
    }

    fn places(&self) -> Vec<String> {
        vec!["/proc".to_owned()]
    }
}
