//! Layers become an OCI image that any runtime can run.
//!
//! ```text
//! base in a layout        --by digest--------------------------> its layers, as they are  \
//! base where it came from --as pipeline has found it-----------> its layers, as they are   \
//! lower N ... lower 1     --walk, changeset, tar, compress--> cache                         } manifest, config --> oci:DIR:TAG
//! upper                   --walk, changeset, tar, compress--> one layer                    /
//! ```
//!
//! Where the base is there, its layers are referred to; lowers that it does not account for, such as docker's own on top of an image, become layers
//! between it and the container's. Otherwise every lower becomes a layer, so that the image is whole by itself.

mod base;
mod contents;
mod entry;
mod layers;
pub(super) mod pack;
mod stream;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::config::Base as Below;
use super::oci::{self, Bytes, ManifestDigest};
use super::{ImageBlob, ImageError, Progress, Task, remove_scraps};
use crate::model::base::{LayoutImage, Origin};
use crate::model::format::LayerCompression;
use base::Base;
use layers::{Layers, Options};

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// What of, and where.
    pub task: Task,
    /// The image that the container was started from.
    pub base: Option<LayoutImage>,
    /// The digest of its manifest or its config: without a base by name it is looked for in the target.
    pub base_digest: Option<String>,
    /// That image as it was found elsewhere: it serves where neither of them does.
    pub origin: Option<Origin>,
    /// How layers are compressed.
    pub compression: LayerCompression,
}

/// How long each part took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Lowers, converted or from the cache.
    pub lowers: Duration,
    /// The upper.
    pub upper: Duration,
    /// The OCI layout.
    pub oci: Duration,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest its tag stands for.
    pub manifest: ManifestDigest,
    /// Its layers, the lowest first, with their files in the target, but for those that are elsewhere.
    pub layers: Vec<ImageBlob>,
    /// How many of them are the base's.
    pub of_base: usize,
    /// How many lowers were in the cache.
    pub cached_lowers: usize,
    /// Names in the container's layer, the root and those that are gone included.
    pub entries: u64,
    /// Bytes of the files in the container's layer.
    pub content_bytes: u64,
    /// Length of the container's layer as it is stored.
    pub stored_bytes: u64,
    /// Sockets that were left out.
    pub sockets: u64,
    /// What took how long.
    pub timings: Timings,
}

/// Whether the image could be the base of another one: to be asked before the work is done.
///
/// # Errors
/// [`ImageError::NoBase`] with what is wrong with it.
pub fn check_base(image: &LayoutImage) -> Result<(), ImageError> {
    Base::named(image).map(drop)
}

/// Whether the base is named, or in the target: then nobody need look for it elsewhere.
#[must_use]
pub fn has_base(request: &Request) -> bool {
    let in_target = |digest: &String| Base::of_digest(&request.task.target.dir, digest).is_some();
    request.base.is_some() || request.base_digest.as_ref().is_some_and(in_target)
}

/// The base, or why there is none.
fn base(request: &Request) -> Result<Option<Base>, ImageError> {
    if let Some(image) = &request.base {
        return Base::named(image).map(Some);
    }
    let in_target =
        request.base_digest.as_ref().and_then(|digest| Base::of_digest(&request.task.target.dir, digest));
    if in_target.is_some() {
        return Ok(in_target);
    }
    Ok(request.origin.as_ref().and_then(|origin| match Base::found(origin) {
        Ok(base) => Some(base),
        Err(why) => {
            tracing::warn!("layers are made of the container's lower directories, for its image cannot be referred to: {why}");
            None
        }
    }))
}

/// Builds the image.
///
/// # Errors
/// Anything on the way; the target then has no image of that name, or still the old one. Converted lowers stay in the cache.
pub fn build(request: &Request, progress: &dyn Progress) -> Result<Image, ImageError> {
    let task = &request.task;
    if !task.resumed {
        oci::check(&task.target)?;
    }
    let blob_dir = task.work_dir.join("blobs");
    std::fs::create_dir_all(&blob_dir).map_err(ImageError::io("create", &blob_dir))?;
    // The snapshot is ours alone: what is half made here was left by a killed try.
    remove_scraps(&blob_dir).map_err(ImageError::io("tidy", &blob_dir))?;
    let base = base(request)?;
    let options = Options {
        compression: request.compression,
        namespaces: task.namespaces,
        ids: task.ids.clone(),
        without: task.without.clone(),
        workers: task.workers,
        sync: task.sync,
    };
    let paths = task.lowers.iter().map(PathBuf::as_path);
    let layers = Layers::new(paths, &task.upper, options, progress);
    let mut timings = Timings::default();
    let mut config = task.config.clone();

    let start = Instant::now();
    let mut all = Vec::new();
    let mut of_base = 0;
    if let Some(base) = base {
        config.run = base.tell(config.run);
        of_base = base.layers.len();
        all = base.layers;
    }
    let mut cached_lowers = 0;
    let cache = Cache::open(&task.cache_dir)?;
    for at in of_base..task.lowers.len() {
        progress.stage("lower");
        let made = layers.lower(at, &cache)?;
        cached_lowers += usize::from(made.hit);
        all.push(made.layer);
    }
    let below = Below::Layers(all.len());
    timings.lowers = start.elapsed();

    let start = Instant::now();
    progress.stage("upper");
    let upper = layers.upper(&blob_dir)?;
    let written = upper.written;
    if written.sockets > 0 {
        tracing::warn!("{} sockets are left out: a layer of an OCI image cannot hold them", written.sockets);
    }
    if written.private > 0 {
        tracing::warn!(
            "{} attributes are left out: whoever unpacks the image for an overlay would have them taken for its own",
            written.private
        );
    }
    let stored_bytes = upper.layer.size;
    all.push(upper.layer);
    timings.upper = start.elapsed();

    let start = Instant::now();
    progress.stage("image");
    let care = oci::Care { sync: task.sync, verify: task.resumed };
    let content = oci::Content { layers: &all, base: below };
    let manifest = oci::write(&task.target, content, &config, task.created, care)?;
    timings.oci = start.elapsed();
    let store = task.target.dir.join("blobs/sha256");
    let placed = all.iter().filter(|layer| layer.bytes != Bytes::Elsewhere).map(|layer| ImageBlob {
        id: layer.id,
        path: store.join(layer.id.to_string()),
        compressed: layer.size,
        uncompressed: 0,
    });
    Ok(Image {
        manifest,
        layers: placed.collect(),
        of_base,
        cached_lowers,
        entries: written.entries,
        content_bytes: written.content,
        stored_bytes,
        sockets: written.sockets,
        timings,
    })
}
