//! Where a database is, and how its programs are started there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::inside::{Inside, User};

/// A directory of data and one of sockets, by the names that programs there have for them.
#[derive(Debug, Clone)]
pub struct Site {
    /// `None`: this machine, outside of every container.
    inside: Option<Inside>,
    data: PathBuf,
    sockets: PathBuf,
}

impl Site {
    /// In a container. The directories are absolute, as the container sees them.
    #[must_use]
    pub fn inside(inside: &Inside, data: &Path, sockets: &Path) -> Site {
        Site { inside: Some(inside.clone()), data: data.into(), sockets: sockets.into() }
    }

    /// On this machine.
    #[must_use]
    pub fn here(data: &Path, sockets: &Path) -> Site {
        Site { inside: None, data: data.into(), sockets: sockets.into() }
    }

    /// The directory of the data, as its programs see it.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of the sockets, as its programs see it.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// A path there, as this process reaches it.
    #[must_use]
    pub fn seen(&self, path: &Path) -> PathBuf {
        match &self.inside {
            Some(inside) => inside.root().join(path.strip_prefix("/").unwrap_or(path)),
            None => path.into(),
        }
    }

    /// A command that will run there, in an empty environment.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        user: User,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        match &self.inside {
            Some(inside) => inside.command(user, program, args),
            None => user.command(program, args),
        }
    }
}
