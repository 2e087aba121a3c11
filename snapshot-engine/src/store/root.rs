//! The store's own directory below a work directory that may be `/tmp`, where anybody can put anything first.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Error, durable};

const NAME: &str = "snapshot-engine";

pub(super) fn absolute(work_dir: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(work_dir).map_err(|e| Error::io("find", work_dir, e))
}

fn make(path: &Path) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("create", path, e)),
    }
}

fn ours(path: &Path, stat: &Metadata) -> Result<(), Error> {
    if !stat.is_dir() {
        return Err(Error::NotADirectory { path: path.to_owned() });
    }
    if stat.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Owner { path: path.to_owned(), owner: stat.uid() });
    }
    if stat.mode() & 0o077 != 0 {
        return Err(Error::Open { path: path.to_owned(), mode: stat.mode() & 0o7777 });
    }
    Ok(())
}

/// In a directory that others may write and that is not sticky, anybody could rename ours away and put another in its place.
fn safe_parent(path: &Path, stat: &Metadata) -> Result<(), Error> {
    if !stat.is_dir() {
        return Err(Error::NotADirectory { path: path.to_owned() });
    }
    if stat.mode() & 0o022 != 0 && stat.mode() & libc::S_ISVTX == 0 {
        return Err(Error::Open { path: path.to_owned(), mode: stat.mode() & 0o7777 });
    }
    Ok(())
}

/// Makes what is missing and checks the rest.
pub(super) fn create(work_dir: &Path) -> Result<PathBuf, Error> {
    let stat = match fs::metadata(work_dir) {
        Ok(stat) => stat,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(work_dir)
                .map_err(|e| Error::io("create", work_dir, e))?;
            fs::metadata(work_dir).map_err(|e| Error::io("look at", work_dir, e))?
        }
        Err(e) => return Err(Error::io("look at", work_dir, e)),
    };
    safe_parent(work_dir, &stat)?;
    let root = work_dir.join(NAME);
    if make(&root)? {
        durable::sync_dir(work_dir)?;
    }
    // Not following a link: a planted one is seen as what it is.
    let stat = fs::symlink_metadata(&root).map_err(|e| Error::io("look at", &root, e))?;
    ours(&root, &stat)?;
    if make(&root.join("snapshots"))? {
        durable::sync_dir(&root)?;
    }
    // A check by doing: a read-only mount lets directories that exist pass until here.
    rustix::fs::access(&root, rustix::fs::Access::WRITE_OK)
        .map_err(|e| Error::io("write to", &root, e.into()))?;
    Ok(root)
}

/// Checks what is there; `None` if nothing is.
pub(super) fn check_existing(work_dir: &Path) -> Result<Option<PathBuf>, Error> {
    let root = work_dir.join(NAME);
    let stat = match fs::symlink_metadata(&root) {
        Ok(stat) => stat,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("look at", &root, e)),
    };
    let parent = fs::metadata(work_dir).map_err(|e| Error::io("look at", work_dir, e))?;
    safe_parent(work_dir, &parent)?;
    ours(&root, &stat)?;
    Ok(root.join("snapshots").is_dir().then_some(root))
}
