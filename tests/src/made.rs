//! What a command's result says of an image, beside a real overlay mount of what it was made of.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::mount::mount_files;

use crate::everything::{Mount, make};
use crate::running::Running;

/// What an image is made of and where it is, as the result says, and what it must look like.
#[derive(Debug)]
pub struct Made {
    /// The bootstrap; of an OCI image there is none.
    pub bootstrap: PathBuf,
    /// The blobs.
    pub blobs: Vec<PathBuf>,
    reference: Mount,
}

/// A path in a result.
///
/// # Errors
/// When it is none.
pub fn path(value: &Value) -> Result<PathBuf> {
    Ok(value.as_str().with_context(|| format!("{value} is no path"))?.into())
}

/// The lower directories of a demo, the top one first.
pub fn lowers(demo: &Running) -> impl Iterator<Item = PathBuf> {
    let state = &demo.demo.state;
    (1..=state.lowers).rev().map(|n| state.layers.join(format!("lower{n}")))
}

/// `frozen` over the demo's lowers, mounted in `dir`.
fn reference(demo: &Running, frozen: &Path, dir: &Path) -> Result<Mount> {
    let all: Vec<String> = std::iter::once(frozen.to_owned())
        .chain(lowers(demo))
        .map(|path| path.display().to_string())
        .collect();
    let options = CString::new(format!("lowerdir={}", all.join(":")))?;
    let at = make(dir, "reference")?;
    mount("overlay", &at, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))?;
    Ok(Mount(at))
}

impl Made {
    /// `frozen` over the demo's lowers, mounted in `dir`, and the image of a report.
    ///
    /// # Errors
    /// When the report has no image, or nothing can be mounted.
    pub fn new(demo: &Running, frozen: &Path, image: &Value, dir: &Path) -> Result<Made> {
        let reference = reference(demo, frozen, dir)?;
        let blobs = image["blobs"].as_array().context("no blobs")?.iter().map(path).collect::<Result<_>>()?;
        let bootstrap = if image["format"] == "oci" { PathBuf::new() } else { path(&image["bootstrap"])? };
        Ok(Made { bootstrap, blobs, reference })
    }

    /// The image, mounted elsewhere, is what it must be.
    ///
    /// # Errors
    /// With what differs.
    pub fn must_equal(&self, other: &Path) -> Result<()> {
        let result = compare(&self.reference.0, other, 20)?;
        let list: Vec<String> = result.differences.iter().map(ToString::to_string).collect();
        ensure!(list.is_empty(), "{} entries compared, differences:\n{}", result.entries, list.join("\n"));
        ensure!(result.entries > 200, "only {} entries compared", result.entries);
        Ok(())
    }

    /// So says the kernel's EROFS.
    ///
    /// # Errors
    /// When it does not mount it, or with what differs.
    pub fn kernel_must_agree(&self, dir: &Path) -> Result<()> {
        let blobs: Vec<&Path> = self.blobs.iter().map(PathBuf::as_path).collect();
        let image = mount_files(&self.bootstrap, &blobs, &make(dir, "erofs")?)?;
        self.must_equal(image.path())
    }
}
