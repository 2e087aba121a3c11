//! A container from an image, without a daemon.
//!
//! ```text
//!   DIR/rootfs        the image, with an overlay on top (reader::mount)     DIR/rw   what is written
//!   DIR/tree          what is below the overlay, of an image of plain layers (reader::unpack)
//!   DIR/config.json   spec: what the image says, as an OCI runtime reads it
//! ```

mod spec;

pub use spec::{Wanted, spec};

use crate::model::fault::{Class, Fault};

/// Why a container cannot be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Neither the image nor the user says what to run.
    #[error("the image does not say what to run")]
    NoCommand,
    /// The image wants a user that it does not have.
    #[error("the image has no user or group `{name}`")]
    NoUser {
        /// Its name.
        name: String,
    },
    /// There is no runtime.
    #[error("there is neither runc nor crun in the PATH")]
    NoRuntime,
}

impl Fault for RestoreError {
    fn class(&self) -> Class {
        match self {
            RestoreError::NoCommand => Class::Arguments,
            RestoreError::NoUser { .. } | RestoreError::NoRuntime => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        Some(match self {
            RestoreError::NoCommand => "say it after `--`, such as `-- /bin/sh`".into(),
            RestoreError::NoUser { .. } => "name another one in the image's config".into(),
            RestoreError::NoRuntime => "install runc or crun, or say where one is with --runtime".into(),
        })
    }
}
