//! Why an image could not be read, and what is wrong with one that could.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};
use crate::rafs::read::ReadError;

/// Something that is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where: a file of the image, a blob, or a document.
    pub place: String,
    /// What.
    pub what: String,
}

impl Problem {
    pub(super) fn new(place: impl Into<String>, what: impl ToString) -> Problem {
        Problem { place: place.into(), what: what.to_string() }
    }
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The name leads to nothing.
    #[error("there is no image `{}`", .0.display())]
    NotFound(PathBuf),
    /// A layout with several images.
    #[error("`{}` has {} images: {}", dir.display(), tags.len(), tags.join(", "))]
    WhichTag {
        /// The layout.
        dir: PathBuf,
        /// Their tags.
        tags: Vec<String>,
    },
    /// A tag that is not there.
    #[error("`{}` has no image `{tag}`, only: {}", dir.display(), tags.join(", "))]
    NoTag {
        /// The layout.
        dir: PathBuf,
        /// The tag.
        tag: String,
        /// Those that are there.
        tags: Vec<String>,
    },
    /// A layout, or a document in it, that makes no sense.
    #[error("`{}`: {what}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The bootstrap cannot be read.
    #[error("`{}`", path.display())]
    Bootstrap {
        /// The file it is in.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// A blob is not there.
    #[error("the blob {id} is missing: there is no `{}`", path.display())]
    NoBlob {
        /// Its id.
        id: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The image is damaged, and the command needs one that is not.
    #[error("the image is damaged: {first}{}", more(*count))]
    Damaged {
        /// The first problem.
        first: String,
        /// How many there are.
        count: usize,
    },
    /// A chunk is not what the bootstrap says.
    #[error("`{}` cannot be read: {what}", path.display())]
    Data {
        /// The file whose content it is.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A path that the image does not have.
    #[error("the image has no `{}`", .0.display())]
    NoPath(PathBuf),
    /// The place to unpack to has something in it.
    #[error("`{}` is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The file to write is there.
    #[error("`{}` exists", .0.display())]
    Exists(PathBuf),
    /// The image cannot be had in this form.
    #[error("the image cannot be {what}")]
    Unfit {
        /// What was wanted of it, and why it cannot be.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The tree has something that the kernel's form cannot hold.
    #[error("the image cannot be exported as RAFS v6")]
    AsV6(#[source] crate::rafs::RafsError),
    /// The directory has an image already.
    #[error("an image is mounted on `{}` already", .0.display())]
    Mounted(PathBuf),
    /// The directory has no image of ours.
    #[error("no image is mounted on `{}`", .0.display())]
    NotMounted(PathBuf),
    /// The mount was refused.
    #[error("cannot mount the image on `{}`", at.display())]
    Mount {
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The unmount was refused.
    #[error("cannot unmount `{}`", at.display())]
    Unmount {
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process that was to serve an image ended.
    #[error("the process that was to serve the image ended at once: {said}")]
    Server {
        /// Its last words.
        said: String,
    },
    /// A file could not be read or written.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn more(count: usize) -> String {
    if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() }
}

impl ReaderError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReaderError {
        move |source| ReaderError::Io { what, path: path.to_owned(), source }
    }
}

impl Fault for ReaderError {
    fn class(&self) -> Class {
        match self {
            ReaderError::NotFound(_)
            | ReaderError::WhichTag { .. }
            | ReaderError::NoTag { .. }
            | ReaderError::NoPath(_)
            | ReaderError::NotEmpty(_)
            | ReaderError::Exists(_)
            | ReaderError::Mounted(_)
            | ReaderError::NotMounted(_) => Class::Arguments,
            ReaderError::Io { source, .. }
            | ReaderError::Mount { source, .. }
            | ReaderError::Unmount { source, .. } => class_of_io(source),
            _ => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            ReaderError::NotFound(_) => {
                "give an OCI layout (DIR or DIR:TAG), a bootstrap file, or the id of a snapshot whose image is complete"
            }
            ReaderError::WhichTag { .. } => "say which: DIR:TAG",
            ReaderError::NoTag { .. } => "give one of these",
            ReaderError::NoBlob { .. } => "give the directory that has the blobs with --blob-dir",
            ReaderError::Damaged { .. } | ReaderError::Data { .. } => {
                "`snapshot-engine image check` shows everything that is wrong with it"
            }
            ReaderError::Layout { .. } | ReaderError::Bootstrap { .. } => {
                "copy or make the image again; `snapshot-engine image check` shows what else is wrong"
            }
            ReaderError::NoPath(_) => "`snapshot-engine image inspect --files` lists what it has",
            ReaderError::NotEmpty(_) => "give an empty directory, or --force to unpack over what is there",
            ReaderError::Exists(_) => "give another file, or --force to replace it",
            ReaderError::Unfit { remedy, .. } => remedy,
            ReaderError::AsV6(_) => "unpack it, or mount it: both give out everything",
            ReaderError::Mounted(_) => {
                "give another directory, or `snapshot-engine image unmount` this one first"
            }
            ReaderError::NotMounted(_) => {
                "give the directory that was given to `snapshot-engine image mount`"
            }
            ReaderError::Mount { .. } => {
                "mounting needs root, /dev/fuse or Linux 6.12 with EROFS, and overlayfs for --rw; `dmesg` may say more"
            }
            ReaderError::Unmount { .. } => "end what uses it (`fuser -vm DIR` shows it) and try again",
            ReaderError::Server { .. } => "run it with --foreground to see more",
            ReaderError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root, or leave out what needs privilege with `image unpack --unprivileged`"
            }
            ReaderError::Io { source, .. } => return remedy_of_io(source),
        };
        Some(text.to_owned())
    }
}
