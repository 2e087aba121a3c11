//! A file system that never answers: FUSE whose daemon is this process, which reads no request. Whoever asks it for anything sleeps
//! uninterruptibly (state D) until this is dropped, and only SIGKILL wakes it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Mounted as long as this lives.
#[derive(Debug)]
pub struct Silent {
    at: tempfile::TempDir,
    // Closed last: the kernel then ends every request with an error.
    _connection: File,
}

impl Silent {
    /// Mounts one.
    ///
    /// # Errors
    /// When the kernel has no FUSE.
    pub fn new() -> Result<Silent> {
        let connection = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("/dev/fuse: this test needs a kernel with FUSE")?;
        let at = tempfile::Builder::new().prefix("snapshot-silent-").tempdir()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", connection.as_raw_fd());
        let options = std::ffi::CString::new(options)?;
        mount("fuse", at.path(), "fuse", MountFlags::NOSUID, Some(options.as_c_str()))?;
        Ok(Silent { at, _connection: connection })
    }

    /// A path on it. Not to be asked for anything by the test itself.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::join(self.at.path(), "nobody-knows")
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = unmount(self.at.path(), UnmountFlags::DETACH | UnmountFlags::FORCE);
    }
}
