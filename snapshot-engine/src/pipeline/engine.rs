//! The real stages, in their order.

use std::time::{Duration, Instant};

use super::earlier::SETTLED;
use super::grafts::{grafts, none_of_stopped};
use super::progress::{Progress, Stage};
use super::session::{Made, Session};
use super::stages::{CutRequest, Stages};
use super::{Error, still, stopped};
use crate::container::{self, Config, Found, ImageRef, Places, SnapshotKey, Stopped, Target};
use crate::freeze::attempt::Policy;
use crate::image::earlier;
use crate::model::access::{Delivery, Login};
use crate::model::fault::{Class, class_of_io};
use crate::model::ids::Ids;
use crate::model::nanos::Nanos;
use crate::model::options::TrackerChoice;
use crate::model::reference::ContainerRef;
use crate::model::snapshot::{Backend, Cut, Gate, ImageReport, ImageStore, Pause, StageTime, TargetFacts};
use crate::store::Record;

/// The engine's own stages.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where containers are looked for.
    pub places: Places,
    /// Who we are at the target's registry; `None` to look into the configuration of docker and podman.
    pub login: Option<Login>,
}

impl Default for Engine {
    /// At the usual places.
    fn default() -> Engine {
        Engine { places: Places::usual(None), login: None }
    }
}

/// Finds a running container at the usual places.
///
/// # Errors
/// [`Error::Stage`] with the class of what is wrong with it.
pub fn resolve(container: &ContainerRef) -> Result<Target, Error> {
    resolve_in(container, &Places::usual(None))
}

/// Finds a running container in these places.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(container: &ContainerRef, places: &Places) -> Result<Target, Error> {
    match find(container, places)? {
        Found::Running(target) => Ok(*target),
        Found::Stopped(stopped) => Err(not_found(stopped.not_running())),
    }
}

/// Finds a container, running or not.
///
/// # Errors
/// As [`resolve`].
pub fn find(container: &ContainerRef, places: &Places) -> Result<Found, Error> {
    container::find(container, places).map_err(not_found)
}

pub(super) fn not_found(e: container::Error) -> Error {
    use container::Error as E;
    let class = match &e {
        E::NotFound { .. } | E::NotRunning { .. } | E::LayersElsewhere { .. } => Class::NoContainer,
        E::Permission { .. } => Class::Permission,
        E::Io { source, .. } => class_of_io(source),
        E::Added { .. } => Class::Arguments,
        _ => Class::General,
    };
    Error::stage(Stage::Resolve, class, None, e)
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
        let found = find(&request.container, &self.places)?;
        clock.lap(Stage::Resolve);
        let target = match found {
            Found::Running(target) => *target,
            Found::Stopped(target) => return self.cut_stopped(*target, request, clock, progress),
        };
        let options = &request.options;
        let shadow = request.directory.join("work");
        let (frozen, pause, tracker) = if options.tracker == TrackerChoice::None {
            let budget = options.max_pause.as_duration();
            let grafts = grafts(&target, options)?;
            let (frozen, took, inodes) =
                still::cut(&target, grafts, budget, &shadow, &request.frozen(), progress)?;
            clock.lap(Stage::Window);
            let pause = still_pause(took, inodes, frozen.bytes);
            (frozen, pause, Backend::None)
        } else {
            let policy =
                Policy { choice: options.gate, budget: options.max_pause.as_duration(), ..Policy::default() };
            let mut session = Session::open(target.clone(), options, &shadow, policy, 0, progress)?;
            clock.lap(Stage::Track);
            let made = session.cut(progress)?;
            clock.lap(Stage::Window);
            let backend = session.backend();
            let frozen = session.freeze(&request.frozen(), progress)?;
            // Only here: without a tracker nobody knows whose pages could be stored to.
            if let Some(settled) = &frozen.settled
                && let Err(error) = earlier::record(&request.directory.join(SETTLED), settled)
            {
                tracing::warn!(%error, "the next snapshot will read everything");
            }
            (frozen, tracked_pause(&made), backend)
        };
        clock.lap(Stage::Freeze);
        Ok(Cut {
            old_upper_dir: frozen.path,
            new_upper_dir: target.overlay.upper.clone(),
            pause,
            tracker: Some(tracker),
            target: TargetFacts {
                ids: target.ids,
                nydus: container::is_nydus(target.snapshot.as_ref(), &target.overlay.lowers),
                init_pid: target.init.0,
                userxattr: target.overlay.userxattr,
                lowers: target.overlay.lowers.into_iter().chain(target.overlay.data).collect(),
                ..facts(
                    target.name.unwrap_or(target.reference),
                    &target.config,
                    target.image,
                    target.snapshot,
                )
            },
            timings: clock.times,
        })
    }

    fn image(&self, record: &Record, progress: &dyn Progress) -> Result<ImageReport, Error> {
        super::image::build(record, self.login.as_ref(), progress)
    }

    fn deliver(&self, record: &Record, progress: &dyn Progress) -> Result<Delivery, Error> {
        super::deliver::deliver(record, self.login.as_ref(), progress)
    }
}

impl Engine {
    /// Nobody writes: no gate, no tracker, no pause.
    fn cut_stopped(
        &self,
        target: Stopped,
        request: &CutRequest,
        mut clock: Clock,
        progress: &dyn Progress,
    ) -> Result<Cut, Error> {
        none_of_stopped(&target, &request.options)?;
        let shadow = request.directory.join("work");
        let (frozen, inodes) = stopped::cut(&target, &self.places, &shadow, &request.frozen(), progress)?;
        clock.lap(Stage::Freeze);
        Ok(Cut {
            old_upper_dir: frozen.path,
            new_upper_dir: target.layers.upper.clone(),
            pause: still_pause(Duration::ZERO, inodes, frozen.bytes),
            tracker: Some(Backend::None),
            target: TargetFacts {
                nydus: container::is_nydus(target.snapshot.as_ref(), &target.layers.lowers),
                userxattr: target.layers.userxattr,
                lowers: target.layers.lowers,
                ..facts(target.name, &target.config, target.image, target.snapshot)
            },
            timings: clock.times,
        })
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

fn facts(
    container: String,
    config: &Config,
    image: Option<ImageRef>,
    snapshot: Option<SnapshotKey>,
) -> TargetFacts {
    let image_at = image.as_ref().map(|image| image.at.clone()).unwrap_or_default();
    let (image, image_digest) = image.map(|image| (image.name, image.digest)).unzip();
    // Where docker says that there is a containerd and nobody has found it, it has no address.
    let store = snapshot.filter(|snapshot| !snapshot.address.as_os_str().is_empty());
    TargetFacts {
        container,
        init_pid: 0,
        lowers: Vec::new(),
        userxattr: false,
        image,
        image_digest: image_digest.filter(|digest| !digest.is_empty()),
        image_at,
        image_store: store.map(|SnapshotKey { address, namespace, .. }| ImageStore { address, namespace }),
        config: serde_json::to_value(config).ok(),
        ids: Ids::default(),
        nydus: false,
    }
}
