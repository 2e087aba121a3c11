//! From the layout in the snapshot's own directory to the target; nothing to do where the target is a layout itself.
//!
//! ```text
//!   WORK/snapshots/ID/layout ─► deliver/ ─► the target         WORK/snapshots/ID/push.json: uploads under way
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;
use super::progress::{Progress, Stage};
use crate::deliver::{self, DeliverError, Replace, Request};
use crate::model::access::{Delivery, Login};
use crate::model::progress;
use crate::model::target::ImageTarget;
use crate::store::{Record, State, Store};

/// The name of the image in the snapshot's own layout.
const TAG: &str = "image";

/// The layout the image is built in, and its name there: the target, or a place from which it is delivered.
pub(super) fn layout(record: &Record) -> (PathBuf, String) {
    match &record.target {
        ImageTarget::OciLayout { dir, tag } => (dir.clone(), tag.clone()),
        _ => (snapshot(record).join("layout"), TAG.to_owned()),
    }
}

/// Whether an earlier try has built the image and it is still there to be delivered.
pub(super) fn is_built(record: &Record) -> bool {
    record.image.is_some() && !record.target.is_layout() && layout(record).0.join("index.json").is_file()
}

fn snapshot(record: &Record) -> PathBuf {
    record.cut.old_upper_dir.parent().unwrap_or(Path::new("/")).to_owned()
}

/// What may be done with a file that is there already.
pub(super) fn replace(overwrite: bool, resumed: bool) -> Replace {
    match (overwrite, resumed) {
        (true, _) => Replace::Yes,
        (false, true) => Replace::Same,
        (false, false) => Replace::No,
    }
}

/// Passes on how far it is.
pub(super) struct Passed<'a> {
    to: &'a dyn Progress,
    stage: Stage,
    done: AtomicU64,
    total: AtomicU64,
}

impl<'a> Passed<'a> {
    pub(super) fn new(to: &'a dyn Progress, stage: Stage) -> Passed<'a> {
        Passed { to, stage, done: AtomicU64::new(0), total: AtomicU64::new(0) }
    }
}

impl progress::Progress for Passed<'_> {
    fn stage(&self, _: &'static str) {}

    fn total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.to.report(self.stage, done, self.total.load(Ordering::Relaxed));
    }

    fn stopped(&self) -> bool {
        self.to.check().is_err()
    }
}

/// Delivers the image of a recorded snapshot.
pub(super) fn deliver(
    record: &Record,
    login: Option<&Login>,
    progress: &dyn Progress,
) -> Result<Delivery, Error> {
    let (dir, tag) = layout(record);
    let near = near(record);
    let request = Request {
        layout: &dir,
        tag: &tag,
        target: &record.target,
        access: &record.options.access,
        login,
        replace: replace(record.options.overwrite, record.image_attempts > 1),
        near: &near,
        origin: record.image.as_ref().and_then(|image| image.layers_at.as_deref()),
        journal: snapshot(record).join("push.json"),
    };
    let passed = Passed::new(progress, Stage::Deliver);
    progress.report(Stage::Deliver, 0, 0);
    deliver::deliver(&request, &passed).map_err(|e| match (e, progress.check()) {
        (DeliverError::Stopped, Err(interrupted)) => interrupted,
        (source @ DeliverError::Gone { .. }, _) => Error::LayersGone { source },
        (e, _) => Error::fault(Stage::Deliver, e),
    })
}

/// Images that may share blobs with this one: the one the container was started from, and those this work directory has sent, the newest first.
fn near(record: &Record) -> Vec<String> {
    let sent =
        Store::open_existing(&record.options.work_dir).ok().flatten().and_then(|store| store.list().ok());
    let sent = sent.unwrap_or_default().into_iter().rev().filter(|other| other.state == State::Completed);
    let sent = sent.filter(|other| matches!(other.record.target, ImageTarget::Registry { .. }));
    super::origin::names(record)
        .into_iter()
        .chain(sent.map(|other| other.record.target.to_string()))
        .collect()
}
