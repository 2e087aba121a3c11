//! Why there is nothing to report.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::image::compare::CompareError;
use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};
use crate::{bench, demo, pipeline};

/// What can go wrong with a run, or with a step of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// Measuring.
    #[error(transparent)]
    Bench(bench::Error),
    /// A demo container.
    #[error(transparent)]
    Demo(#[from] demo::Error),
    /// Mounting the image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Comparing.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// A file or directory of the run.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The image stage made no record of an image.
    #[error("the commit ended without an image on record")]
    NoImage,
    /// The thread that compares died, or a measurement has no figure.
    #[error("a step ended without a result")]
    Lost,
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }

    /// The text with all its causes.
    pub(super) fn whole(&self) -> String {
        bench::whole(self)
    }
}

impl From<bench::Error> for Error {
    /// A signal is told by the pipeline's own error, whoever passes it on.
    fn from(error: bench::Error) -> Error {
        match error {
            bench::Error::Pipeline(e) => Error::Pipeline(e),
            other => Error::Bench(other),
        }
    }
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Pipeline(e) => e.class(),
            Error::Bench(e) => e.class(),
            Error::Demo(e) => e.class(),
            Error::Io { source, .. } => class_of_io(source),
            _ => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Error::Pipeline(e) => e.remedy(),
            Error::Bench(e) => e.remedy(),
            Error::Demo(e) => e.remedy(),
            Error::Io { source, .. } => remedy_of_io(source),
            _ => None,
        }
    }
}
