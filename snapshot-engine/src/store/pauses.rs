//! The histogram of a work directory, kept in `pauses.json`.

use std::fs;
use std::io;

use super::Store;
use crate::model::fault::{Class, Fault};
use crate::model::snapshot::Pause;
use crate::telemetry::PauseHistogram;

/// What can go wrong with the histogram's file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] super::Error),
    /// The file cannot be understood.
    #[error("cannot understand the histogram of pauses")]
    Content(#[from] serde_json::Error),
}

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::Store(e) => e.class(),
            Error::Content(_) => Class::General,
        }
    }
    fn remedy(&self) -> Option<String> {
        match self {
            Error::Store(e) => e.remedy(),
            Error::Content(_) => Some("remove pauses.json from the work directory to begin a new one".into()),
        }
    }
}

/// Adds a pause to the store's histogram. Safe beside other processes doing the same.
///
/// # Errors
/// When the file cannot be read, understood or replaced; it is then as it was.
pub fn remember(store: &Store, pause: &Pause) -> Result<(), Error> {
    store.rewrite(&store.pauses_file(), |old| {
        let mut histogram = match old {
            Some(bytes) => serde_json::from_slice(&bytes)?,
            None => PauseHistogram::default(),
        };
        histogram.record(pause.gate, pause.window, pause.longest_stop);
        Ok::<_, Error>(serde_json::to_vec(&histogram)?)
    })
}

/// The store's histogram; empty if there is none yet.
///
/// # Errors
/// When the file cannot be read or understood.
pub fn load(store: &Store) -> Result<PauseHistogram, Error> {
    let file = store.pauses_file();
    match fs::read(&file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(PauseHistogram::default()),
        Err(e) => Err(super::Error::io("read", &file, e).into()),
    }
}
