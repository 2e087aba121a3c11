//! The layers so far, over one table of blobs.

use std::path::{Path, PathBuf};

use crate::chunk::blob::Known as Chunks;
use crate::model::chunk::{Blob, BlobIndex, ChunkRef};
use crate::model::overlay::{self, Namespaces};
use crate::model::tree::Tree;
use crate::rafs::RafsError;

use super::cache::Cached;
use super::known::Known;
use super::layer::{self, Layer};
use super::nydus::BlobLayer;
use super::{ImageBlob, ImageError};

/// What the image will consist of.
#[derive(Default)]
pub(super) struct Stack {
    /// What an image shows that all layers lie on.
    base: Option<Tree>,
    /// Layers, the lowest first.
    trees: Vec<Tree>,
    pub(super) blobs: Vec<Blob>,
    /// Where each blob is.
    paths: Vec<Option<PathBuf>>,
    /// The first place of every chunk: a chunk that several have is taken from the one added first.
    pub(super) chunks: Chunks,
}

impl Stack {
    /// The number of the next blob.
    pub(super) fn next(&self) -> Result<BlobIndex, ImageError> {
        let index = u16::try_from(self.blobs.len());
        Ok(BlobIndex(index.map_err(|_| RafsError::TooManyBlobs(self.blobs.len()))?))
    }

    /// Puts an image below all layers.
    pub(super) fn set_base(&mut self, image: Known) -> Result<(), ImageError> {
        let first = self.next()?;
        self.base = Some(layer::rename_chunks(image.tree, |chunk| ChunkRef {
            blob: BlobIndex(chunk.blob.0.saturating_add(first.0)),
            index: chunk.index,
        })?);
        self.add_blobs(image.blobs, image.paths)
    }

    /// Adds blobs whose chunks may be referred to.
    pub(super) fn add_blobs(
        &mut self,
        blobs: Vec<Blob>,
        paths: Vec<Option<PathBuf>>,
    ) -> Result<(), ImageError> {
        for (blob, path) in blobs.into_iter().zip(paths) {
            let own = self.next()?;
            self.learn(&blob, own);
            self.add_blob(blob, path);
        }
        Ok(())
    }

    /// Adds those blobs that are not there yet.
    pub(super) fn add_missing(&mut self, blobs: &[(Blob, PathBuf)]) -> Result<(), ImageError> {
        for (blob, path) in blobs {
            if self.blobs.iter().all(|have| have.id != blob.id) {
                self.add_blobs(vec![blob.clone()], vec![Some(path.clone())])?;
            }
        }
        Ok(())
    }

    fn learn(&mut self, blob: &Blob, own: BlobIndex) {
        for (index, chunk) in blob.chunks.iter().enumerate() {
            let name = ChunkRef { blob: own, index: index as u32 };
            self.chunks.entry((chunk.digest, chunk.size)).or_insert(name);
        }
    }

    pub(super) fn add_blob(&mut self, blob: Blob, path: Option<PathBuf>) {
        self.blobs.push(blob);
        self.paths.push(path);
    }

    /// Adds a layer that was converted without regard to the others.
    pub(super) fn add_lower(&mut self, cached: Cached) -> Result<(), ImageError> {
        let Cached { layer: Layer { tree, blob }, blob_path, .. } = cached;
        let Some(blob) = blob else {
            self.trees.push(tree);
            return Ok(());
        };
        let own = self.next()?;
        self.learn(&blob, own);
        let tree = layer::rename_chunks(tree, |chunk| {
            // An index out of range stays as it is, and the bootstrap's checks name the file.
            blob.chunks
                .get(chunk.index as usize)
                .and_then(|info| self.chunks.get(&(info.digest, info.size)).copied())
                .unwrap_or(ChunkRef { blob: own, index: chunk.index })
        })?;
        self.trees.push(tree);
        self.add_blob(blob, blob_path);
        Ok(())
    }

    pub(super) fn add_tree(&mut self, tree: Tree) {
        self.trees.push(tree);
    }

    /// What an overlay mount of all layers would show. The layers are gone afterwards.
    pub(super) fn merge(&mut self, namespaces: Namespaces) -> Result<Tree, ImageError> {
        Ok(overlay::merge(self.base.take(), std::mem::take(&mut self.trees), namespaces)?)
    }

    /// The blobs that an image needs, as its target gets them and as they are there.
    pub(super) fn used(
        &self,
        used: &[BlobIndex],
        store: &Path,
    ) -> Result<(Vec<BlobLayer>, Vec<ImageBlob>), ImageError> {
        let mut layers = Vec::with_capacity(used.len());
        let mut blobs = Vec::with_capacity(used.len());
        for index in used {
            let at = usize::from(index.0);
            let Some((blob, path)) = self.blobs.get(at).zip(self.paths.get(at)) else { continue };
            let path = path.clone().ok_or(ImageError::NoBlob { id: blob.id })?;
            // What a bootstrap of v5 says is the length of the data alone.
            let size = std::fs::metadata(&path).map_err(ImageError::io("find the blob", &path))?.len();
            layers.push(BlobLayer { id: blob.id, path, size });
            blobs.push(ImageBlob {
                id: blob.id,
                path: store.join(blob.id.to_string()),
                compressed: size,
                uncompressed: blob.uncompressed_size,
            });
        }
        Ok((layers, blobs))
    }
}
