//! `record.json`, and what `status` makes of it.
//!
//! Version 1 knows one kind of target, an OCI layout, and one of image; such records are still written as version 1, so that an older engine reads them.
//! Version 2 has the other targets and what delivering came to, and images that an older engine would make otherwise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, SnapshotId};
use crate::model::access::Delivery;
use crate::model::fault::Class;
use crate::model::nanos::Nanos;
use crate::model::options::CommitOptions;
use crate::model::paths;
use crate::model::reference::ContainerRef;
use crate::model::snapshot::{Cut, ImageReport};
use crate::model::target::ImageTarget;

/// The newest version this engine knows. A change that an older engine would misread raises it.
pub const SCHEMA_VERSION: u32 = 2;

/// The version of a record with this target and these options: the oldest that has them.
#[must_use]
pub fn version_for(target: &ImageTarget, options: &CommitOptions) -> u32 {
    if target.is_layout() && options.is_of_old() { 1 } else { SCHEMA_VERSION }
}

/// Where a snapshot is on its way to an image. The cut is made in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The frozen upperdir is durable; nobody has begun with the image.
    Pending,
    /// The image is being made.
    Processing,
    /// The image is complete.
    Completed,
    /// Making the image failed; it can be tried again.
    Failed,
}

impl State {
    /// As in the record.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Processing => "processing",
            State::Completed => "completed",
            State::Failed => "failed",
        }
    }
}

/// Why making the image failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error with its causes, `: ` between them.
    pub message: String,
    /// What to do about it, where known.
    pub remedy: Option<String>,
    /// Its kind; the exit code follows from it.
    pub class: Class,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As [`version_for`] its target and options.
    pub version: u32,
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// The container as the user named it.
    pub container: ContainerRef,
    /// Where the image goes.
    pub target: ImageTarget,
    /// What the user chose.
    pub options: CommitOptions,
    /// Where it is.
    pub state: State,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What the stages up to the cut returned.
    pub cut: Cut,
    /// From the beginning of the command to the durable frozen upperdir.
    pub cut_time: Nanos,
    /// How often the image has been begun. From the second time on, the target may hold what an earlier try has finished.
    pub image_attempts: u32,
    /// What the image stages returned, once the image is made. Delivered it is when the state is completed.
    pub image: Option<ImageReport>,
    /// How long the successful try of the image took.
    pub image_time: Option<Nanos>,
    /// What delivering it came to, once completed; of an OCI layout there is nothing to deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
}

impl Record {
    /// Whether the directory holds what the record promises.
    pub(super) fn is_whole(&self, directory: &Path) -> bool {
        let frozen_may_be_gone = self.state == State::Completed && !self.options.keep_frozen;
        frozen_may_be_gone || fs::symlink_metadata(directory.join("frozen")).is_ok_and(|s| s.is_dir())
    }
}

/// How far a snapshot is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotStatus {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// Where it is.
    pub state: State,
    /// 0 to 1.
    pub progress: f64,
    /// It is not complete and nobody works on it: the engine was killed, or the machine went down. It can be resumed.
    pub interrupted: bool,
    /// The process that works on it, as far as it says.
    pub pid: Option<u32>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Its directory in the store.
    #[serde(with = "paths")]
    pub directory: PathBuf,
    /// Everything else that is known.
    pub record: Record,
}

impl SnapshotStatus {
    /// The state in one word, `interrupted` included.
    #[must_use]
    pub fn word(&self) -> &'static str {
        if self.interrupted { "interrupted" } else { self.state.word() }
    }
}

/// Reads a record; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Record>, Error> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let broken = |source| Error::Record { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(&text).map_err(broken)?;
    if head.version > SCHEMA_VERSION {
        return Err(Error::Version { path: path.to_owned(), version: head.version });
    }
    serde_json::from_slice(&text).map(Some).map_err(broken)
}

pub(super) fn status(record: Record, directory: &Path, holder: Option<Option<u32>>) -> SnapshotStatus {
    let unfinished = matches!(record.state, State::Pending | State::Processing);
    let progress = match record.state {
        State::Completed => 1.0,
        State::Pending => 0.0,
        // A torn or missing file is no progress known.
        State::Processing | State::Failed => fs::read_to_string(directory.join("progress"))
            .ok()
            .and_then(|text| text.trim().parse::<f64>().ok())
            .filter(|p| p.is_finite())
            .map_or(0.0, |p| p.clamp(0.0, 1.0)),
    };
    SnapshotStatus {
        snapshot_id: record.snapshot_id,
        state: record.state,
        progress,
        interrupted: unfinished && holder.is_none(),
        pid: holder.flatten(),
        failure: record.failure.clone(),
        directory: directory.to_owned(),
        record,
    }
}
