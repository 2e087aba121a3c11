//! Directories of an overlay to layers of an OCI image.
//!
//! A layer is read by itself. Only one that has a redirect, or files with their data elsewhere, needs what the layers below it show; these are walked and
//! merged then. What a lower becomes is kept by the identity of all layers up to it (`image/cache.rs`): what is below it is as immutable as it is.

use std::cell::OnceCell;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::contents::Contents;
use super::pack::{BLOCK, Failed, Packed, pack};
use super::stream::{self, Written};
use crate::image::cache::{Cache, Key};
use crate::image::oci::{Bytes, Layer};
use crate::image::walk::{self, Walked};
use crate::image::{ImageError, Progress, sealed};
use crate::model::changeset::{Changeset, changeset, needs_below};
use crate::model::chunk::{BlobId, BlobIndex, ChunkRef, ChunkSize};
use crate::model::format::LayerCompression;
use crate::model::globs::PathGlobs;
use crate::model::ids::Ids;
use crate::model::overlay::{self, Namespaces};
use crate::model::tree::{Kind, Tree};

/// First bytes of an entry and of its key; the number is the version of everything that decides on the bytes of a layer.
const MAGIC: &sealed::Magic = b"snapshot-tar   1";

/// How layers are made.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) compression: LayerCompression,
    pub(super) namespaces: Namespaces,
    pub(super) ids: Ids,
    /// What is left out of the upper.
    pub(super) without: PathGlobs,
    pub(super) workers: usize,
    pub(super) sync: bool,
}

/// The layers of the overlay.
pub(super) struct Layers<'a> {
    /// The lowest first, the upper last.
    dirs: Vec<&'a Path>,
    walked: Vec<OnceCell<(Walked, Tree)>>,
    options: Options,
    progress: &'a dyn Progress,
}

/// A layer that was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) layer: Layer,
    pub(super) written: Written,
    /// It was in the cache.
    pub(super) hit: bool,
}

/// What the cache keeps of a layer.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: BlobId,
    size: u64,
    diff_id: BlobId,
}

