//! Layers as containers make them: by a real overlay mount, with everything overlayfs writes into one.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::Uid;
use rustix::mount::{MountFlags, mount};

use crate::everything::{Mount, everything, make, noise};

/// Options of a mount that writes redirects, and files whose data is elsewhere.
pub const REDIRECT: &str = ",redirect_dir=on,metacopy=on,index=off";
/// Those of one that reads them.
pub const FOLLOW: &str = ",redirect_dir=follow,metacopy=on";

/// Layers made by a real overlay mount, the lowest first, and one above them all.
#[derive(Debug)]
pub struct Layers {
    /// Where they are.
    pub dir: tempfile::TempDir,
    /// The top one first.
    pub lowers: Vec<PathBuf>,
    /// The upper.
    pub upper: PathBuf,
}

/// Mounts `lowers` (top first) under `upper`, or read-only without one.
///
/// # Errors
/// The kernel's.
pub fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, at: &Path, more: &str) -> Result<Mount> {
    let list = lowers.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    let mut options = format!("lowerdir={list}");
    if let Some((upper, work)) = upper {
        options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
    }
    options += more;
    let data = CString::new(options.clone())?;
    mount("overlay", at, "overlay", MountFlags::empty(), Some(data.as_c_str()))
        .with_context(|| format!("overlay mount with {options} (needs root)"))?;
    Ok(Mount(at.to_owned()))
}

/// Everything a file system can hold, and what the containers will change.
fn fill_base(root: &Path, acls: bool) -> Result<()> {
    everything(root, acls)?;
    let many = make(root, "many")?;
    for i in 0..3000 {
        fs::write(many.join(format!("entry-{i}-{}", "y".repeat(i % 90))), noise(i as u64, i % 700))?;
    }
    for name in
        ["gone-file", "gone-dir/f", "opaque/old", "moved/inside/f", "moved/other", "keep/a", "keep/b", "meta"]
    {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("has a parent")?)?;
        fs::write(&path, noise(name.len() as u64, 5000))?;
    }
    Ok(())
}

/// Renames as mv(1) does: without `redirect_dir`, overlayfs refuses to rename a lower directory and mv copies it.
fn rename(from: &Path, to: &Path) -> Result<()> {
    ensure!(Command::new("mv").args([from, to]).status()?.success(), "mv {}", from.display());
    Ok(())
}

/// What a container does to its base.
fn change_first(root: &Path) -> Result<()> {
    fs::remove_file(root.join("gone-file"))?;
    fs::remove_dir_all(root.join("gone-dir"))?;
    fs::remove_dir_all(root.join("opaque"))?;
    let opaque = make(root, "opaque")?;
    fs::write(opaque.join("new"), "new")?;
    rename(&root.join("moved"), &root.join("renamed"))?;
    fs::write(root.join("renamed/added"), "added")?;
    fs::remove_file(root.join("keep/a"))?;
    fs::set_permissions(root.join("meta"), fs::Permissions::from_mode(0o600))?;
    fs::write(root.join("linked/b"), "written through a link")?;
    Ok(())
}

fn change_second(root: &Path) -> Result<()> {
    let deep = make(root, "keep/deep")?;
    rename(&root.join("renamed"), &deep.join("again"))?;
    fs::remove_file(root.join("keep/deep/again/other"))?;
    fs::rename(root.join("meta"), root.join("meta-moved"))?;
    rustix::fs::chown(root.join("size-65537"), Some(Uid::from_raw(7)), None)?;
    fs::remove_file(root.join("many/entry-5-yyyyy"))?;
    // A file that mostly stays: its chunks are in the base's blob.
    let text = File::options().write(true).open(root.join("text"))?;
    text.write_all_at(b"changed", 2_000_000)?;
    fs::write(root.join("upper-new"), noise(99, 2_500_000))?;
    fs::hard_link(root.join("upper-new"), root.join("keep/upper-link"))?;
    fs::remove_file(root.join("size-1"))?;
    make(root, "size-1")?;
    let old = root.join("empty-dir");
    fs::remove_dir(&old)?;
    fs::write(&old, "a file now")?;
    Ok(())
}

/// `base`, and what two containers in a row made of it; `acls`: with access control lists.
///
/// # Errors
/// The kernel's.
pub fn layers(options: &str, acls: bool) -> Result<Layers> {
    let dir = tempfile::Builder::new().prefix("layers-").tempdir()?;
    let at = make(dir.path(), "merged")?;
    let base = make(dir.path(), "base")?;
    fill_base(&base, acls)?;
    let first = make(dir.path(), "first")?;
    let lowers = vec![base.clone()];
    {
        let _overlay = overlay(&lowers, Some((&first, &make(dir.path(), "work1")?)), &at, options)?;
        change_first(&at)?;
    }
    let upper = make(dir.path(), "upper")?;
    let lowers = vec![first, base];
    {
        let _overlay = overlay(&lowers, Some((&upper, &make(dir.path(), "work2")?)), &at, options)?;
        change_second(&at)?;
    }
    if options == REDIRECT {
        // The fixture must hold what it is meant to test.
        let value = &mut [0u8; 256];
        rustix::fs::lgetxattr(upper.join("keep/deep/again"), "trusted.overlay.redirect", &mut value[..])?;
        rustix::fs::lgetxattr(upper.join("size-65537"), "trusted.overlay.metacopy", &mut value[..])?;
    }
    Ok(Layers { dir, lowers, upper })
}

impl Layers {
    /// The tree an overlay mount of all layers shows, with nothing writable; `options` as [`FOLLOW`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn merged(&self, options: &str) -> Result<Mount> {
        let mut all = vec![self.upper.clone()];
        all.extend(self.lowers.iter().cloned());
        overlay(&all, None, &make(self.dir.path(), "reference")?, options)
    }
}
