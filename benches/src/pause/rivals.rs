//! The peers on this machine: each on a container of its own, cut by the fence in turn with what the peer can do, felt by the same ticker.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use snapshot_engine::bench::pause::{BUDGET, Scratch, open};
use snapshot_engine::bench::report::{Missed, Report, Scene, Series};
use snapshot_engine::bench::series::{Contender, Course, Done, Rival};
use snapshot_engine::bench::ticker::Ticker;
use snapshot_engine::bench::{Error, text};
use snapshot_engine::container::tasks;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Progress;

use super::plan::Extent;
use super::stopped;
use crate::peers::{self, Layer, Load, Peer, Running};

/// One operation of a peer's container.
struct Operation {
    container: Rc<RefCell<Box<dyn Running>>>,
    name: &'static str,
}

impl Rival for Operation {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn perform(&mut self) -> Result<Done, Error> {
        match self.container.borrow_mut().perform(self.name) {
            Ok(took) => Ok(Done { from: took.from, to: Nanos(took.from.0 + Nanos::from(took.wall).0) }),
            Err(e) => Err(Error::Command { command: self.name.to_owned(), why: format!("{e:#}") }),
        }
    }
}

/// Measures every peer that can be started, with a small upper and with one of 1 GiB. Who is absent is noted with the reason.
///
/// # Errors
/// A signal.
pub fn measure(
    extent: Extent,
    place: &Path,
    report: &mut Report,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<()> {
    let small = Layer { files: 1000, bytes: 100 << 20, tasks: 8, load: Load::Log };
    let large = Layer { bytes: 1 << 30, ..small };
    for name in peers::NAMES {
        progress.check()?;
        let peer = match peers::one(name, place, None) {
            Ok(peer) => peer,
            Err(absent) => {
                report.missed.push(Missed { what: name.into(), why: absent.reason });
                continue;
            }
        };
        // Others than docker take half a minute for a GiB; the goal is about docker.
        let layers = match (extent, name) {
            (Extent::Quick, "docker") => vec![large],
            (Extent::Quick, _) => vec![small],
            _ => vec![small, large],
        };
        for layer in &layers {
            let what = format!("peer {name} {}, {}", peer.version(), text::size(layer.bytes));
            tell(&what);
            match one(extent, &*peer, layer, place, progress) {
                Ok(series) => {
                    report.violations.extend(series.iter().flat_map(Series::violations));
                    report.series.extend(series);
                }
                Err(e) if stopped(&e) => return Err(e),
                Err(e) => report.missed.push(Missed { what, why: format!("{e:#}") }),
            }
        }
    }
    Ok(())
}

fn one(
    extent: Extent,
    peer: &dyn Peer,
    layer: &Layer,
    place: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Series>> {
    let (windows, time) = match extent {
        Extent::Quick => (10, Duration::from_secs(6)),
        Extent::Usual => (40, Duration::from_secs(12)),
        Extent::Full => (200, Duration::from_secs(120)),
    };
    let container = peer.start(layer)?;
    let target = container.target().clone();
    let operations = container.operations();
    let scene = Scene {
        axis: "peer".into(),
        label: format!("{} {}, {}", peer.name(), peer.version(), text::size(layer.bytes)),
        file_system: target.overlay.upper_fs.clone(),
        upper_bytes: layer.bytes,
        files: u64::from(layer.files),
        tasks: tasks(&target)?.len() as u64,
        workload: "a line to a log, 100 times a second".into(),
        container: target.reference.clone(),
    };
    // On drop the session and the ticker go before the container.
    let container = Rc::new(RefCell::new(container));
    let ticker = Ticker::start(None, &target)?;
    let scratch = Scratch::new(place)?;
    let session = open(target, BUDGET, &scratch.path().join("shadow"), progress)?;
    let mut course = Course::new(session, Some(ticker), scene, None, progress)?;
    course.enter(Contender::Gate(GateChoice::Fence, BUDGET), windows);
    for name in operations {
        let operation = Operation { container: Rc::clone(&container), name };
        course.enter(Contender::Rival(Box::new(operation)), windows);
    }
    // At least one turn, however slow: a commit of 1 GiB may take longer than all the time there is.
    let deadline = Instant::now() + time;
    loop {
        course.turn(progress)?;
        // Some more of ours beside a command that takes seconds.
        for _ in 0..4 {
            course.turn_of_gates(progress)?;
        }
        if course.done() || Instant::now() > deadline {
            break;
        }
    }
    Ok(course.finish())
}
