//! How a test has an image built, and compares it with the tree it was made of.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Result, ensure};
use snapshot_engine::image::build::{Image, Request};
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::config::ImageConfig;
use snapshot_engine::image::oci::OciTarget;
use snapshot_engine::image::{Task, archive};
use snapshot_engine::model::base::KnownImage;
use snapshot_engine::model::format::{Format, FsVersion, LayerCompression};
use snapshot_engine::model::globs::PathGlobs;
use snapshot_engine::model::ids::Ids;
use snapshot_engine::model::overlay::Namespaces;

/// Layers to be an image called `name` in the layout in `dir`, which also has the cache; the top one of `lowers` first.
#[must_use]
pub fn task(dir: &Path, name: &str, lowers: &[PathBuf], upper: &Path) -> Task {
    Task {
        lowers: lowers.to_vec(),
        upper: upper.to_owned(),
        cache_dir: dir.join("cache"),
        work_dir: dir.join(format!("work-{name}")),
        target: OciTarget { dir: dir.join("layout"), tag: name.to_owned(), overwrite: false },
        namespaces: Namespaces::Trusted,
        ids: Ids::default(),
        without: PathGlobs::default(),
        workers: 0,
        config: ImageConfig::default(),
        created: SystemTime::UNIX_EPOCH,
        sync: false,
        resumed: false,
    }
}

/// A task to be a Nydus image.
#[must_use]
pub fn nydus(task: Task, format: Format) -> Request {
    let (dictionaries, prefetch) = (Vec::new(), Vec::new());
    Request { task, parent: None, dictionaries, incremental: None, format, prefetch }
}

/// A task to be an image of plain layers.
#[must_use]
pub fn plain(task: Task) -> archive::Request {
    archive::Request {
        task,
        base: None,
        base_digest: None,
        origin: None,
        compression: LayerCompression::Gzip,
    }
}

/// A tree to be a Nydus image of its own.
#[must_use]
pub fn request(dir: &Path, name: &str, format: Format, tree: &Path) -> Request {
    nydus(task(dir, name, &[], tree), format)
}

/// Layers to be an image of plain layers.
#[must_use]
pub fn layers_request(dir: &Path, name: &str, lowers: &[PathBuf], upper: &Path) -> archive::Request {
    plain(task(dir, name, lowers, upper))
}

/// Where the image's blobs are, in the order of its table.
#[must_use]
pub fn blobs(image: &Image) -> Vec<PathBuf> {
    image.blobs.iter().map(|b| b.path.clone()).collect()
}

/// The image as something to build on.
#[must_use]
pub fn known(image: &Image) -> KnownImage {
    KnownImage { bootstrap: image.bootstrap.clone(), blobs: Vec::new() }
}

/// Equal, but for what RAFS v5 cannot hold: several names of anything but a regular file, which in the trees of these tests have names
/// that end in `link-too`. At least so many entries must have been looked at.
///
/// # Errors
/// With what differs.
pub fn must_be_equal(reference: &Path, image: &Path, version: FsVersion, entries: u64) -> Result<()> {
    let result = compare(reference, image, 20)?;
    let lost = |difference: &str| {
        version == FsVersion::V5 && difference.ends_with("link-too: linked to other names")
    };
    let list: Vec<String> = result.differences.iter().map(ToString::to_string).filter(|d| !lost(d)).collect();
    ensure!(list.is_empty(), "{} entries compared, differences:\n{}", result.entries, list.join("\n"));
    ensure!(result.entries >= entries, "only {} entries compared", result.entries);
    Ok(())
}
