//! From the frozen upperdir and its lowers to the image: `chunk -> rafs -> image`, all of it repeatable.
//!
//! ```text
//!   WORK/snapshots/ID/frozen  ─┐
//!   lowers ── WORK/layers ─────┴─► WORK/snapshots/ID/image/{blobs,image.boot} ─► the target's layout, or WORK/snapshots/ID/layout
//! ```

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::progress::{Progress, Stage};
use super::{Error, earlier};
use crate::container::Config;
use crate::image::build::{Request, build as build_image};
use crate::image::oci::{ImageConfig, OciTarget};
use crate::image::{self, ImageError};
use crate::model::fault::{Class, class_of_io, remedy_of_io};
use crate::model::nanos::Nanos;
use crate::model::overlay::Namespaces;
use crate::model::snapshot::{ImageReport, StageTime};
use crate::store::Record;

/// Passes on what the image stages report.
struct Passed<'a> {
    to: &'a dyn Progress,
    stage: Mutex<Stage>,
}

impl Passed<'_> {
    fn now(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl image::Progress for Passed<'_> {
    fn stage(&self, name: &str) {
        let stage = match name {
            "bootstrap" => Stage::Bootstrap,
            "image" => Stage::Publish,
            _ => Stage::Chunk,
        };
        *self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = stage;
        self.to.report(stage, 0, 0);
    }

    fn advance(&self, done_bytes: u64, total_bytes: u64) {
        self.to.report(self.now(), done_bytes, total_bytes);
    }
}

/// Builds the image of a recorded snapshot.
pub(super) fn build(record: &Record, progress: &dyn Progress) -> Result<ImageReport, Error> {
    let passed = Passed { to: progress, stage: Mutex::new(Stage::Chunk) };
    let request = request(record)?;
    let built = build_image(&request, &passed).map_err(|e| failed(passed.now(), e))?;
    let t = built.timings;
    let timings =
        [(Stage::Chunk, t.lowers + t.upper), (Stage::Bootstrap, t.bootstrap), (Stage::Publish, t.oci)].map(
            |(stage, took): (Stage, Duration)| StageTime {
                stage: stage.key().to_owned(),
                ns: Nanos::from(took),
            },
        );
    Ok(ImageReport {
        manifest: built.manifest.0,
        bootstrap: built.bootstrap,
        blobs: built.blobs.into_iter().map(|b| b.path).collect(),
        entries: built.files,
        chunks: built.chunks,
        content_bytes: built.content_bytes,
        taken_over_bytes: built.taken_over_bytes,
        stored_bytes: built.stored_bytes,
        timings: timings.to_vec(),
    })
}

fn request(record: &Record) -> Result<Request, Error> {
    let options = &record.options;
    let upper = record.cut.old_upper_dir.clone();
    let snapshot = upper.parent().unwrap_or(Path::new("/")).to_owned();
    // Beside the snapshots: WORK/snapshot-engine/layers.
    let cache_dir = snapshot.ancestors().nth(2).unwrap_or(&snapshot).join("layers");
    let (dir, tag) = super::deliver::layout(record);
    let facts = &record.cut.target;
    Ok(Request {
        // A parent is the image of the lowers.
        lowers: if options.parent.is_some() { Vec::new() } else { facts.lowers.clone() },
        parent: options.parent.clone(),
        dictionaries: options.chunk_dict.clone(),
        incremental: Some(earlier::choose(record, &snapshot)),
        upper,
        cache_dir,
        work_dir: snapshot.join("image"),
        // A layout of our own holds nothing but what an earlier try has left.
        target: OciTarget { dir, tag, overwrite: options.overwrite || !record.target.is_layout() },
        format: options.format()?,
        prefetch: options.prefetch.clone(),
        namespaces: if facts.userxattr { Namespaces::User } else { Namespaces::Trusted },
        workers: options.background_workers as usize,
        config: config(record),
        created: record.snapshot_id.time(),
        sync: true,
        resumed: record.image_attempts > 1,
    })
}

fn config(record: &Record) -> ImageConfig {
    let known: Config =
        record.cut.target.config.clone().and_then(|c| serde_json::from_value(c).ok()).unwrap_or_default();
    let options = &record.options;
    ImageConfig {
        cmd: known.command,
        entrypoint: known.entrypoint,
        env: known.env,
        user: known.user,
        workdir: known.workdir,
        author: options.author.clone().unwrap_or_default(),
        message: options.message.clone().unwrap_or_default(),
        created_by: format!("snapshot-engine seamless-commit --container {}", record.cut.target.container),
        ..ImageConfig::default()
    }
}

fn failed(stage: Stage, e: ImageError) -> Error {
    // What the kernel said lies at a different depth in each part's errors.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(error) = cause.filter(|error| !error.is::<std::io::Error>()) {
        cause = error.source();
    }
    let io = cause.and_then(|error| error.downcast_ref::<std::io::Error>());
    let class = io.map_or(Class::General, class_of_io);
    let remedy = io.and_then(remedy_of_io);
    Error::stage(stage, class, remedy, e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkError;
    use crate::model::fault::Fault;

    #[test]
    fn a_full_disk_has_its_remedy_however_deep_it_is() {
        let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
        let write = ChunkError::Write { dir: "/w".into(), source: full() };
        let plain = ImageError::Io { what: "write", path: "/w".into(), source: full() };
        for e in [ImageError::Chunk(write), plain] {
            let remedy = failed(Stage::Chunk, e).remedy();
            assert!(remedy.is_some_and(|r| r.contains("free some space")));
        }
    }
}
