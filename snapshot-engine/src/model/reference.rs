//! How a user names a container. The grammar: `NAME`, `RUNTIME://NAME`, `pid:N`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fault::{Class, Fault};

/// Who may know a container, in the order of how much each knows: of two that know the same one the first is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// dockerd, by its API.
    Docker,
    /// podman, by its API or its storage.
    Podman,
    /// Kubernetes' container runtime interface: containerd, CRI-O.
    Cri,
    /// containerd, by its own API: nerdctl, ctr.
    Containerd,
    /// crun's state.
    Crun,
    /// runc's state.
    Runc,
    /// The built-in demo runtime.
    Demo,
    /// Nobody: a process number.
    Pid,
}

impl Runtime {
    /// All that a reference can name as a scheme.
    pub const SCHEMES: [Runtime; 7] = [
        Runtime::Docker,
        Runtime::Podman,
        Runtime::Cri,
        Runtime::Containerd,
        Runtime::Crun,
        Runtime::Runc,
        Runtime::Demo,
    ];

    /// Its name, which is also its scheme.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Runtime::Docker => "docker",
            Runtime::Podman => "podman",
            Runtime::Cri => "cri",
            Runtime::Containerd => "containerd",
            Runtime::Crun => "crun",
            Runtime::Runc => "runc",
            Runtime::Demo => "demo",
            Runtime::Pid => "pid",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A container as the user named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRef {
    /// By the name, id or beginning of an id that some runtime knows it by.
    Name(String),
    /// By the same, at one runtime.
    At {
        /// Which.
        runtime: Runtime,
        /// The name or id there.
        name: String,
    },
    /// By any process inside it.
    Pid(u32),
}

/// Why a text cannot name a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is empty.
    #[error("the container's name is empty")]
    Empty,
    /// It has a character no runtime allows, or more parts than `namespace/pod/container`.
    #[error("`{0}` cannot be the name of a container")]
    Character(String),
    /// `pid:` is not followed by a process id.
    #[error("`{0}` is not a process id")]
    Pid(String),
    /// A scheme that is no runtime's.
    #[error("`{0}` is not a runtime: {known}", known = Runtime::SCHEMES.map(Runtime::word).join(", "))]
    Scheme(String),
}

impl Fault for Error {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some(
            "give the container's name or id, RUNTIME://NAME (such as docker://web or cri://default/pod/app), or a process inside it with --pid"
                .into(),
        )
    }
}

impl FromStr for ContainerRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(pid) if pid > 0 => Ok(ContainerRef::Pid(pid)),
                _ => Err(Error::Pid(pid.escape_debug().to_string())),
            };
        }
        let Some((scheme, name)) = text.split_once("://") else {
            return Ok(ContainerRef::Name(checked(text)?));
        };
        match Runtime::SCHEMES.into_iter().find(|runtime| runtime.word() == scheme) {
            Some(runtime) => Ok(ContainerRef::At { runtime, name: checked(name)? }),
            None => Err(Error::Scheme(scheme.escape_debug().to_string())),
        }
    }
}

/// A name becomes part of paths below the runtimes' state directories and of requests to them.
fn checked(name: &str) -> Result<String, Error> {
    if name.is_empty() {
        return Err(Error::Empty);
    }
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if name.split('/').count() > 3 || name.split('/').any(bad) {
        return Err(Error::Character(name.escape_debug().to_string()));
    }
    Ok(name.to_owned())
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContainerRef::Name(name) => f.pad(name),
            ContainerRef::At { runtime, name } => f.pad(&format!("{runtime}://{name}")),
            ContainerRef::Pid(pid) => f.pad(&format!("pid:{pid}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_schemes_and_pids() {
        assert_eq!("web-1".parse(), Ok(ContainerRef::Name("web-1".into())));
        assert_eq!("pid:17".parse(), Ok(ContainerRef::Pid(17)));
        assert_eq!("default/web/app".parse(), Ok(ContainerRef::Name("default/web/app".into())));
        for runtime in Runtime::SCHEMES {
            let named = ContainerRef::At { runtime, name: "a1".into() };
            let text = format!("{runtime}://a1");
            assert_eq!((text.parse(), named.to_string()), (Ok(named), text));
        }
        for bad in ["", "../etc", "a//b", "..", "a/b/c/d", "a\nb", "pid:0", "pid:x", "docker://", "lxc://a"] {
            assert!(bad.parse::<ContainerRef>().is_err(), "{bad:?}");
        }
        assert!("lxc://a".parse::<ContainerRef>().unwrap_err().to_string().contains("containerd"));
    }

    #[test]
    fn records_of_earlier_engines_are_read() {
        let name: ContainerRef = serde_json::from_str(r#"{"name":"web"}"#).unwrap();
        assert_eq!(name, ContainerRef::Name("web".into()));
    }
}
