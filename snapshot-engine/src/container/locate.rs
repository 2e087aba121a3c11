//! Finding a layer's directory from what the overlay's mount options say.
//!
//! The options hold the path as it was when the mount was made: in the mount namespace of whoever made it, sometimes relative to its
//! working directory (dockerd and podman change into their storage when the options would not fit a page). So the path is tried from
//! several places, and a directory counts as the upper only if it **is** the one the kernel uses.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::mountinfo::Mount;
use super::process;
use super::stopped::identity;
use crate::model::pid::Pid;

/// Storage directories that relative layers are relative to, unless the mount tells better.
const STORAGE: [&str; 5] = [
    "/var/lib/docker/overlay2",
    "/var/lib/containers/storage/overlay",
    "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots",
    "/var/lib/docker/containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots",
    "/run/containers/storage/overlay",
];

/// A mount namespace the engine can look into, and the directories relative layers may start from.
pub(super) struct View {
    /// `/`, or `/proc/PID/root`.
    root: PathBuf,
    pub(super) mounts: Vec<Mount>,
    bases: Vec<PathBuf>,
    /// The target's parent lives here: its shim, which as a rule made the mount.
    parents: bool,
}

impl View {
    /// The paths, reachable by the engine, that `layer` may mean here.
    fn paths(&self, layer: &[u8]) -> Vec<PathBuf> {
        let layer = Path::new(OsStr::from_bytes(layer));
        if layer.is_absolute() {
            return vec![self.reach(layer)];
        }
        self.bases.iter().map(|base| self.reach(&base.join(layer))).collect()
    }

    fn reach(&self, path: &Path) -> PathBuf {
        if self.root == Path::new("/") {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The layer's directory if it exists here. In the engine's own namespace links (docker's `l/XXXX`) are resolved.
    pub(super) fn find(&self, layer: &[u8]) -> Option<PathBuf> {
        let found = self.paths(layer).into_iter().find(|p| p.is_dir())?;
        Some(self.canonical(found))
    }

    fn canonical(&self, path: PathBuf) -> PathBuf {
        if self.root == Path::new("/") { path.canonicalize().unwrap_or(path) } else { path }
    }
}

/// The namespaces to look in, nearest first: the engine's, the host's init's, those of the target's ancestors (its
/// shim lives where its runtime made the mount), and last the target's own.
pub(super) fn views(init: Pid, overlay: &Mount, layers: &[&[u8]]) -> Vec<View> {
    let mut order = vec![Pid::own(), Pid(1)];
    let mut ancestor = init;
    // A bound, so that a loop made of reused numbers ends.
    for _ in 0..64 {
        match process::stat(ancestor) {
            Ok(stat) if stat.parent.0 > 1 => ancestor = stat.parent,
            _ => break,
        }
        order.push(ancestor);
    }
    // If it still has the one that started it.
    let parent = order.get(2).and_then(|parent| process::namespace(*parent, "mnt").ok());
    order.push(init);
    let mut seen = HashSet::new();
    let mut views = Vec::new();
    for pid in order {
        let Ok(namespace) = process::namespace(pid, "mnt") else { continue };
        let Ok(mounts) = process::mounts(pid) else { continue };
        if seen.insert(namespace) {
            let root = if pid == Pid::own() { PathBuf::from("/") } else { process::root(pid) };
            let bases = bases(&mounts, overlay, layers);
            views.push(View { root, mounts, bases, parents: Some(namespace) == parent });
        }
    }
    views
}

/// The directory of a lower layer: the nearest of that path, unless it is another than the one that the target's parent sees. So it is where a snapshotter
/// has mounted the layer in a namespace of its own.
pub(super) fn layer(views: &[View], layer: &[u8]) -> Option<PathBuf> {
    let (view, nearest) = views.iter().find_map(|view| Some((view, view.find(layer)?)))?;
    if view.parents {
        return Some(nearest);
    }
    let parents = views.iter().filter(|view| view.parents).find_map(|view| view.find(layer));
    let another = |path: &PathBuf| identity(path).ok() != identity(&nearest).ok();
    Some(parents.filter(another).unwrap_or(nearest))
}

/// Where relative layers may start: above an absolute sibling layer (containerd), above the mount point of the
/// same overlay (docker: `overlay2/ID/merged`), or in a well-known storage directory.
fn bases(mounts: &[Mount], overlay: &Mount, layers: &[&[u8]]) -> Vec<PathBuf> {
    let same = mounts.iter().filter(|m| m.device() == overlay.device()).map(|m| m.point.as_path());
    let siblings = layers.iter().map(|l| Path::new(OsStr::from_bytes(l))).filter(|p| p.is_absolute());
    let mut bases: Vec<PathBuf> = Vec::new();
    for path in siblings.chain(same) {
        for above in path.ancestors().skip(1).filter(|p| *p != Path::new("/")) {
            if !bases.iter().any(|b| b == above) {
                bases.push(above.to_owned());
            }
        }
    }
    bases.extend(STORAGE.iter().map(PathBuf::from));
    bases
}

/// A found upper directory.
pub(super) struct Upper {
    pub(super) path: PathBuf,
    /// Mount number of the mount it lies on.
    pub(super) mount: u64,
    /// `st_dev` major and minor.
    pub(super) dev: (u32, u32),
    /// Its inode number.
    pub(super) ino: u64,
}

/// The upper's directory in this view: it must show the very times the overlay's root shows, for a merged directory gives its upper's
/// attributes (`ovl_getattr`, fs/overlayfs/inode.c). Otherwise what was found there instead.
pub(super) fn upper(view: &View, meanings: &[Vec<u8>], init: Pid) -> io::Result<Result<Upper, PathBuf>> {
    let mut wrong = None;
    for path in meanings.iter().flat_map(|m| view.paths(m)) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) else { continue };
        let root = rustix::fs::open(process::root(init), flags, Mode::empty())?;
        if same(&fd, &root)? {
            let stat = statx(fd.as_fd())?;
            return Ok(Ok(Upper {
                path: view.canonical(path),
                mount: stat.stx_mnt_id,
                dev: (stat.stx_dev_major, stat.stx_dev_minor),
                ino: stat.stx_ino,
            }));
        }
        wrong.get_or_insert(path);
    }
    match wrong {
        Some(path) => Ok(Err(path)),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Whether two directories show the same birth, modification and change time to the nanosecond. The container may change its
/// root directory between the two looks, so a difference is believed only when the first has not changed meanwhile.
fn same(upper: &OwnedFd, root: &OwnedFd) -> io::Result<bool> {
    let marks = |fd: &OwnedFd| {
        statx(fd.as_fd()).map(|s| {
            let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
            let birth = if s.stx_mask & StatxFlags::BTIME.bits() == 0 { (0, 0) } else { time(s.stx_btime) };
            (time(s.stx_ctime), time(s.stx_mtime), s.stx_mode, birth)
        })
    };
    let mut before = marks(upper)?;
    for _ in 0..100 {
        let other = marks(root)?;
        // Overlayfs of some kernels passes no birth time on.
        if (before.0, before.1, before.2) == (other.0, other.1, other.2)
            && (before.3 == other.3 || before.3 == (0, 0) || other.3 == (0, 0))
        {
            return Ok(true);
        }
        let after = marks(upper)?;
        if before == after {
            return Ok(false);
        }
        before = after;
    }
    Ok(false)
}

/// With the number of the mount.
pub(super) fn statx(fd: BorrowedFd<'_>) -> io::Result<rustix::fs::Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)?)
}
