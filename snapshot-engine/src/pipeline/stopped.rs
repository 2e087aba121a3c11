//! A container that does not run: its upperdir is copied as it lies there, and the copy counts only if it stayed so.

use std::path::Path;

use super::Error;
use super::progress::{Progress, Stage};
use super::session::stage_of;
use super::watched::Watched;
use crate::capture::{Frozen, Shadow, ShadowOptions};
use crate::container::{self, Places, Stopped};
use crate::model::dirty::Still;
use crate::model::fault::Class;

/// Copies the upperdir. Returns the frozen upperdir, and how many inodes were copied.
///
/// Three things say that nobody wrote meanwhile: a sweep over every inode finds what the copy has; the overlay was not mounted since the container
/// was found, so it was not started even for a moment; and its runtime says that it does not run.
///
/// # Errors
/// When one of the three does not hold, or the copy fails. Nothing is left then.
pub(super) fn cut(
    target: &Stopped,
    places: &Places,
    directory: &Path,
    frozen: &Path,
    progress: &dyn Progress,
) -> Result<(Frozen, u64), Error> {
    let refused = |e: container::Error| Error::stage(Stage::PreCopy, Class::General, None, e);
    let capture = |e| stage_of(e, Stage::PreCopy, progress);
    let mut shadow =
        Shadow::create(&target.layers.upper, directory, ShadowOptions::default()).map_err(capture)?;
    let changed = || container::Error::Changed { reference: target.reference.clone() };
    if shadow.identity() != target.identity {
        return Err(refused(changed()));
    }
    shadow.base(&mut Still, &Watched::new(progress, Stage::PreCopy)).map_err(capture)?;
    let inodes = shadow.len() as u64;
    if !shadow.sweep().map_err(capture)?.is_empty() {
        return Err(refused(changed()));
    }
    target.still(places).map_err(refused)?;
    progress.check()?;
    let frozen = shadow
        .freeze(frozen, &Watched::new(progress, Stage::Freeze))
        .map_err(|e| stage_of(e, Stage::Freeze, progress))?;
    Ok((frozen, inodes))
}
