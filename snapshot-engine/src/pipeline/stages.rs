//! The seam between the order of the stages and the stages.

use std::path::PathBuf;

use super::Error;
use super::progress::Progress;
use crate::model::access::Delivery;
use crate::model::options::CommitOptions;
use crate::model::reference::ContainerRef;
use crate::model::snapshot::{Cut, ImageReport};
use crate::store::{Record, SnapshotId};

/// What a cut needs to know.
#[derive(Debug, Clone)]
pub struct CutRequest {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The snapshot's directory, empty but for its lock: 0700, ours. The frozen upperdir comes to be at `frozen` in it.
    pub directory: PathBuf,
    /// The container as the user named it.
    pub container: ContainerRef,
    /// What the user chose; valid.
    pub options: CommitOptions,
}

impl CutRequest {
    /// Where the frozen upperdir must be when [`Stages::cut`] returns.
    #[must_use]
    pub fn frozen(&self) -> PathBuf {
        self.directory.join("frozen")
    }
}

/// The stages, in the two halves between which the engine may be killed without losing the snapshot.
pub trait Stages: Send + Sync {
    /// `resolve` to `freeze`. On success the container runs as before, and the frozen upperdir is complete and durable at
    /// [`CutRequest::frozen`]. On error, too, the container runs as before and nothing is left outside the request's directory, which the caller
    /// removes. [`Progress::check`] is to be called between rounds and never inside the window.
    ///
    /// # Errors
    /// [`Error::stage`] with the class of the failure; [`Error::Interrupted`] from [`Progress::check`].
    fn cut(&self, request: &CutRequest, progress: &dyn Progress) -> Result<Cut, Error>;

    /// `chunk` to `image`: from the frozen upperdir and what the record says of the container to the target, or to a layout in the snapshot's directory from
    /// where it is delivered. It may be called again after it
    /// failed or was killed at any point, and then succeeds as if it had not been called before: with `image_attempts` > 1 the target may hold the
    /// very image an earlier call has finished.
    ///
    /// # Errors
    /// As [`cut`](Stages::cut).
    fn image(&self, record: &Record, progress: &dyn Progress) -> Result<ImageReport, Error>;

    /// From the layout in the snapshot's directory to a target that is none itself. It may be called again after it failed or was killed at any point;
    /// what has arrived is not sent again where the target can tell.
    ///
    /// # Errors
    /// As [`cut`](Stages::cut). The layout is as it was.
    fn deliver(&self, record: &Record, progress: &dyn Progress) -> Result<Delivery, Error>;
}
