//! What can go wrong with a commit.

use std::path::PathBuf;
use std::time::Duration;

use super::background;
use super::progress::Stage;
use crate::deliver::DeliverError;
use crate::image::ImageError;
use crate::model::fault::{Class, Fault};
use crate::model::{options, reference, target};
use crate::store::{self, Failure, SnapshotId};

/// What can go wrong with a commit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option out of bounds.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A target that is none.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// A container's name that is none.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The histogram of pauses.
    #[error(transparent)]
    Pauses(#[from] store::pauses::Error),
    /// The background process.
    #[error(transparent)]
    Background(#[from] background::Error),
    /// A privilege is missing.
    #[error("snapshots of containers need {}", missing.join(", "))]
    Privilege {
        /// The capabilities' names.
        missing: Vec<&'static str>,
    },
    /// The target exists.
    #[error("the target {target} exists")]
    TargetExists {
        /// Which.
        target: String,
    },
    /// The target cannot be used.
    #[error("the target {} cannot be used", path.display())]
    TargetUnusable {
        /// Its directory or the file in question.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An image to build on, or to take chunks from, is not fit for it.
    #[error("the image cannot be built on the one given")]
    BaseUnusable {
        /// Why, and what to do.
        source: ImageError,
    },
    /// Layers that the image refers to are in the registry no more: it must be made anew.
    #[error("could not {}", Stage::Deliver)]
    LayersGone {
        /// Which, and where they were.
        source: DeliverError,
    },
    /// A stage failed.
    #[error("could not {stage}")]
    Stage {
        /// Which.
        stage: Stage,
        /// The kind of failure.
        class: Class,
        /// What to do about it.
        remedy: Option<String>,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A signal asked us to stop, and we did.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// SIGINT, SIGTERM or SIGHUP.
        signal: i32,
    },
    /// The stages returned without the frozen upperdir where it must be.
    #[error("the frozen upperdir is not at {}", path.display())]
    NotFrozen {
        /// Where it should be.
        path: PathBuf,
    },
    /// The image was not complete in the time given. It goes on in the background.
    #[error("{id} is not complete after {waited:?}")]
    StillProcessing {
        /// The snapshot.
        id: SnapshotId,
        /// How long we waited.
        waited: Duration,
    },
    /// The cut was made; making the image failed in the background.
    #[error("making the image of {id} failed: {}", failure.message)]
    Failed {
        /// The snapshot.
        id: SnapshotId,
        /// Why.
        failure: Failure,
    },
}

impl Error {
    /// The error of a stage.
    pub fn stage(
        stage: Stage,
        class: Class,
        remedy: Option<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::Stage { stage, class, remedy, source: source.into() }
    }

    /// The error of a stage, from one that knows its class and remedy.
    pub fn fault(stage: Stage, source: impl Fault) -> Self {
        Error::Stage { stage, class: source.class(), remedy: source.remedy(), source: Box::new(source) }
    }

    /// The error with its causes in one line, `: ` between them.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // A transparent error repeats its cause's text.
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }

    /// How a record remembers it.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        Failure { message: self.chain(), remedy: self.remedy(), class: self.class() }
    }
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Options(e) => e.class(),
            Error::Target(e) => e.class(),
            Error::Reference(e) => e.class(),
            Error::Store(e) => e.class(),
            Error::Pauses(e) => e.class(),
            Error::Background(e) => e.class(),
            Error::Privilege { .. } => Class::Permission,
            Error::BaseUnusable { .. } => Class::Arguments,
            Error::TargetUnusable { source, .. } => crate::model::fault::class_of_io(source),
            Error::LayersGone { source } => source.class(),
            Error::Stage { class, .. } => *class,
            Error::Failed { failure, .. } => failure.class,
            Error::TargetExists { .. }
            | Error::Interrupted { .. }
            | Error::NotFrozen { .. }
            | Error::StillProcessing { .. } => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Error::Options(e) => e.remedy(),
            Error::Target(e) => e.remedy(),
            Error::Reference(e) => e.remedy(),
            Error::Store(e) => e.remedy(),
            Error::Pauses(e) => e.remedy(),
            Error::Background(e) => e.remedy(),
            Error::Privilege { .. } => Some("run as root, or grant the process these capabilities".into()),
            Error::TargetExists { .. } => Some("choose another tag, or replace it with --overwrite".into()),
            Error::TargetUnusable { .. } => {
                Some("the target must be an OCI image layout or a place for a new one".into())
            }
            Error::LayersGone { source } => source.remedy(),
            Error::Stage { remedy, .. } => remedy.clone(),
            Error::StillProcessing { id, .. } => {
                Some(format!("`snapshot-engine status {id}` shows how far it is"))
            }
            Error::Failed { failure, id } => Some(
                failure
                    .remedy
                    .clone()
                    .unwrap_or_else(|| format!("try again with `snapshot-engine resume {id}`")),
            ),
            Error::Interrupted { .. } => Some(
                "`snapshot-engine list` shows whether the cut was already made; if so, `resume` finishes it"
                    .into(),
            ),
            Error::NotFrozen { .. } | Error::BaseUnusable { .. } => None,
        }
    }
}
