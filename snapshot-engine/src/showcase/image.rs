//! One whole commit, as `seamless-commit --wait --compressor none` makes it.

use super::report::ImageResult;
use super::scene::Scene;
use super::{Error, Options};
use crate::model::format::Compressor;
use crate::model::nanos::{Nanos, Span};
use crate::model::options::CommitOptions;
use crate::model::reference::ContainerRef;
use crate::model::target::ImageTarget;
use crate::pipeline::Engine;
use crate::pipeline::commit::{self, CommitRequest};
use crate::pipeline::progress::Progress;
use crate::store::Record;

/// Cuts the loaded container and makes its image at `oci:WORK/image:demo`, over the one of the last run.
///
/// # Errors
/// As [`commit::cut`] and [`commit::finish`].
pub(super) fn make(
    options: &Options,
    scene: &Scene,
    progress: &dyn Progress,
) -> Result<(ImageResult, Record), Error> {
    // Uncompressed, so that the kernel can mount it.
    let commit = CommitOptions::default()
        .work_dir(scene.scratch.join("store"))
        .compressor(Compressor::None)
        .max_pause(options.max_pause)
        .overwrite(true);
    let target = ImageTarget::OciLayout { dir: scene.root.join("image"), tag: "demo".to_owned() };
    let container = ContainerRef::Name(scene.loaded.name().to_owned());
    let request = CommitRequest { container, target, options: commit };
    let mut claimed = commit::cut(&Engine::default(), request, progress)?;
    let record = commit::finish(&Engine::default(), &mut claimed, progress)?;
    let image = record.image.as_ref().ok_or(Error::NoImage)?;
    let time = |ns: Nanos| Span::from(ns);
    let result = ImageResult {
        target: record.target.to_string(),
        manifest: image.manifest.clone(),
        entries: image.entries,
        content_bytes: image.content_bytes,
        stored_bytes: image.stored_bytes,
        gate: record.cut.pause.gate,
        pause: time(record.cut.pause.window),
        cut_time: time(record.cut_time),
        image_time: time(record.image_time.unwrap_or_default()),
    };
    Ok((result, record))
}
