//! From the frozen upperdir and its lowers to the image: `chunk -> rafs -> image`, or `image::archive`, all of it repeatable.
//!
//! ```text
//!   WORK/snapshots/ID/frozen  ─┐  ┌─► nydus: WORK/snapshots/ID/image/{blobs,image.boot} ─┐
//!   lowers ── WORK/layers ─────┴──┴─► oci:   WORK/snapshots/ID/image/blobs ───────────────┴─► the target's layout, or WORK/snapshots/ID/layout
//! ```

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::progress::{Progress, Stage};
use super::{Error, earlier, origin};
use crate::image::cache::Cache;
use crate::image::config::ImageConfig;
use crate::image::oci::OciTarget;
use crate::image::{self, ImageError, Task, archive, build};
use crate::model::access::Login;
use crate::model::base::Whereabouts;
use crate::model::change;
use crate::model::config::Config;
use crate::model::fault::{Class, Fault as _, class_of_io, remedy_of_io};
use crate::model::format::ImageFormat;
use crate::model::globs::PathGlobs;
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
pub(super) fn build(
    record: &Record,
    login: Option<&Login>,
    progress: &dyn Progress,
) -> Result<ImageReport, Error> {
    let passed = Passed { to: progress, stage: Mutex::new(Stage::Chunk) };
    let task = task(record, config(record)?);
    let format = match record.options.format {
        ImageFormat::Auto if record.cut.target.nydus => ImageFormat::Nydus,
        format => format,
    };
    let made = match format {
        ImageFormat::Nydus => nydus(record, task, &passed)?,
        ImageFormat::Oci | ImageFormat::Auto => oci(record, task, login, &passed)?,
    };
    made.map_err(|e| failed(passed.now(), e))
}

/// The snapshot's directory: the frozen upperdir is in it.
fn directory(record: &Record) -> &Path {
    record.cut.old_upper_dir.parent().unwrap_or(Path::new("/"))
}

fn task(record: &Record, config: ImageConfig) -> Task {
    let snapshot = directory(record);
    let (dir, tag) = super::deliver::layout(record);
    let options = &record.options;
    let facts = &record.cut.target;
    Task {
        lowers: facts.lowers.clone(),
        upper: record.cut.old_upper_dir.clone(),
        // Beside the snapshots: WORK/snapshot-engine/layers.
        cache_dir: snapshot.ancestors().nth(2).unwrap_or(snapshot).join("layers"),
        work_dir: snapshot.join("image"),
        // A layout of our own holds nothing but what an earlier try has left.
        target: OciTarget { dir, tag, overwrite: options.overwrite || !record.target.is_layout() },
        namespaces: if facts.userxattr { Namespaces::User } else { Namespaces::Trusted },
        ids: facts.ids.clone(),
        without: PathGlobs::of(&options.without_paths),
        workers: options.background_workers as usize,
        config,
        created: record.snapshot_id.time(),
        sync: true,
        resumed: record.image_attempts > 1,
    }
}

fn stages(times: [(Stage, Duration); 3]) -> Vec<StageTime> {
    let time =
        |(stage, took): (Stage, Duration)| StageTime { stage: stage.key().to_owned(), ns: took.into() };
    times.map(time).to_vec()
}

fn nydus(
    record: &Record,
    task: Task,
    progress: &Passed<'_>,
) -> Result<Result<ImageReport, ImageError>, Error> {
    let options = &record.options;
    // A parent is the image of the lowers.
    let lowers = if options.parent.is_some() { Vec::new() } else { task.lowers };
    let request = build::Request {
        task: Task { lowers, ..task },
        parent: options.parent.clone(),
        dictionaries: options.chunk_dict.clone(),
        incremental: Some(earlier::choose(record, directory(record))),
        format: options.rafs()?,
        prefetch: options.prefetch.clone(),
    };
    Ok(build::build(&request, progress).map(|built| {
        let t = built.timings;
        ImageReport {
            manifest: built.manifest.0,
            format: ImageFormat::Nydus,
            bootstrap: Some(built.bootstrap),
            blobs: built.blobs.into_iter().map(|b| b.path).collect(),
            layers_at: None,
            entries: built.files,
            chunks: built.chunks,
            sockets_left_out: 0,
            content_bytes: built.content_bytes,
            taken_over_bytes: built.taken_over_bytes,
            stored_bytes: built.stored_bytes,
            timings: stages([
                (Stage::Chunk, t.lowers + t.upper),
                (Stage::Bootstrap, t.bootstrap),
                (Stage::Publish, t.oci),
            ]),
        }
    }))
}

fn oci(
    record: &Record,
    task: Task,
    login: Option<&Login>,
    progress: &Passed<'_>,
) -> Result<Result<ImageReport, ImageError>, Error> {
    let mut request = archive::Request {
        task,
        base: record.options.base_image.clone(),
        base_digest: record.cut.target.image_digest.clone(),
        origin: None,
        compression: record.options.layers(),
    };
    if !archive::has_base(&request) {
        // Held while layers come to be in it: others tidy it when nobody is there.
        let cache = match Cache::open(&request.task.cache_dir) {
            Ok(cache) => cache,
            Err(e) => return Ok(Err(e)),
        };
        let config = &request.task.config.run;
        request.origin = origin::find(record, config, login, &cache.blobs(), progress.to)?;
    }
    Ok(archive::build(&request, progress).map(|built| plain(built, &request)))
}

/// What the record keeps of an image of plain layers.
fn plain(built: archive::Image, request: &archive::Request) -> ImageReport {
    let elsewhere = request.origin.as_ref().filter(|_| built.of_base > 0).map(|origin| &origin.layers);
    let t = built.timings;
    ImageReport {
        manifest: built.manifest.0,
        format: ImageFormat::Oci,
        bootstrap: None,
        blobs: built.layers.into_iter().map(|layer| layer.path).collect(),
        layers_at: elsewhere.and_then(|layers| match layers {
            Whereabouts::Repository(at) => Some(at.clone()),
            Whereabouts::Files(_) => None,
        }),
        entries: built.entries,
        chunks: 0,
        sockets_left_out: built.sockets,
        content_bytes: built.content_bytes,
        taken_over_bytes: 0,
        stored_bytes: built.stored_bytes,
        timings: stages([
            (Stage::Chunk, t.lowers + t.upper),
            (Stage::Bootstrap, Duration::ZERO),
            (Stage::Publish, t.oci),
        ]),
    }
}

fn config(record: &Record) -> Result<ImageConfig, Error> {
    let known: Config =
        record.cut.target.config.clone().and_then(|c| serde_json::from_value(c).ok()).unwrap_or_default();
    let options = &record.options;
    let run = change::apply(known, &options.changes)
        .map_err(|e| Error::stage(Stage::Publish, e.class(), e.remedy(), e))?;
    Ok(ImageConfig {
        run,
        author: options.author.clone().unwrap_or_default(),
        message: options.message.clone().unwrap_or_default(),
        created_by: format!("snapshot-engine seamless-commit --container {}", record.cut.target.container),
    })
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
