//! The whole way: layers in, image out.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::chunk::blob::Known;
use crate::model::chunk::{Blob, BlobId, BlobIndex, ChunkRef, Format};
use crate::model::overlay::{self, Namespaces};
use crate::model::tree::Tree;
use crate::rafs::bootstrap;

use super::cache::Cache;
use super::layer::{self, Conversion, Layer, Options};
use super::oci::{self, BlobLayer, ImageConfig, ManifestDigest, OciTarget};
use super::{ImageError, Progress, remove_scraps, write_atomically};

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// Lower directories, the top one first, as in overlayfs' `lowerdir=`.
    pub lowers: Vec<PathBuf>,
    /// The frozen upperdir.
    pub upper: PathBuf,
    /// Where converted lowers are kept.
    pub cache_dir: PathBuf,
    /// Where the upper's blob and the bootstrap go: on the target's file system, blobs are linked, not copied.
    pub work_dir: PathBuf,
    /// Where the image goes.
    pub target: OciTarget,
    /// Compression, digest, chunk size.
    pub format: Format,
    /// Which attributes are overlayfs' own: those of the container's mount.
    pub namespaces: Namespaces,
    /// Worker threads; 0 for one per CPU.
    pub workers: usize,
    /// What the image's config says.
    pub config: ImageConfig,
    /// When the snapshot was cut.
    pub created: SystemTime,
    /// Whether all must survive a crash once this returns; `false` is for measurements and tests.
    pub sync: bool,
    /// Whether an earlier, interrupted call with the same request may have finished the image: finding that very image under the
    /// tag is then success.
    pub resumed: bool,
}

/// A blob of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBlob {
    /// Its id: the sha256 of the file.
    pub id: BlobId,
    /// Where it is, named by its id.
    pub path: PathBuf,
    /// Length of the file.
    pub compressed: u64,
    /// Length of its uncompressed address space.
    pub uncompressed: u64,
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
    if !request.resumed {
        oci::check(&request.target)?;
    }
    let options = Options {
        format: request.format,
        namespaces: request.namespaces,
        workers: request.workers,
        sync: request.sync,
    };
    let blob_dir = request.work_dir.join("blobs");
    std::fs::create_dir_all(&blob_dir).map_err(ImageError::io("create", &blob_dir))?;
    // The snapshot is ours alone: what is half made here was left by a killed try.
    remove_scraps(&blob_dir).map_err(ImageError::io("tidy", &blob_dir))?;
    let cache = Cache::open(&request.cache_dir)?;
    let mut timings = Timings::default();
    let mut stack = Stack::default();

    let start = Instant::now();
    let mut cached_lowers = 0;
    for lower in request.lowers.iter().rev() {
        progress.stage("lower");
        let cached = cache.layer(lower, options, progress)?;
        cached_lowers += usize::from(cached.hit);
        stack.add_lower(cached.conversion)?;
    }
    timings.lowers = start.elapsed();

    let start = Instant::now();
    progress.stage("upper");
    let own = stack.next()?;
    let known = std::mem::take(&mut stack.known);
    let upper = layer::convert(&request.upper, &blob_dir, known, own, options, progress)?;
    let (deduplicated, content_bytes) = (upper.saved, upper.content);
    let stored_bytes = upper.layer.blob.as_ref().map_or(0, |blob| blob.file_size);
    stack.add_upper(upper);
    timings.upper = start.elapsed();

    let start = Instant::now();
    progress.stage("bootstrap");
    let tree = overlay::merge(stack.trees, request.namespaces)?;
    let boot = bootstrap::write(&tree, &stack.blobs, request.format)?;
    let bootstrap = request.work_dir.join("image.boot");
    write_atomically(&bootstrap, &boot.bytes, request.sync).map_err(ImageError::io("write", &bootstrap))?;
    timings.bootstrap = start.elapsed();

    let start = Instant::now();
    progress.stage("image");
    let store = request.target.dir.join("blobs/sha256");
    let used = boot.blobs.iter().filter_map(|index| {
        let at = usize::from(index.0);
        Some((stack.blobs.get(at)?, stack.paths.get(at)?))
    });
    let mut layers = Vec::new();
    let mut blobs = Vec::new();
    for (blob, path) in used {
        layers.push(BlobLayer { id: blob.id, path: path.clone(), size: blob.file_size });
        blobs.push(ImageBlob {
            id: blob.id,
            path: store.join(blob.id.to_string()),
            compressed: blob.file_size,
            uncompressed: blob.uncompressed_size,
        });
    }
    let manifest =
        oci::write(&request.target, &boot.bytes, &layers, &request.config, request.created, request.sync)?;
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
        stored_bytes,
        cached_lowers,
        timings,
    })
}

/// The layers so far, the lowest first, over one table of blobs.
#[derive(Default)]
struct Stack {
    trees: Vec<Tree>,
    blobs: Vec<Blob>,
    paths: Vec<PathBuf>,
    /// The first place of every chunk: a chunk that several lowers have is taken from the lowest.
    known: Known,
}

impl Stack {
    fn next(&self) -> Result<BlobIndex, ImageError> {
        let index = u16::try_from(self.blobs.len());
        Ok(BlobIndex(index.map_err(|_| crate::rafs::RafsError::TooManyBlobs(self.blobs.len()))?))
    }

    fn add_lower(&mut self, conversion: Conversion) -> Result<(), ImageError> {
        let Conversion { layer: Layer { tree, blob }, blob_path, .. } = conversion;
        let (Some(blob), Some(path)) = (blob, blob_path) else {
            self.trees.push(tree);
            return Ok(());
        };
        let own = self.next()?;
        for (index, chunk) in blob.chunks.iter().enumerate() {
            let name = ChunkRef { blob: own, index: index as u32 };
            self.known.entry((chunk.digest, chunk.size)).or_insert(name);
        }
        let tree = layer::rename_chunks(tree, |chunk| {
            // An index out of range stays as it is, and the bootstrap's checks name the file.
            blob.chunks
                .get(chunk.index as usize)
                .and_then(|info| self.known.get(&(info.digest, info.size)).copied())
                .unwrap_or(ChunkRef { blob: own, index: chunk.index })
        })?;
        self.trees.push(tree);
        self.blobs.push(blob);
        self.paths.push(path);
        Ok(())
    }

    fn add_upper(&mut self, conversion: Conversion) {
        self.trees.push(conversion.layer.tree);
        if let (Some(blob), Some(path)) = (conversion.layer.blob, conversion.blob_path) {
            self.blobs.push(blob);
            self.paths.push(path);
        }
    }
}
