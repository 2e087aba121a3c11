//! What every error of the engine can say about itself beside its text: what kind of failure it is, and what to do about it.

use std::io;

use serde::{Deserialize, Serialize};

/// The kind of a failure. The exit code of the command follows from it (`cli/exit.rs`) and from nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Anything without a class of its own.
    General,
    /// The request makes no sense as it was given.
    Arguments,
    /// There is no such container.
    NoContainer,
    /// A privilege or a permission is missing.
    Permission,
    /// A registry or another peer could not be reached, or broke off.
    Network,
}

/// An error that knows its class and, where there is one, the remedy.
pub trait Fault: std::error::Error + Send + Sync + 'static {
    /// The kind of failure.
    fn class(&self) -> Class {
        Class::General
    }

    /// What the user can do about it, as a whole sentence without a full stop.
    fn remedy(&self) -> Option<String> {
        None
    }
}

/// The class of a failed system call.
#[must_use]
pub fn class_of_io(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::Permission,
        _ => Class::General,
    }
}

/// The remedy for a failed system call on something below the work directory.
#[must_use]
pub fn remedy_of_io(error: &io::Error) -> Option<String> {
    let text = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, `snapshot-engine remove` snapshots no longer needed, or choose another --work-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "choose a writable directory with --work-dir, or run as root"
        }
        _ if error.raw_os_error() == Some(libc::EIO) => {
            "its disk reports errors (`dmesg` shows which): mend it, or choose another file system with --work-dir"
        }
        _ => return None,
    };
    Some(text.to_owned())
}
