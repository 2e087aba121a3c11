//! A directory of the host in a container, as a runtime mounts a volume.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use snapshot_engine::kernel::process::new_namespaces;

/// Runs in a thread that is in the mount namespace of a process.
fn within<T: Send>(init: u32, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
    let enter = || {
        new_namespaces(UnshareFlags::FS)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        run()
    };
    std::thread::scope(|scope| {
        scope.spawn(enter).join().unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
    })
}

/// Mounts `source`, which is made if need be, at `at` in the container of `init`, where a directory is made through the container's root. It ends with the
/// container.
///
/// # Errors
/// When it cannot be mounted.
pub fn mount(init: u32, source: &Path, at: &str) -> Result<()> {
    fs::create_dir_all(source)?;
    let root = PathBuf::from(format!("/proc/{init}/root"));
    fs::create_dir_all(root.join(at.trim_start_matches('/')))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags)?;
    let to = at.to_owned();
    within(init, move || {
        move_mount(&tree, c"", CWD, to.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    })
    .with_context(|| format!("mount {} at {at}", source.display()))
}

/// Unmounts it again, as the container would.
///
/// # Errors
/// When somebody uses it.
pub fn leave(init: u32, at: &str) -> Result<()> {
    let at = at.to_owned();
    within(init, move || Ok(unmount(at.as_str(), UnmountFlags::empty())?))
}
