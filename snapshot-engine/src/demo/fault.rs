//! What kind of failure a demo's error is.

use super::Error;
use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};

impl Fault for Error {
    fn class(&self) -> Class {
        match self {
            Error::BadName(_) | Error::BadLowers(_) => Class::Arguments,
            Error::NotFound(_) | Error::Dead(_) => Class::NoContainer,
            Error::Io { source, .. } => class_of_io(source),
            Error::Exists(_) | Error::NotStarted { .. } | Error::Undead(_) => Class::General,
        }
    }

    fn remedy(&self) -> Option<String> {
        // The other texts say it themselves.
        if let Error::Io { source, .. } = self { remedy_of_io(source) } else { None }
    }
}
