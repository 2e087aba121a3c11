//! Layers become an image.
//!
//! ```text
//! lower N  --walk, convert--> cache { tree, blob } \
//! lower 1  --walk, convert--> cache { tree, blob }  } merge --> bootstrap --> OCI layout  oci:DIR:TAG
//! upper    --walk, convert-->       { tree, blob } /
//! ```
//!
//! Lowers never change, so what they become is kept by identity and options. The upper's chunks are looked for in all lowers'
//! blobs first, and in those of the image that an earlier snapshot of the same upperdir became ([`earlier`]). [`build::build`] walks the whole way.

pub mod archive;
pub mod build;
pub mod cache;
pub mod compare;
pub mod config;
pub mod earlier;
pub mod known;
pub mod layer;
pub mod mount;
pub mod nydus;
pub mod oci;
mod sealed;
mod stack;
mod task;
mod walk;

pub use task::Task;

use std::io;
use std::path::{Path, PathBuf};

use crate::chunk::ChunkError;
use crate::model::chunk::{BlobId, Format};
use crate::model::overlay::OverlayError;
use crate::model::tree::TreeError;
use crate::rafs::RafsError;
use crate::rafs::read::ReadError;

/// Why no image could be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A tree could not be walked.
    #[error("cannot read `{}` in the layer", path.display())]
    Walk {
        /// Path in the tree.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A tree that is larger than can be held.
    #[error("the layer `{}` has more than {most} {what}: snapshot a smaller one", layer.display())]
    TooLarge {
        /// The layer's directory.
        layer: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        most: u64,
    },
    /// Chunking failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The layers do not go together.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A layer is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The tree cannot be written as RAFS.
    #[error(transparent)]
    Rafs(#[from] RafsError),
    /// The bootstrap of an image to build on cannot be read.
    #[error("`{}` cannot be built on", path.display())]
    Bootstrap {
        /// The bootstrap.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// An image to build on was made with other options.
    #[error(
        "`{}` was made {theirs}, and the image is to be made {wanted}: give the same options, or leave it out", path.display()
    )]
    OtherFormat {
        /// Its bootstrap.
        path: PathBuf,
        /// How it was made.
        theirs: Format,
        /// How the new one is to be made.
        wanted: Format,
    },
    /// An image to build on has something that a new one cannot refer to.
    #[error("`{}` cannot be built on: {what}", path.display())]
    Foreign {
        /// Its bootstrap.
        path: PathBuf,
        /// What it has, and what to do.
        what: &'static str,
    },
    /// A blob of an image that was built on is nowhere.
    #[error(
        "the image needs the blob {id} of the image it was built on, which is not there: say with blobs=DIR where it is"
    )]
    NoBlob {
        /// Its id.
        id: BlobId,
    },
    /// The tree has something that the format cannot hold.
    #[error("`{}` cannot be in a layer of an OCI image: {what}; make a Nydus image, or leave it out", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: &'static str,
    },
    /// The image that was given as the base cannot be that.
    #[error("the image `{tag}` in `{}` cannot be the base: {what}", dir.display())]
    NoBase {
        /// The layout.
        dir: PathBuf,
        /// Its tag there.
        tag: String,
        /// Why.
        what: String,
    },
    /// A file of the engine's own could not be read or written.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was to be done with it.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The target's directory is there and is something else.
    #[error("`{}` exists and is no OCI image layout: give an empty directory or a layout", dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
    },
    /// The target's tag is there.
    #[error("the target exists: `{}` has an image `{tag}` already: give another tag, or allow overwriting", dir.display())]
    TargetExists {
        /// The layout.
        dir: PathBuf,
        /// The tag.
        tag: String,
    },
    /// A tag the layout's annotation cannot hold.
    #[error("`{tag}` is no image tag: use letters, digits and `.-_:@/+`, beginning with a letter or digit")]
    BadTag {
        /// What was given.
        tag: String,
    },
    /// A layout or a document in it that does not parse.
    #[error("`{}` is damaged: remove it or repair it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it does not parse.
        source: serde_json::Error,
    },
    /// The image cannot be mounted by the kernel: its blobs are compressed, or it is of v5.
    #[error(
        "only an uncompressed image of RAFS v6 can be mounted by the kernel: build it so (compressor `none`), or serve it with nydusd"
    )]
    Compressed,
    /// The mount was refused.
    #[error("cannot mount `{}` as EROFS: file-backed mounts need Linux 6.12 and CAP_SYS_ADMIN", path.display())]
    Mount {
        /// The bootstrap.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ImageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        move |source| ImageError::Io { what, path: path.to_owned(), source }
    }
}

/// A blob of an image.
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

/// What is told of a long way's progress.
pub trait Progress: Sync {
    /// A stage begins.
    fn stage(&self, name: &str);
    /// Bytes done of this stage's total.
    fn advance(&self, done_bytes: u64, total_bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _name: &str) {}
    fn advance(&self, _done_bytes: u64, _total_bytes: u64) {}
}

/// How the names of half made files begin: here and in `chunk::blob`.
const HALF_MADE: [&str; 2] = [".new-", ".blob-"];

/// Removes what killed writers left half made in a directory, by the names they give such files. The caller holds the lock under
/// which such files are made, so none of them is anybody's.
fn remove_scraps(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let half_made = HALF_MADE.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        if half_made && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces a file by new bytes: whoever reads it sees the old or the new, whole.
fn write_atomically(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    if sync {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|e| e.error)?;
    if sync {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_killed_writer_left_half_made_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".new-a1B2c3", ".blob-x", ".keep", "index.json"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        super::remove_scraps(dir.path()).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".keep", "index.json"]);
    }
}
