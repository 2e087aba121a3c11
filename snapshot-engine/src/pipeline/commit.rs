//! The two halves of a commit: [`cut`], after which the snapshot outlives us, and [`finish`], which can be repeated.

use std::path::Path;
use std::time::Instant;

use super::progress::{Progress, Recorded, Stage};
use super::stages::{CutRequest, Stages};
use super::{Error, deliver, preflight};
use crate::model::nanos::Nanos;
use crate::model::options::CommitOptions;
use crate::model::reference::ContainerRef;
use crate::model::snapshot::StageTime;
use crate::model::target::ImageTarget;
use crate::store::{Claimed, Record, State, Store, pauses, version_for};

/// What a commit needs to know.
#[derive(Debug, Clone)]
pub struct CommitRequest {
    /// The container as the user named it.
    pub container: ContainerRef,
    /// Where the image goes.
    pub target: ImageTarget,
    /// What the user chose.
    pub options: CommitOptions,
}

/// Makes the cut. On success the snapshot is durable, `pending`, and ours; on error nothing of it is left, and the container runs as before.
///
/// # Errors
/// What can be known beforehand is refused before the container is touched, in this order: options, privilege, work directory, target,
/// images to build on.
pub fn cut(stages: &dyn Stages, request: CommitRequest, progress: &dyn Progress) -> Result<Claimed, Error> {
    let began = Instant::now();
    let CommitRequest { container, target, options } = request;
    options.validate()?;
    preflight::privileges()?;
    let target = target.clone().absolute().map_err(|source| Error::TargetUnusable {
        path: target.path().unwrap_or(Path::new("")).to_owned(),
        source,
    })?;
    let store = Store::open(&options.work_dir)?;
    let options = options.work_dir(store.work_dir());
    let options = preflight::access(options)?;
    preflight::target(&target, &options)?;
    let options = preflight::images(options.settled())?;
    progress.check()?;

    // From here to `publish` every way out drops the draft, and with it the directory.
    let draft = store.begin()?;
    let request = CutRequest {
        id: draft.id(),
        directory: draft.path().to_owned(),
        container: container.clone(),
        options,
    };
    let cut = stages.cut(&request, progress)?;
    let frozen = request.frozen();
    if !std::fs::symlink_metadata(&frozen).is_ok_and(|stat| stat.is_dir()) {
        return Err(Error::NotFrozen { path: frozen });
    }
    progress.check()?;
    let pause = cut.pause.clone();
    let claimed = draft.publish(Record {
        version: version_for(&target, &request.options),
        snapshot_id: request.id,
        container,
        target,
        options: request.options,
        state: State::Pending,
        failure: None,
        cut,
        cut_time: began.elapsed().into(),
        image_attempts: 0,
        image: None,
        image_time: None,
        delivery: None,
    })?;
    // The snapshot is made; a histogram that cannot be written does not unmake it.
    if let Err(e) = pauses::remember(&store, &pause) {
        tracing::warn!("the pause is not in the histogram: {e}");
    }
    tracing::info!("{} is cut: {:?}", claimed.record().snapshot_id, claimed.record().cut.pause);
    Ok(claimed)
}

/// Makes the image of a snapshot and delivers it. Repeatable: of a completed snapshot it only returns the record, and an image that has been made and not
/// delivered is not made again.
///
/// # Errors
/// The snapshot is then `failed` and says why; interrupted, it stays `processing`, and without us `interrupted`. Either can be resumed.
pub fn finish(stages: &dyn Stages, claimed: &mut Claimed, progress: &dyn Progress) -> Result<Record, Error> {
    if claimed.record().state != State::Completed {
        progress.check()?;
        claimed.update(|record| {
            record.state = State::Processing;
            record.failure = None;
            record.image_attempts += 1;
        })?;
        match make(stages, claimed, progress) {
            Ok(()) => {}
            Err(e @ Error::Interrupted { .. }) => return Err(e),
            Err(e) => {
                let failure = e.to_failure();
                if let Err(write) = claimed.update(|record| {
                    record.state = State::Failed;
                    record.failure = Some(failure);
                }) {
                    // On a full disk: it will be seen as interrupted, which is just as true.
                    tracing::warn!("the failure is not on record: {write}");
                }
                return Err(e);
            }
        }
    }
    if !claimed.record().target.is_layout() {
        claimed.drop_layout()?;
    }
    if !claimed.record().options.keep_frozen {
        claimed.drop_frozen()?;
    }
    Ok(claimed.record().clone())
}

/// Image and delivery; on success the record says so. An image whose layers have gone from the registry meanwhile is made once more.
fn make(stages: &dyn Stages, claimed: &mut Claimed, progress: &dyn Progress) -> Result<(), Error> {
    match made_once(stages, claimed, progress) {
        Err(Error::LayersGone { source }) => {
            tracing::warn!("the image is made anew: {source}");
            forget(claimed)?;
            made_once(stages, claimed, progress).inspect_err(|e| {
                if matches!(e, Error::LayersGone { .. })
                    && let Err(e) = forget(claimed)
                {
                    tracing::warn!("the image stays: {e}");
                }
            })
        }
        done => done,
    }
}

/// The image is to be made again.
fn forget(claimed: &mut Claimed) -> Result<(), Error> {
    claimed.update(|record| record.image = None)?;
    Ok(claimed.drop_layout()?)
}

fn made_once(stages: &dyn Stages, claimed: &mut Claimed, progress: &dyn Progress) -> Result<(), Error> {
    let is_layout = claimed.record().target.is_layout();
    if !deliver::is_built(claimed.record()) {
        let began = Instant::now();
        let report = stages.image(claimed.record(), &Recorded::new(claimed, progress))?;
        claimed.update(|record| {
            record.image = Some(report);
            record.image_time = Some(Nanos::from(began.elapsed()));
            if is_layout {
                record.state = State::Completed;
            }
        })?;
    }
    if !is_layout {
        let began = Instant::now();
        let delivery = stages.deliver(claimed.record(), &Recorded::new(claimed, progress))?;
        claimed.update(|record| {
            record.state = State::Completed;
            record.delivery = Some(delivery);
            if let Some(image) = &mut record.image {
                let ns = Nanos::from(began.elapsed());
                image.timings.push(StageTime { stage: Stage::Deliver.key().to_owned(), ns });
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
