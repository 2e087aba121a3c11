//! Which gate a snapshot of a container would take, without making one.

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;

use super::session::place;
use crate::container::{self, Target};
use crate::model::pid::Pid;
use crate::model::snapshot::Gate;
use crate::track::btf::Btf;
use crate::track::mappings::{self, MappedFile};
use crate::track::programs::FileSystem;

/// What `--gate auto` would come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// The gate; `none` is tried before the others wherever it may be used.
    pub gate: Gate,
    /// Why this one.
    pub why: String,
}

impl Outlook {
    pub(super) fn new(gate: Gate, why: impl Into<String>) -> Outlook {
        Outlook { gate, why: why.into() }
    }
}

/// The outlook of a running container as it is now, or why no snapshot could be made of it. The same questions decide when one is made, but they are asked anew then.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn outlook(target: &Target) -> io::Result<Result<Outlook, String>> {
    if target.cgroup.is_frozen()? {
        return Ok(Ok(Outlook::new(Gate::None, "its owner has paused it")));
    }
    let freezer = place(target).is_some();
    let frozen = |why: String| {
        if freezer {
            return Ok(Outlook::new(Gate::Freezer, why));
        }
        Err(format!("{why}, and it has no cgroup of its own that could be frozen"))
    };
    if let Err(why) = tracked(&target.overlay.upper_fs) {
        return Ok(frozen(format!("{why}; with --tracker none it stands still while everything is copied")));
    }
    let pids = processes(target)?;
    let mapped = mapped_files(target, &pids)?;
    if let Some(first) = mapped.first() {
        let first = String::from_utf8_lossy(&first.path).into_owned();
        return Ok(frozen(format!("it maps {} of its files shared and writable ({first})", mapped.len())));
    }
    if mappings::uses_uring(&pids) {
        return Ok(frozen("it uses io_uring".to_owned()));
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(frozen("there is one CPU, which a held writer would keep from the engine".to_owned()));
    }
    Ok(Ok(Outlook::new(Gate::Fence, "its writers make system calls only")))
}

/// Whether there is a tracker for a file system on this kernel.
fn tracked(fs: &str) -> Result<(), crate::track::Error> {
    FileSystem::named(fs)?.backend(&Btf::of_kernel()?).map(drop)
}

/// The processes of a container.
pub(super) fn processes(target: &Target) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = container::tasks(target)?.iter().map(|t| t.pid.0).collect();
    pids.dedup();
    Ok(pids)
}

/// Major and minor number of a device as the kernel packs it.
pub(super) fn numbers(device: u64) -> (u32, u32) {
    ((device >> 20) as u32, (device & 0xf_ffff) as u32)
}

/// The files of a container's tree, or elsewhere on the upper's file system, that these processes map shared and could write to (T4).
pub(super) fn mapped_files(target: &Target, pids: &[u32]) -> io::Result<BTreeSet<MappedFile>> {
    let overlay = &target.overlay;
    let devices = [overlay.device, overlay.upper_device].map(numbers);
    mappings::writable_mappings(pids, &devices, |pid, path| {
        let mounts = container::process::mounts(Pid(pid)).unwrap_or_default();
        container::mountinfo::from_root(path, &mounts, overlay.device)
    })
}
