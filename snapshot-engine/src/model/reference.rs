//! How a user names a container.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fault::{Class, Fault};

/// A container as the user named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRef {
    /// By the name or id its runtime knows it by.
    Name(String),
    /// By any process inside it.
    Pid(u32),
}

/// Why a text cannot name a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is empty.
    #[error("the container's name is empty")]
    Empty,
    /// It has a character no runtime allows: `/`, control characters.
    #[error("`{0}` cannot be the name of a container")]
    Character(String),
    /// `pid:` is not followed by a process id.
    #[error("`{0}` is not a process id")]
    Pid(String),
}

impl Fault for Error {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some("give the container's name or id, or a process inside it with --pid".into())
    }
}

impl FromStr for ContainerRef {
    type Err = Error;

    /// `NAME`, or `pid:N`.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(pid) if pid > 0 => Ok(ContainerRef::Pid(pid)),
                _ => Err(Error::Pid(pid.to_owned())),
            };
        }
        // A name becomes part of paths below the runtimes' state directories.
        if text == "." || text == ".." || text.chars().any(|c| c == '/' || c.is_control()) {
            return Err(Error::Character(text.escape_debug().to_string()));
        }
        Ok(ContainerRef::Name(text.to_owned()))
    }
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContainerRef::Name(name) => f.pad(name),
            ContainerRef::Pid(pid) => f.pad(&format!("pid:{pid}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_pids() {
        assert_eq!("web-1".parse(), Ok(ContainerRef::Name("web-1".into())));
        assert_eq!("pid:17".parse(), Ok(ContainerRef::Pid(17)));
        assert_eq!(ContainerRef::Pid(17).to_string(), "pid:17");
        for bad in ["", "../etc", "a/b", "..", "a\nb", "pid:0", "pid:x"] {
            assert!(bad.parse::<ContainerRef>().is_err(), "{bad:?}");
        }
    }
}
