//! An image on a directory, by the kernel's own EROFS: an independent reader to check ours against.
//!
//! The files are handed to the kernel as `/proc/self/fd/N`, so that no path is too long for `fsconfig(2)` (256 bytes) and no
//! number of blobs too large for the one page of mount(2)'s data.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::model::chunk::{Compressor, FsVersion};

use super::ImageError;
use super::build::Image;

/// A mounted image; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.at, UnmountFlags::DETACH) {
            tracing::warn!(at = %self.at.display(), %error, "cannot unmount the image");
        }
    }
}

/// Mounts an image on an existing directory, read-only.
///
/// # Errors
/// [`ImageError::Compressed`] when the kernel could not read it, [`ImageError::Mount`] when it refuses.
pub fn mount(image: &Image, at: &Path) -> Result<Mounted, ImageError> {
    if image.format.compressor != Compressor::None || image.format.version != FsVersion::V6 {
        return Err(ImageError::Compressed);
    }
    let blobs: Vec<&Path> = image.blobs.iter().map(|b| b.path.as_path()).collect();
    mount_files(&image.bootstrap, &blobs, at)
}

/// Mounts a bootstrap with uncompressed blobs, which are given in the order of its blob table.
///
/// # Errors
/// [`ImageError::Mount`] when the kernel refuses.
pub fn mount_files(bootstrap: &Path, blobs: &[&Path], at: &Path) -> Result<Mounted, ImageError> {
    attach(bootstrap, blobs, at, SAFE | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    Ok(Mounted { at: at.to_owned() })
}

/// As [`mount_files`], to stay mounted, and with programs that can be run.
///
/// # Errors
/// As [`mount_files`].
pub fn mount_persistent(bootstrap: &Path, blobs: &[&Path], at: &Path) -> Result<(), ImageError> {
    attach(bootstrap, blobs, at, SAFE)
}

/// Whoever made the image may have meant harm: no devices of his, and nobody else's rights.
const SAFE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

fn attach(
    bootstrap: &Path,
    blobs: &[&Path],
    at: &Path,
    attributes: MountAttrFlags,
) -> Result<(), ImageError> {
    let refused = |e: rustix::io::Errno| ImageError::Mount { path: bootstrap.to_owned(), source: e.into() };
    let open = |path: &Path| File::open(path).map_err(ImageError::io("open", path));
    let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let boot = open(bootstrap)?;
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused)?;
    fsconfig_set_string(fs.as_fd(), "source", name(&boot)).map_err(refused)?;
    fsconfig_set_flag(fs.as_fd(), "ro").map_err(refused)?;
    // Kept open until the kernel has opened them itself.
    let mut files = Vec::with_capacity(blobs.len());
    for blob in blobs {
        let file = open(blob)?;
        fsconfig_set_string(fs.as_fd(), "device", name(&file)).map_err(refused)?;
        files.push(file);
    }
    fsconfig_create(fs.as_fd()).map_err(refused)?;
    let tree = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused)?;
    move_mount(tree.as_fd(), "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(refused)
}
