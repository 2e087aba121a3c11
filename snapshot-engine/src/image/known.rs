//! An image that is there already, by its bootstrap: what a new one may be built on, or take chunks from.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::model::base::KnownImage;
use crate::model::chunk::{Blob, BlobId, BlobTail, ChunkInfo, ChunkRef, Compressor, Format, FsVersion};
use crate::model::tree::Tree;
use crate::rafs::layout::blob_features;
use crate::rafs::read::{self, BlobInfo, Image};

use super::{ImageError, layer};

/// The longest bootstrap that is read: inodes of v5 lie in the first 4 GiB.
const MAX_BOOTSTRAP: u64 = 4 << 30;

/// What its bootstrap says.
#[derive(Debug)]
pub(super) struct Known {
    /// The tree; its chunk references name positions of `blobs` and of their chunks.
    pub(super) tree: Tree,
    /// Its blobs with the chunks it uses.
    pub(super) blobs: Vec<Blob>,
    /// Where each blob is; `None` if it is nowhere.
    pub(super) paths: Vec<Option<PathBuf>>,
}

/// Whether an image of this format could be built on it: to be asked before the work is done.
///
/// # Errors
/// When its bootstrap cannot be read, or was not made as `format` asks for.
pub fn check(image: &KnownImage, format: Format) -> Result<(), ImageError> {
    load(image, format, &[]).map(drop)
}

/// Reads the bootstrap, and looks for the blobs in the directories given and beside the bootstrap.
///
/// # Errors
/// When it cannot be read or was not made as `format` asks for: chunks of another size, digest or compression cannot be shared.
pub(super) fn load(image: &KnownImage, format: Format, dirs: &[&Path]) -> Result<Known, ImageError> {
    let path = &image.bootstrap;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BOOTSTRAP + 1).read_to_end(&mut bytes))
        .map_err(ImageError::io("read the bootstrap", path))?;
    let damaged = |source| ImageError::Bootstrap { path: path.clone(), source };
    let read = read::bootstrap(&bytes).and_then(read::Reading::whole).map_err(damaged)?;
    if !read.superblock.format.goes_with(&format) {
        return Err(ImageError::OtherFormat {
            path: path.clone(),
            theirs: read.superblock.format,
            wanted: format,
        });
    }
    let foreign = |what| ImageError::Foreign { path: path.clone(), what };
    let mut blobs = Vec::with_capacity(read.blobs.len());
    let mut paths = Vec::with_capacity(read.blobs.len());
    for (index, info) in read.blobs.iter().enumerate() {
        let blob = blob(&read, index, info).map_err(foreign)?;
        paths.push(find(image, &blob.id, dirs));
        blobs.push(blob);
    }
    let Image { tree, chunks, .. } = read;
    let tree = layer::rename_chunks(tree, |name| {
        let of_blob = chunks.of_blob(usize::from(name.blob.0));
        let at = of_blob.partition_point(|chunk| chunk.name.index < name.index);
        ChunkRef { blob: name.blob, index: at as u32 }
    })?;
    Ok(Known { tree, blobs, paths })
}

fn blob(image: &Image, index: usize, info: &BlobInfo) -> Result<Blob, &'static str> {
    let format = image.superblock.format;
    if info.features & blob_features::INLINED_FS_META != 0 {
        return Err(
            "it was taken out of a blob, whose name it does not know: give the bootstrap of the whole image",
        );
    }
    if info.features & (blob_features::SEPARATE | blob_features::CHUNK_INFO_V2) != 0 {
        return Err(
            "it has blobs with metadata of a kind that is not supported: convert it with plain blobs",
        );
    }
    if !info.compressor.same_algorithm(format.compressor) || info.digester != format.digester {
        return Err("its blobs differ in compression or digest: convert it again");
    }
    let mut id = [0; 32];
    hex::decode_to_slice(&info.id, &mut id).map_err(|_| "a blob's name is no sha256: convert it again")?;
    let chunks: Vec<ChunkInfo> = image.chunks.of_blob(index).iter().map(|chunk| chunk.info).collect();
    let meta = info.meta.as_ref();
    Ok(Blob {
        id: BlobId(id),
        format,
        chunks,
        chunk_count: info.chunk_count,
        data_end: match format.version {
            FsVersion::V5 => info.compressed_size,
            FsVersion::V6 => meta.map_or(0, |meta| meta.offset),
        },
        file_size: info.compressed_size,
        uncompressed_size: info.uncompressed_size,
        tail: BlobTail {
            features: info.features,
            info_compressor: match meta.map(|meta| meta.compressor) {
                None | Some(Compressor::None) => 0,
                Some(Compressor::Lz4Block) => 1,
                Some(Compressor::Gzip) => 2,
                Some(Compressor::Zstd(_)) => 3,
            },
            info_stored: meta.map_or(0, |meta| meta.compressed_size),
            info_size: meta.map_or(0, |meta| meta.uncompressed_size),
            toc_size: info.toc_size,
            toc_digest: info.toc_digest,
        },
    })
}

/// The file of a blob.
fn find(image: &KnownImage, id: &BlobId, dirs: &[&Path]) -> Option<PathBuf> {
    let beside = image.bootstrap.parent().unwrap_or(Path::new("."));
    let own = [beside.to_owned(), beside.join("blobs")];
    image
        .blobs
        .iter()
        .map(PathBuf::as_path)
        .chain(dirs.iter().copied())
        .chain(own.iter().map(PathBuf::as_path))
        .map(|dir| dir.join(id.to_string()))
        .find(|path| path.is_file())
}
