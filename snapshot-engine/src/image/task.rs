//! What is made into an image and where, whichever form the image has.

use std::path::PathBuf;
use std::time::SystemTime;

use super::config::ImageConfig;
use super::oci::OciTarget;
use crate::model::globs::PathGlobs;
use crate::model::ids::Ids;
use crate::model::overlay::Namespaces;

/// What a Nydus image and one of plain layers are made of alike.
#[derive(Debug, Clone)]
pub struct Task {
    /// Lower directories, the top one first, as in overlayfs' `lowerdir=`.
    pub lowers: Vec<PathBuf>,
    /// The frozen upperdir.
    pub upper: PathBuf,
    /// Where converted lowers are kept.
    pub cache_dir: PathBuf,
    /// Where what is made of the upper goes: on the target's file system, blobs and layers are linked, not copied.
    pub work_dir: PathBuf,
    /// Where the image goes.
    pub target: OciTarget,
    /// Which attributes are overlayfs' own: those of the container's mount.
    pub namespaces: Namespaces,
    /// How the container sees owners.
    pub ids: Ids,
    /// What is left out of the upper.
    pub without: PathGlobs,
    /// Worker threads; 0 for one per CPU.
    pub workers: usize,
    /// What the image's config says.
    pub config: ImageConfig,
    /// When the snapshot was cut.
    pub created: SystemTime,
    /// Whether all must survive a crash once this returns; `false` is for measurements and tests.
    pub sync: bool,
    /// Whether an earlier, interrupted call with the same request may have finished the image: finding that very image under the
    /// tag is then success, and blobs of the target that are there already are read back.
    pub resumed: bool,
}
