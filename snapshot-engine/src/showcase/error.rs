//! Why there is nothing to report.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::image::compare::CompareError;
use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};
use crate::{demo, pipeline};

/// What can go wrong with a run, or with a step of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
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
    /// A cgroup that does not freeze or thaw.
    #[error("{} did not {what} within a second", path.display())]
    NotFrozen {
        /// `freeze` or `thaw`.
        what: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// Neither version 2 nor any other hierarchy has this container.
    #[error("the demo container has no version 2 cgroup")]
    NoCgroup,
    /// The image stage made no record of an image.
    #[error("the commit ended without an image on record")]
    NoImage,
    /// The thread that compares died.
    #[error("the comparison ended without a result")]
    Lost,
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }

    /// The text with all its causes.
    pub(super) fn whole(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(": ");
            text.push_str(&e.to_string());
            cause = e.source();
        }
        if let Some(help) = self.remedy() {
            text.push_str(" (");
            text.push_str(&help);
            text.push(')');
        }
        text
    }
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Pipeline(e) => e.class(),
            Error::Demo(e) => e.class(),
            Error::Io { source, .. } => class_of_io(source),
            _ => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Error::Pipeline(e) => e.remedy(),
            Error::Demo(e) => e.remedy(),
            Error::Io { source, .. } => remedy_of_io(source),
            Error::NoCgroup => {
                Some("mount a version 2 cgroup hierarchy, as every current system does".into())
            }
            _ => None,
        }
    }
}
