//! The whole way: layers in, image out.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::model::base::KnownImage;
use crate::model::chunk::Format;
use crate::model::tree::{NodeId, Tree};
use crate::rafs;

use super::cache::Cache;
use super::config::Base;
use super::earlier::Incremental;
use super::known::{self, Known};
use super::layer::{self, Options};
use super::oci::{self, ManifestDigest};
use super::stack::Stack;
use super::{ImageBlob, ImageError, Progress, Task, nydus, remove_scraps, write_atomically};

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// What of, and where.
    pub task: Task,
    /// An image that all layers lie on.
    pub parent: Option<KnownImage>,
    /// Images whose chunks need not be stored again.
    pub dictionaries: Vec<KnownImage>,
    /// Where the files of an earlier snapshot's image are known that need not be read again; `None`: all are read.
    pub incremental: Option<Incremental>,
    /// Version, compression, digest, chunk size, what blobs have besides chunks.
    pub format: Format,
    /// Paths in the image that are to be fetched first when it is mounted. What is not there is left out.
    pub prefetch: Vec<PathBuf>,
}

/// How long each part took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Lowers, converted or from the cache.
    pub lowers: Duration,
    /// The upper.
    pub upper: Duration,
    /// Merge and bootstrap.
    pub bootstrap: Duration,
    /// The OCI layout.
    pub oci: Duration,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest its tag stands for.
    pub manifest: ManifestDigest,
    /// The bootstrap's file in the work directory.
    pub bootstrap: PathBuf,
    /// Its length.
    pub bootstrap_size: u64,
    /// The blobs in the order of the bootstrap's table.
    pub blobs: Vec<ImageBlob>,
    /// The layout's directory that has every blob under its id: a `localfs` backend for nydusd.
    pub blob_dir: PathBuf,
    /// How the chunks were made.
    pub format: Format,
    /// Names in the merged tree, the root included.
    pub files: u64,
    /// Distinct chunks in use.
    pub chunks: u64,
    /// Raw bytes of the upper that were in a blob already and not stored again.
    pub deduplicated: u64,
    /// Bytes of the upper's files, before anything was found again or compressed.
    pub content_bytes: u64,
    /// Bytes of those files that an earlier image had, and that were not read.
    pub taken_over_bytes: u64,
    /// Bytes of the blob written for the upper.
    pub stored_bytes: u64,
    /// Lowers that were in the cache.
    pub cached_lowers: usize,
    /// What took how long.
    pub timings: Timings,
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
    let lower_format = Format { layout: request.format.layout.without_bootstrap(), ..request.format };
    let options =
        Options { format: lower_format, namespaces: task.namespaces, workers: task.workers, sync: task.sync };
    let blob_dir = task.work_dir.join("blobs");
    std::fs::create_dir_all(&blob_dir).map_err(ImageError::io("create", &blob_dir))?;
    // The snapshot is ours alone: what is half made here was left by a killed try.
    remove_scraps(&blob_dir).map_err(ImageError::io("tidy", &blob_dir))?;
    let cache = Cache::open(&task.cache_dir)?;
    let mut timings = Timings::default();
    let mut stack = Stack::default();
    let store = task.target.dir.join("blobs/sha256");

    let start = Instant::now();
    let known = |image| known::load(image, request.format, &[&store, &cache.blobs()]);
    if let Some(parent) = &request.parent {
        stack.set_base(known(parent)?)?;
    }
    let mut cached_lowers = 0;
    for lower in task.lowers.iter().rev() {
        progress.stage("lower");
        let mut cached = cache.layer(lower, options, progress)?;
        cached.layer.tree = task.ids.seen(cached.layer.tree);
        cached_lowers += usize::from(cached.hit);
        stack.add_lower(cached)?;
    }
    // Lowers will be found again by themselves, what follows would not.
    let first = stack.blobs.len();
    for image in &request.dictionaries {
        let Known { blobs, paths, .. } = known(image)?;
        stack.add_blobs(blobs, paths)?;
    }
    timings.lowers = start.elapsed();

    let start = Instant::now();
    progress.stage("upper");
    let options = Options { format: request.format, ..options };
    // Neither needs the other, and with many files they take the same time.
    let (walked, found) = std::thread::scope(|scope| {
        let find = |own: &Incremental| own.find(&task.upper, request.format, &[&store, &cache.blobs()]);
        let found = scope.spawn(move || request.incremental.as_ref().and_then(find));
        let walked = layer::walk(&task.upper, Some(&task.without), options);
        (walked, found.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (settled, earlier) = found.unzip();
    let earlier = earlier.flatten();
    if let Some(earlier) = &earlier {
        stack.add_missing(&earlier.blobs)?;
    }
    let own = stack.next()?;
    let known = std::mem::take(&mut stack.chunks);
    let upper = layer::convert(walked?, earlier.as_ref(), &blob_dir, known, own, options, progress)?;
    let (deduplicated, content_bytes, taken_over_bytes) = (upper.saved, upper.content, upper.taken_over);
    let contents = settled.as_ref().map(|settled| upper.contents(settled));
    stack.add_tree(task.ids.seen(upper.tree));
    timings.upper = start.elapsed();

    let start = Instant::now();
    progress.stage("bootstrap");
    let tree = stack.merge(task.namespaces)?;
    let prefetch = nodes(&tree, &request.prefetch);
    let mut stored_bytes = 0;
    if let Some(mut open) = upper.blob {
        if request.format.layout.has_bootstrap() {
            stack.blobs.push(open.unfinished());
            let inside = rafs::write(&tree, &stack.blobs, request.format, &prefetch)?;
            open.add_bootstrap(&inside.bytes)?;
            stack.blobs.pop();
        }
        let (blob, path) = open.finish(task.sync)?;
        stored_bytes = blob.file_size;
        stack.add_blob(blob, Some(path));
    }
    let boot = rafs::write(&tree, &stack.blobs, request.format, &prefetch)?;
    let bootstrap = task.work_dir.join("image.boot");
    write_atomically(&bootstrap, &boot.bytes, task.sync).map_err(ImageError::io("write", &bootstrap))?;
    timings.bootstrap = start.elapsed();

    let start = Instant::now();
    progress.stage("image");
    let (layers, blobs) = stack.used(&boot.blobs, &store)?;
    let care = oci::Care { sync: task.sync, verify: task.resumed };
    let manifest = std::thread::scope(|scope| {
        if let (Some(own), Some(settled), Some(contents)) = (&request.incremental, settled, contents) {
            let used: Vec<_> =
                boot.blobs.iter().copied().zip(&blobs).filter(|(i, _)| usize::from(i.0) >= first).collect();
            let all = &stack.blobs;
            scope.spawn(move || own.remember(settled.realm, request.format, contents, all, &used, task.sync));
        }
        let layers = nydus::layers(&boot.bytes, request.format.version, &layers, task.workers)?;
        let content = oci::Content { layers: &layers, base: Base::Merged };
        oci::write(&task.target, content, &task.config, task.created, care)
    })?;
    timings.oci = start.elapsed();
    Ok(Image {
        manifest,
        bootstrap,
        bootstrap_size: boot.bytes.len() as u64,
        blobs,
        blob_dir: store,
        format: request.format,
        files: boot.entries,
        chunks: boot.chunks,
        deduplicated,
        content_bytes,
        taken_over_bytes,
        stored_bytes,
        cached_lowers,
        timings,
    })
}

/// The nodes at paths of the image.
fn nodes(tree: &Tree, paths: &[PathBuf]) -> Vec<NodeId> {
    let mut found = Vec::new();
    for path in paths {
        match tree.lookup(path.as_os_str().as_bytes()) {
            Some(id) if !found.contains(&id) => found.push(id),
            Some(_) => {}
            None => tracing::warn!(path = %path.display(), "not in the image: it is not prefetched"),
        }
    }
    found
}
