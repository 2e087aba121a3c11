//! `ps`: every container on this machine, and what a snapshot of it would be like. Nobody is held.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::attach::upper;
use super::outlook::{Outlook, outlook};
use super::rate;
use super::survey::{Survey, survey};
use crate::container::{Candidate, Error as Cannot, Places, State, Stopped, Target, resolver};
use crate::kernel::beneath::Dir;
use crate::model::nanos::Nanos;
use crate::model::paths;
use crate::model::reference::Runtime;
use crate::model::snapshot::Gate;

/// What is to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Containers that do not run, too.
    pub all: bool,
    /// Measure for so long how fast each running container dirties its tree, one after the other.
    pub rate: Option<Duration>,
}

/// Every container that was found.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// By runtime and name.
    pub containers: Vec<Row>,
    /// Runtimes that could not be asked, and why.
    pub unanswered: Vec<String>,
}

/// One container. It serialises to the JSON the command prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Who knows it.
    pub runtime: Runtime,
    /// Its id there.
    pub id: String,
    /// Its names there, the one to show first.
    pub names: Vec<String>,
    /// The image it was made from, as it was named.
    pub image: Option<String>,
    /// That image's digest, as the runtime has it.
    pub image_digest: Option<String>,
    /// Its labels or annotations.
    pub labels: BTreeMap<String, String>,
    /// Running, paused, created or stopped.
    pub state: State,
    /// Its init, as the engine numbers processes.
    pub init: Option<u32>,
    /// Its upperdir, reachable by the engine.
    #[serde(with = "paths")]
    pub upper: PathBuf,
    /// Bytes of the regular files in it.
    pub upper_bytes: Option<u64>,
    /// Its inodes.
    pub upper_inodes: Option<u64>,
    /// Bytes a second that became dirty, if that was measured.
    pub dirty_rate: Option<u64>,
    /// What measuring it came to, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_rate_error: Option<String>,
    /// The gate that would be used, and why; `None` if no snapshot can be made.
    pub gate: Option<Outlook>,
    /// Why no snapshot can be made.
    pub refused: Option<String>,
}

impl Row {
    fn new(told: &Candidate) -> Row {
        let image = told.image.clone();
        Row {
            runtime: told.runtime,
            id: told.id.clone(),
            names: told.names.clone(),
            image: image.as_ref().map(|i| i.name.clone()).filter(|name| !name.is_empty()),
            image_digest: image.map(|i| i.digest).filter(|digest| !digest.is_empty()),
            labels: told.labels.clone(),
            state: told.state,
            init: told.init.map(|pid| pid.0),
            upper: PathBuf::new(),
            upper_bytes: None,
            upper_inodes: None,
            dirty_rate: None,
            dirty_rate_error: None,
            gate: None,
            refused: None,
        }
    }

    fn measured(&mut self, survey: Survey) {
        (self.upper_bytes, self.upper_inodes) = (Some(survey.bytes), Some(survey.inodes));
    }

    /// Its name, or its id where it has none.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

/// Looks at every container.
#[must_use]
pub fn list(places: &Places, options: &Options) -> Listing {
    let answers = resolver::list(places);
    let rows = answers.candidates.iter().map(|told| row(told, options));
    let mut containers: Vec<Row> = rows.filter(|row| options.all || runs(row.state)).collect();
    containers.sort_by(|a, b| (a.runtime, a.shown()).cmp(&(b.runtime, b.shown())));
    Listing { containers, unanswered: answers.unanswered.iter().map(ToString::to_string).collect() }
}

fn runs(state: State) -> bool {
    matches!(state, State::Running | State::Paused)
}

fn row(told: &Candidate, options: &Options) -> Row {
    let mut row = Row::new(told);
    let done = match Target::of(&told.id, told) {
        Ok(target) => running(&mut row, &target, options),
        // Whatever its runtime said, there is no such process: it has ended since, or the number was stale.
        Err(Cannot::NotRunning { .. }) => {
            row.state = if told.state == State::Created { State::Created } else { State::Stopped };
            row.init = None;
            if options.all { stopped(&mut row, told) } else { Ok(()) }
        }
        Err(refused) => Err(refused.to_string()),
    };
    row.refused = done.err();
    row
}

fn running(row: &mut Row, target: &Target, options: &Options) -> Result<(), String> {
    row.upper.clone_from(&target.overlay.upper);
    let io = |e: std::io::Error| e.to_string();
    row.measured(survey(&upper(target).map_err(io)?, |_, _| {}).map_err(io)?);
    let mut outlook = outlook(target).map_err(io)??;
    let frozen = target.cgroup.is_frozen().map_err(io)?;
    row.state = if frozen { State::Paused } else { State::Running };
    if let Some(time) = options.rate.filter(|_| !frozen) {
        match rate::measure(target, time) {
            Ok(rate) => row.dirty_rate = Some(rate),
            Err(e) => row.dirty_rate_error = Some(e.chain()),
        }
        if row.dirty_rate == Some(0) && outlook.gate == Gate::Fence {
            outlook = Outlook::new(Gate::None, format!("nothing was written in {}", Nanos::from(time)));
        }
    } else if frozen {
        row.dirty_rate = options.rate.map(|_| 0);
    }
    row.gate = Some(outlook);
    Ok(())
}

fn stopped(row: &mut Row, told: &Candidate) -> Result<(), String> {
    let stopped = Stopped::of(&told.id, told.clone()).map_err(|e| match e {
        Cannot::NotRunning { .. } => {
            "it does not run, and its runtime does not say where its layers are".to_owned()
        }
        other => other.to_string(),
    })?;
    row.upper.clone_from(&stopped.layers.upper);
    let walked = Dir::enclose(&stopped.layers.upper).and_then(|root| survey(&root, |_, _| {}));
    row.measured(walked.map_err(|e| e.to_string())?);
    row.gate = Some(Outlook::new(Gate::None, "it does not run: nobody writes"));
    Ok(())
}

/// Whether the machine lets us look at all: without the privilege every container would be refused, one by one.
///
/// # Errors
/// As a commit's.
pub fn privileges() -> Result<(), super::Error> {
    super::preflight::privileges()
}
