//! What has to be known to undo a mount.
//!
//! ```text
//! /run/snapshot-engine/mounts/HASH/      HASH of the mount's path
//!     state.json                         what was mounted, and which process serves it
//!     lower/                             with --rw: the image, below the overlay
//!     upper/ work/                       with --rw and no directory given: gone with the mount
//!     log                                what the serving process had to say
//! ```

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::removal::remove_tree;
use crate::model::paths;

const ROOMS: &str = "/run/snapshot-engine/mounts";

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Where.
    #[serde(with = "paths")]
    pub(super) at: PathBuf,
    /// Whether there is an overlay on top.
    pub(super) rw: bool,
    /// The process that serves the image.
    pub(super) pid: Option<u32>,
}

/// The room of a mount.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) dir: PathBuf,
}

impl Room {
    /// The room for a mount at a path, which is canonical.
    pub(super) fn of(at: &Path) -> Room {
        let hash = blake3::hash(at.as_os_str().as_bytes()).to_hex();
        Room { dir: Path::new(ROOMS).join(&hash[..32]) }
    }

    /// Makes it, empty. What a mount left that was undone in another way is removed.
    pub(super) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(ROOMS)?;
        let _ = rustix::mount::unmount(self.path("lower"), rustix::mount::UnmountFlags::DETACH);
        remove_tree(&self.dir)?;
        fs::DirBuilder::new().mode(0o700).create(&self.dir)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    pub(super) fn write(&self, state: &State) -> io::Result<()> {
        fs::write(self.path("state.json"), serde_json::to_vec(state)?)
    }

    /// What was written; `None` without a room.
    pub(super) fn read(&self) -> io::Result<Option<State>> {
        match fs::read(self.path("state.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.dir)
    }
}