impl<'a> Layers<'a> {
    pub(super) fn new(
        lowers: impl DoubleEndedIterator<Item = &'a Path>,
        upper: &'a Path,
        options: Options,
        progress: &'a dyn Progress,
    ) -> Layers<'a> {
        let dirs: Vec<&Path> = lowers.rev().chain([upper]).collect();
        let walked = dirs.iter().map(|_| OnceCell::new()).collect();
        Layers { dirs, walked, options, progress }
    }

    /// A lower, from the cache or into it.
    pub(super) fn lower(&self, at: usize, cache: &Cache) -> Result<Made, ImageError> {
        let key = self.key(at).map_err(ImageError::io("read the lower layer", self.dirs[at]))?;
        let _alone = cache.alone(&key)?;
        let entry = cache.entry(&key);
        if let Some(kept) = sealed::read::<Kept>(&entry, MAGIC)
            && let Some(path) = cache.blob(&kept.id, kept.size)
        {
            let layer = self.layer(kept.id, kept.size, kept.diff_id, path);
            return Ok(Made { layer, written: Written::default(), hit: true });
        }
        let (Packed { id, size, diff_id, .. }, written, path) = self.make(at, &cache.blobs())?;
        let kept = Kept { id, size, diff_id };
        sealed::write(&entry, MAGIC, &kept, self.options.sync)
            .map_err(ImageError::io("write the cache entry", &entry))?;
        Ok(Made { layer: self.layer(id, size, diff_id, path), written, hit: false })
    }

    /// The upper, into a directory.
    pub(super) fn upper(&self, to: &Path) -> Result<Made, ImageError> {
        let (packed, written, path) = self.make(self.dirs.len() - 1, to)?;
        let layer = self.layer(packed.id, packed.size, packed.diff_id, path);
        Ok(Made { layer, written, hit: false })
    }

    fn layer(&self, id: BlobId, size: u64, diff_id: BlobId, path: PathBuf) -> Layer {
        Layer {
            media_type: self.options.compression.media_type().to_owned(),
            id,
            size,
            diff_id: format!("sha256:{diff_id}"),
            annotations: serde_json::Value::Null,
            bytes: Bytes::File(path),
        }
    }

    fn key(&self, at: usize) -> io::Result<String> {
        let mut key = Key::new(MAGIC);
        self.dirs[..=at].iter().try_for_each(|dir| key.put_layer(dir))?;
        let Options { compression, namespaces, ids, without: _, workers: _, sync: _ } = &self.options;
        key.put_namespaces(*namespaces);
        key.put(format!("{compression:?} {ids:?}").as_bytes());
        Ok(key.name())
    }

    /// A layer's tree with the owners that the container sees; its files name where their content is.
    fn walked(&self, at: usize) -> Result<&(Walked, Tree), ImageError> {
        let cell = &self.walked[at];
        if let Some(known) = cell.get() {
            return Ok(known);
        }
        let Options { namespaces, workers, ids, without, .. } = &self.options;
        let without = (at + 1 == self.dirs.len()).then_some(without);
        let mut walked = walk::walk(self.dirs[at], ChunkSize::default(), *namespaces, *workers, without)?;
        let mut tree = std::mem::replace(&mut walked.tree, Tree::new(Default::default()));
        let blob = BlobIndex(u16::try_from(at).map_err(|_| crate::rafs::RafsError::TooManyBlobs(at))?);
        for (index, id) in walked.nodes.iter().enumerate() {
            if let Some(Kind::File(content)) = tree.get_mut(*id).map(|node| &mut node.kind) {
                content.chunks = vec![ChunkRef { blob, index: index as u32 }];
            }
        }
        Ok(cell.get_or_init(|| (walked, ids.seen(tree))))
    }

    fn changes(&self, at: usize) -> Result<Changeset, ImageError> {
        let namespaces = self.options.namespaces;
        let tree = self.walked(at)?.1.clone();
        let below = if needs_below(&tree, namespaces) {
            let trees =
                (0..at).map(|n| Ok(self.walked(n)?.1.clone())).collect::<Result<Vec<Tree>, ImageError>>()?;
            if trees.is_empty() { None } else { Some(overlay::merge(None, trees, namespaces)?) }
        } else {
            None
        };
        Ok(changeset(below.as_ref(), tree, namespaces)?)
    }

    fn make(&self, at: usize, dir: &Path) -> Result<(Packed, Written, PathBuf), ImageError> {
        let set = self.changes(at)?;
        let total = stream::content(&set);
        let done = std::cell::Cell::new(0);
        self.progress.advance(0, total);
        let advance = |bytes: u64| {
            done.set(done.get() + bytes);
            self.progress.advance(done.get(), total);
        };
        // By number; a layer that was not walked is not referred to, and this one stands in for it.
        let own = self.walked(at)?;
        let walked = self.walked[..=at].iter().map(|layer| &layer.get().unwrap_or(own).0);
        let file = tempfile::Builder::new()
            .prefix(".blob-")
            .tempfile_in(dir)
            .map_err(ImageError::io("create a file in", dir))?;
        let Options { compression, workers, sync, .. } = self.options;
        let contents = Contents::new(walked);
        let packed = pack(file.as_file(), compression, BLOCK, workers, |to| {
            stream::write(&set, contents, to, &advance)
        });
        let (packed, written) = packed.map_err(|failed| match failed {
            Failed::Produce(e) => e,
            Failed::Write(source) => {
                ImageError::Io { what: "write the layer in", path: dir.to_owned(), source }
            }
        })?;
        let path = dir.join(packed.id.to_string());
        // The name says what is in it: durable before it has it.
        if sync {
            file.as_file().sync_all().map_err(ImageError::io("sync the layer in", dir))?;
        }
        file.persist(&path).map_err(|e| ImageError::Io {
            what: "name",
            path: path.clone(),
            source: e.error,
        })?;
        if sync {
            std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(ImageError::io("sync", dir))?;
        }
        Ok((packed, written, path))
    }
}
