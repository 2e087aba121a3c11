//! The real stages, in their order.

use std::time::{Duration, Instant};

use super::progress::{Progress, Stage};
use super::session::{Made, Session};
use super::stages::{CutRequest, Stages};
use super::{Error, still};
use crate::container::{self, Target};
use crate::freeze::attempt::Policy;
use crate::model::fault::{Class, class_of_io};
use crate::model::nanos::Nanos;
use crate::model::options::TrackerChoice;
use crate::model::reference::ContainerRef;
use crate::model::snapshot::{Cut, Gate, ImageReport, Pause, StageTime, TargetFacts};
use crate::store::Record;

/// The engine's own stages.
#[derive(Debug, Default, Clone, Copy)]
pub struct Engine;

/// Finds a container.
///
/// # Errors
/// [`Error::Stage`] with the class of what is wrong with it.
pub fn resolve(container: &ContainerRef) -> Result<Target, Error> {
    let found = match container {
        ContainerRef::Name(name) => container::resolve(name),
        ContainerRef::Pid(pid) => container::resolve(&format!("pid:{pid}")),
    };
    found.map_err(|e| {
        use container::Error as E;
        let class = match &e {
            E::NotFound { .. } | E::NotRunning { .. } => Class::NoContainer,
            E::Permission { .. } => Class::Permission,
            E::Io { source, .. } => class_of_io(source),
            _ => Class::General,
        };
        Error::stage(Stage::Resolve, class, None, e)
    })
}

/// Times stages.
struct Clock {
    last: Instant,
    times: Vec<StageTime>,
}

impl Clock {
    fn start() -> Clock {
        Clock { last: Instant::now(), times: Vec::new() }
    }

    fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.times.push(StageTime { stage: stage.key().to_owned(), ns: Nanos::from(now - self.last) });
        self.last = now;
    }
}

impl Stages for Engine {
    fn cut(&self, request: &CutRequest, progress: &dyn Progress) -> Result<Cut, Error> {
        let mut clock = Clock::start();
        progress.report(Stage::Resolve, 0, 0);
        let target = resolve(&request.container)?;
        clock.lap(Stage::Resolve);
        let options = &request.options;
        let shadow = request.directory.join("work");
        let (frozen, pause) = if options.tracker == TrackerChoice::None {
            let (frozen, took, inodes) =
                still::cut(&target, options.max_pause.as_duration(), &shadow, &request.frozen(), progress)?;
            clock.lap(Stage::Window);
            let pause = still_pause(took, inodes, frozen.bytes);
            (frozen, pause)
        } else {
            let policy =
                Policy { choice: options.gate, budget: options.max_pause.as_duration(), ..Policy::default() };
            let mut session = Session::open(target.clone(), options, &shadow, policy, 0, progress)?;
            clock.lap(Stage::Track);
            let made = session.cut(progress)?;
            clock.lap(Stage::Window);
            let frozen = session.freeze(&request.frozen(), progress)?;
            (frozen, tracked_pause(&made))
        };
        clock.lap(Stage::Freeze);
        Ok(Cut {
            old_upper_dir: frozen.path,
            new_upper_dir: target.overlay.upper.clone(),
            pause,
            target: facts(target),
            timings: clock.times,
        })
    }

    fn image(&self, record: &Record, progress: &dyn Progress) -> Result<ImageReport, Error> {
        super::image::build(record, progress)
    }
}

fn still_pause(took: Duration, inodes: u64, bytes: u64) -> Pause {
    let ns = Nanos::from(took);
    Pause {
        gate: if took.is_zero() { Gate::None } else { Gate::Freezer },
        attempts: 1,
        window: ns,
        longest_stop: ns,
        rounds: 0,
        residual_inodes: inodes,
        residual_bytes: bytes,
        voided: 0,
        tracker_misses: 0,
    }
}

fn tracked_pause(made: &Made) -> Pause {
    // The container felt the abandoned attempts as well (G6).
    let others = made.other_stops.iter().map(|(_, stop)| *stop).max().unwrap_or_default();
    Pause {
        gate: made.pause.gate,
        attempts: made.attempts,
        window: Nanos::from(made.pause.pause()),
        longest_stop: Nanos::from(made.pause.longest_stop.max(others)),
        rounds: made.rounds,
        residual_inodes: made.inodes,
        residual_bytes: made.bytes,
        voided: made.attempts.saturating_sub(1),
        tracker_misses: made.misses,
    }
}

fn facts(target: Target) -> TargetFacts {
    let config = &target.config;
    TargetFacts {
        container: target.name.unwrap_or(target.reference),
        init_pid: target.init.0,
        userxattr: target.overlay.userxattr,
        image: None,
        config: serde_json::to_value(config).ok(),
        lowers: target.overlay.lowers.into_iter().chain(target.overlay.data).collect(),
    }
}
