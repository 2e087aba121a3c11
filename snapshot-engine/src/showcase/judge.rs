//! Two independent readers of the same snapshot: the kernel's EROFS on the image, the kernel's overlayfs on the frozen upperdir and its lowers.
//!
//! Both are mounted in a mount namespace of the comparing thread's own, so that no mount is seen by anybody else or outlives the comparison,
//! not even if we are killed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::UnshareFlags;

use super::Error;
use super::report::ComparisonResult;
use super::scene::Scene;
use crate::image::{compare, mount};
use crate::kernel::process::new_namespaces;
use crate::store::Record;

/// How many differences are told.
const MOST: usize = 50;

/// Compares a finished snapshot's image with its frozen tree.
///
/// # Errors
/// When one of the two cannot be mounted or read.
pub(super) fn compare(scene: &Scene, record: &Record) -> Result<ComparisonResult, Error> {
    let place = scene.scratch.join("mounts");
    let (image, merged) = (place.join("image"), place.join("merged"));
    for dir in [&image, &merged] {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    std::thread::scope(|scope| {
        // A thread of its own: the namespace is the thread's, and goes with it.
        let thread = scope.spawn(|| inside(record, &image, &merged));
        thread.join().map_err(|_| Error::Lost)?
    })
}

fn inside(record: &Record, image: &Path, merged: &Path) -> Result<ComparisonResult, Error> {
    new_namespaces(UnshareFlags::NEWNS).map_err(Error::io("leave the mount namespace for", image))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)
        .map_err(|e| Error::io("make private the mounts below", Path::new("/"))(e.into()))?;
    let report = record.image.as_ref().ok_or(Error::NoImage)?;
    let blobs: Vec<&Path> = report.blobs.iter().map(PathBuf::as_path).collect();
    let _image = mount::mount_files(report.bootstrap.as_deref().ok_or(Error::NoImage)?, &blobs, image)?;
    let facts = &record.cut.target;
    let layers: Vec<&Path> =
        std::iter::once(&record.cut.old_upper_dir).chain(&facts.lowers).map(PathBuf::as_path).collect();
    overlay(&layers, facts.userxattr, merged).map_err(Error::io("mount the frozen tree at", merged))?;
    let found = compare::compare(image, merged, MOST)?;
    Ok(ComparisonResult {
        identical: found.differences.is_empty(),
        entries: found.entries,
        bytes: found.bytes,
        differences: found.differences.iter().map(|d| format!("{d} (image and frozen tree)")).collect(),
    })
}

/// Mounts layers, the uppermost first, read-only as one tree. Layers are handed over as descriptors: a path may be longer than `fsconfig(2)`
/// takes (256 bytes).
fn overlay(layers: &[&Path], userxattr: bool, at: &Path) -> io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", "overlay")?;
    let mut open = Vec::new();
    for layer in layers {
        let dir = File::open(layer)?;
        fsconfig_set_string(fs.as_fd(), "lowerdir+", format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        open.push(dir);
    }
    if userxattr {
        fsconfig_set_flag(fs.as_fd(), "userxattr")?;
    }
    fsconfig_create(fs.as_fd())?;
    let tree = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    move_mount(tree.as_fd(), "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}
