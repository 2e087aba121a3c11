//! A file that is there whole, after a crash too, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Error;

/// Replaces a file: another name, fsync, rename, fsync of the directory. A crash leaves the old content or the new, never a mixture.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace(path, content, true)
}

/// Replaces a file that need not outlive a crash of the machine.
pub(super) fn write_advisory(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace(path, content, false)
}

fn replace(path: &Path, content: &[u8], durable: bool) -> Result<(), Error> {
    // One writer a file, by the locks; a temporary file of a killed one is simply written over.
    let temporary = path.with_extension("tmp");
    let failed = |e| Error::io("write", path, e);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)
        .map_err(failed)?;
    let written = file.write_all(content).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    if let Err(e) = written.and_then(|()| fs::rename(&temporary, path)) {
        // A full disk: do not keep what is of no use on it.
        let _ = fs::remove_file(&temporary);
        return Err(failed(e));
    }
    match path.parent() {
        Some(parent) if durable => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("sync", path, e))
}
