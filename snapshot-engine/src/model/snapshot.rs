//! What the stages report of one snapshot. These values are part of the record on disk and of the JSON the commands print.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::format::ImageFormat;
use super::ids::Ids;
use super::nanos::Nanos;
use super::paths;

/// What held writers back during the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Nothing: the optimistic cut.
    None,
    /// Modifying system calls waited at the user/kernel boundary.
    Fence,
    /// The cgroup was frozen.
    Freezer,
}

impl Gate {
    /// All gates, in the order `auto` tries them.
    pub const ALL: [Gate; 3] = [Gate::None, Gate::Fence, Gate::Freezer];
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Gate::None => "none",
            Gate::Fence => "fence",
            Gate::Freezer => "freezer",
        })
    }
}

/// What told the engine of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The file system's tracepoints.
    Tracepoints,
    /// The functions of the VFS (`fentry`), for file systems without tracepoints.
    Fentry,
    /// Nothing: `--tracker none`.
    None,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Backend::Tracepoints => "tracepoints",
            Backend::Fentry => "fentry",
            Backend::None => "none",
        })
    }
}

/// The figures of a cut. Units: nanoseconds, bytes, counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The gate of the attempt that succeeded.
    pub gate: Gate,
    /// Attempts made, the successful one included.
    pub attempts: u32,
    /// From the gate going up to the gate coming down; 0 for gate `none`.
    pub window: Nanos,
    /// The longest stop any task really had, over all attempts, as measured in the kernel.
    pub longest_stop: Nanos,
    /// Pre-copy rounds.
    pub rounds: u32,
    /// Inodes captured inside the window.
    pub residual_inodes: u64,
    /// Bytes captured inside the window.
    pub residual_bytes: u64,
    /// Attempts that were void: a writer, an event or a time-out fell into them.
    pub voided: u32,
    /// Changes the sweep found that the tracker had not reported (T6): each is a bug.
    #[serde(default)]
    pub tracker_misses: u64,
}

/// Images that a containerd keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStore {
    /// Its socket.
    #[serde(with = "paths")]
    pub address: PathBuf,
    /// The namespace there.
    pub namespace: String,
}

/// What must be known of the container to build its image later, when it may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The name or id its runtime knows it by, or the reference it was named with.
    pub container: String,
    /// Its init process at the time of the cut, as the host numbers it; 0 if it did not run.
    pub init_pid: u32,
    /// The lower directories, uppermost first, as paths of the host.
    #[serde(with = "paths::list")]
    pub lowers: Vec<PathBuf>,
    /// The overlay keeps its attributes in `user.overlay.*`.
    pub userxattr: bool,
    /// The image it was started from, as it was named, where known.
    pub image: Option<String>,
    /// That image's digest as its runtime names it, where known; absent in records of engines that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Names by which registries have that very image, `REPOSITORY@sha256:..`, where its runtime knows any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_at: Vec<String>,
    /// The containerd that has it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_store: Option<ImageStore>,
    /// The OCI image config to start from (command, environment, user, working directory), where known.
    pub config: Option<serde_json::Value>,
    /// How it sees owners.
    #[serde(default, skip_serializing_if = "Ids::is_the_hosts")]
    pub ids: Ids,
    /// Its lowers come from a Nydus image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nydus: bool,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage's name, as `pipeline::progress::Stage::key`.
    pub stage: String,
    /// Its time.
    pub ns: Nanos,
}

/// What the stages from `resolve` to `freeze` return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The frozen upperdir: durable, complete, never written again.
    #[serde(with = "paths")]
    pub old_upper_dir: PathBuf,
    /// The live upperdir, which the container goes on writing.
    #[serde(with = "paths")]
    pub new_upper_dir: PathBuf,
    /// The figures of the window.
    pub pause: Pause,
    /// What the tracker listened to; absent in records of engines that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<Backend>,
    /// What the image needs to know of the container.
    pub target: TargetFacts,
    /// Time by stage.
    pub timings: Vec<StageTime>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Once there were no others, and the records of these stay as they were.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_nydus(format: &ImageFormat) -> bool {
    *format == ImageFormat::Nydus
}

/// What the stages from `chunk` to `image` return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// The manifest's digest, `sha256:..`.
    pub manifest: String,
    /// What kind of image it is.
    #[serde(default, skip_serializing_if = "is_nydus")]
    pub format: ImageFormat,
    /// The RAFS bootstrap; an OCI image has none.
    #[serde(default, with = "paths::option", skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<PathBuf>,
    /// The data blobs, in the order of the bootstrap's device table; of an OCI image its layers, the lowest first, but for those that are in a registry only.
    #[serde(with = "paths::list")]
    pub blobs: Vec<PathBuf>,
    /// The repository of the target's registry, as `REGISTRY/REPOSITORY`, that has the layers of which the layout to deliver from has no bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_at: Option<String>,
    /// Entries of the merged tree; of an OCI image those of the container's layer.
    pub entries: u64,
    /// Chunks written; an OCI image has none.
    pub chunks: u64,
    /// Sockets that are not in the image because its format has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sockets_left_out: u64,
    /// Bytes of file content before deduplication and compression.
    pub content_bytes: u64,
    /// Bytes of those files that an earlier snapshot's image had, and that were not read; absent in records of engines that read all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub taken_over_bytes: u64,
    /// Bytes of the blobs written.
    pub stored_bytes: u64,
    /// Time by stage.
    pub timings: Vec<StageTime>,
}
