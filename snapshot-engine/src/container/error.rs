//! Why a container cannot be a target, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::added::Why;
use crate::model::pid::Pid;
use crate::model::reference::Runtime;

/// Why a reference did not become a target.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing has this name, id or process number.
    #[error(
        "no container matches {reference:?}; looked at {looked}{unanswered}; \
         name a container, at least 3 characters of its id, or the process number of its init",
        looked = .looked.join(", "), unanswered = .unanswered.iter().map(|why| format!("; {why}")).collect::<String>()
    )]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The places that were searched.
        looked: Vec<String>,
        /// Runtimes that could not be asked, and why.
        unanswered: Vec<String>,
    },
    /// Several containers match.
    #[error("{reference:?} matches several containers: {}; give one of these, or more characters of the id", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// Runtime, id, name and state of each match, in a form that can be given back.
        candidates: Vec<String>,
    },
    /// The runtime knows the container, its init is gone.
    #[error(
        "container {reference:?} is not running (its init, process {init}, is gone); \
         start it again, or remove its stale state in {kept}", kept = .kept.display()
    )]
    NotRunning {
        /// What was asked for.
        reference: String,
        /// The init the state names; 0 when it names none.
        init: Pid,
        /// Where the runtime keeps that state.
        kept: PathBuf,
    },
    /// A container of docker's does not run, and nobody who was asked has its layers.
    #[error(
        "container {reference:?} does not run, and docker does not say where its layers are; with the containerd image store its containerd does, \
         and none that was asked has them (snapshotter {snapshotter}, namespace {namespace}); give the socket of docker's containerd with \
         --containerd-address, or start the container"
    )]
    LayersElsewhere {
        /// What was asked for.
        reference: String,
        /// Who has them there.
        snapshotter: String,
        /// And for whom.
        namespace: String,
    },
    /// The root file system is not an overlay.
    #[error(
        "the root of process {init} is {fs_type}, not an overlay: only containers with an overlayfs writable layer can be \
         snapshotted; use the runtime's overlay storage driver (overlay2, overlayfs) instead"
    )]
    NotOverlay {
        /// The container's init.
        init: Pid,
        /// What its root is.
        fs_type: String,
    },
    /// The overlay has no writable layer.
    #[error(
        "the root overlay of process {init} is read-only (it has no upperdir): there is nothing to snapshot; start the container with a writable root"
    )]
    ReadOnlyOverlay {
        /// The container's init.
        init: Pid,
    },
    /// The writable layer lies on another overlay.
    #[error(
        "the upperdir {upper} lies itself on an overlay (a container in a container): run the engine in the outer host on the outer container, \
         or give the inner runtime a data directory on a volume", upper = .upper.display()
    )]
    NestedUpper {
        /// The upperdir.
        upper: PathBuf,
    },
    /// The writable layer is not where the mount says.
    #[error(
        "the upperdir {upper} of process {init} was not found in any reachable mount namespace ({detail}); \
         run the engine in the mount namespace of the container's runtime (nsenter -m -t <its pid>)", upper = .upper.display()
    )]
    UpperMissing {
        /// The container's init.
        init: Pid,
        /// The path as the mount options have it.
        upper: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// What was found of the layers is not all of the container.
    #[error(
        "{name:?} in the root of process {init} is in none of the layers {layers}: one of them is mounted where the engine cannot see it; \
         run the engine in the mount namespace of what serves the layers, as the snapshotter (nsenter -m -t <its pid>)",
        layers = .layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    LayerMissing {
        /// The container's init.
        init: Pid,
        /// A name that the container sees.
        name: String,
        /// Where its layers were found, the upper first.
        layers: Vec<PathBuf>,
    },
    /// A daemon that should be there does not answer, or says something else than its API has.
    #[error("{runtime} at {place} cannot be asked: {detail}", place = .place.display())]
    Unanswered {
        /// Which.
        runtime: Runtime,
        /// Its socket.
        place: PathBuf,
        /// What happened instead.
        detail: String,
    },
    /// A stopped container did not stay as it was while it was copied.
    #[error(
        "the stopped container {reference:?} was started or changed while it was copied: nothing was made of it; try again"
    )]
    Changed {
        /// What was asked for.
        reference: String,
    },
    /// A path that was to be added to the image.
    #[error("{path} cannot be added to the image: {why}", path = .path.display())]
    Added {
        /// As it was given.
        path: PathBuf,
        /// What is in the way, and what to do about it.
        why: Why,
    },
    /// The kernel refused access.
    #[error("no permission for {path}: run the engine as root, with CAP_SYS_PTRACE and CAP_SYS_ADMIN", path = .path.display())]
    Permission {
        /// What could not be read.
        path: PathBuf,
    },
    /// A runtime's state file makes no sense.
    #[error("{path} is not a state file of {runtime}: {detail}; is that runtime's version supported?", path = .path.display())]
    State {
        /// The runtime it belongs to.
        runtime: Runtime,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Anything else the kernel said.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// What was being read.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an I/O error with its path; refusals become [`Error::Permission`].
    pub(crate) fn io(path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Permission { path: path.to_owned() },
            _ => Error::Io { path: path.to_owned(), source },
        }
    }
}
