//! What can go wrong with the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory that is there already belongs to somebody else: a trap, or another user's.
    #[error("{} belongs to user {owner}, not to us", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A directory others can write or look into.
    #[error("{} is open to other users (mode {mode:o})", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something that should be a directory is a link or a file.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot `{given}`")]
    Unknown {
        /// What was asked for.
        given: String,
    },
    /// Several snapshots start with what was given.
    #[error("`{given}` is the beginning of {count} snapshots")]
    Ambiguous {
        /// What was asked for.
        given: String,
        /// How many match.
        count: usize,
    },
    /// Another process works on it.
    #[error("another process{} is working on it", pid.map(|p| format!(" ({p})")).unwrap_or_default())]
    Busy {
        /// Which, if it says.
        pid: Option<u32>,
    },
    /// A record that cannot be understood.
    #[error("cannot understand {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A record of a newer engine.
    #[error("{} has version {version}; this engine knows {}", path.display(), super::SCHEMA_VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { what, path: path.to_owned(), source }
    }
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => class_of_io(source),
            Error::Owner { .. } | Error::Open { .. } => Class::Permission,
            Error::Ambiguous { .. } => Class::Arguments,
            _ => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } => return remedy_of_io(source),
            Error::Owner { .. } | Error::NotADirectory { .. } => {
                "choose another directory with --work-dir or SNAPSHOT_ENGINE_WORK_DIR".into()
            }
            Error::Open { path, .. } if path.ends_with("snapshot-engine") => {
                format!("chmod 700 {}", path.display())
            }
            Error::Open { path, .. } => {
                format!("chmod go-w {}, or choose another directory with --work-dir", path.display())
            }
            Error::Unknown { .. } => {
                "`snapshot-engine list` shows the snapshots of a work directory; --work-dir chooses another"
                    .into()
            }
            Error::Ambiguous { .. } => "give more of the id".into(),
            Error::Busy { .. } => "wait for it: `snapshot-engine status ID` shows how far it is".into(),
            Error::Record { .. } => return None,
            Error::Version { .. } => "use the engine that wrote it, or a newer one".into(),
        })
    }
}
