//! Why something cannot be measured.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};
use crate::pipeline;

/// What can go wrong with a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The process inside the container did not begin.
    #[error("the measuring process cannot enter the container: {why}")]
    NotInside {
        /// What it said.
        why: String,
    },
    /// Its owner has paused it.
    #[error("the container is paused, so nothing in it can feel anything")]
    Paused,
    /// The process inside the container does not answer.
    #[error(
        "the measuring process inside the container does not answer; is the container frozen or being killed?"
    )]
    Silent,
    /// A cgroup that does not freeze or thaw.
    #[error("{} did not {what} within a second", path.display())]
    NotFrozen {
        /// `freeze` or `thaw`.
        what: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// Neither version 2 nor any other hierarchy has this container.
    #[error("the container has no version 2 cgroup of its own")]
    NoCgroup,
    /// Somebody else's command failed.
    #[error("{command}: {why}")]
    Command {
        /// Which.
        command: String,
        /// What it said.
        why: String,
    },
    /// The report could not be made into JSON.
    #[error("cannot make JSON of the report")]
    Json(#[from] serde_json::Error),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }

    /// Whether a signal asked us to stop: no failure of the step.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        matches!(self, Error::Pipeline(pipeline::Error::Interrupted { .. }))
    }
}

/// An error's text with all its causes and its remedy.
pub(crate) fn whole(error: &dyn Fault) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    if let Some(help) = error.remedy() {
        text.push_str(" (");
        text.push_str(&help);
        text.push(')');
    }
    text
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Pipeline(e) => e.class(),
            Error::Io { source, .. } => class_of_io(source),
            _ => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Error::Pipeline(e) => e.remedy(),
            Error::Io { source, .. } => remedy_of_io(source),
            Error::NotInside { .. } => {
                Some("run it as root, and see whether the container's pids or memory limit leaves room for one more process".into())
            }
            Error::Paused => Some("let it go on first".into()),
            Error::NoCgroup => {
                Some("mount a version 2 cgroup hierarchy, as every current system does".into())
            }
            _ => None,
        }
    }
}
