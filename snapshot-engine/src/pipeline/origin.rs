//! Where the image that the container was started from is, so that its layers need not be made again: asked only when the cut is made, and nothing is lost if
//! nobody knows.

use std::path::Path;

use super::Error;
use super::deliver::Passed;
use super::progress::{Progress, Stage};
use crate::deliver::{self, Question};
use crate::model::access::Login;
use crate::model::base::Origin;
use crate::model::config::Config;
use crate::store::Record;

/// Looks for it. Layers that must be read go into `blobs`.
///
/// # Errors
/// When a signal wants us to stop.
pub(super) fn find(
    record: &Record,
    config: &Config,
    login: Option<&Login>,
    blobs: &Path,
    progress: &dyn Progress,
) -> Result<Option<Origin>, Error> {
    let facts = &record.cut.target;
    let made = || tracing::info!("layers are made of the container's lower directories");
    let Some(digest) = &facts.image_digest else {
        made();
        return Ok(None);
    };
    let question = Question {
        digest,
        platform: config.platform.clone().or_this_machine(),
        names: &names(record),
        target: &record.target,
        access: &record.options.access,
        login,
        store: facts.image_store.as_ref(),
        name: facts.image.as_deref().unwrap_or_default(),
        blobs,
    };
    let found = deliver::find_origin(&question, &Passed::new(progress, Stage::Chunk));
    if let Ok(None) = found {
        made();
    }
    // It only fails when it is stopped.
    found.map_err(|e| progress.check().err().unwrap_or_else(|| Error::fault(Stage::Chunk, e)))
}

/// Names of the image that the container was started from, the surest first.
pub(super) fn names(record: &Record) -> Vec<String> {
    let facts = &record.cut.target;
    facts.image_at.iter().chain(&facts.image).cloned().collect()
}
