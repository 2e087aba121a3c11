//! Images to read back: a tree of everything, and images of it by `nydus-image` and by the engine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use snapshot_engine::image::Quiet;
use snapshot_engine::image::build::{Image, build};
use snapshot_engine::model::chunk::Format;

use crate::building::request;
use crate::everything::{make, noise, plain, privileged};

/// A tree that needs no privilege to make: [`plain`], a file of several chunks, and a directory of many entries.
///
/// # Errors
/// When it cannot be made.
pub fn plain_tree(root: &Path) -> Result<()> {
    plain(root)?;
    fs::write(root.join("size-9437184"), noise(9 << 20, 9 << 20))?;
    let many = make(root, "many")?;
    for i in 0..1000 {
        fs::write(many.join(format!("entry-{i}-{}", "y".repeat(i % 90))), noise(i as u64, i % 700))?;
    }
    fs::hard_link(root.join("size-65536"), many.join("linked"))?;
    fs::hard_link(root.join("size-65536"), root.join("c-linked"))?;
    Ok(())
}

/// The same, with what needs root.
///
/// # Errors
/// When it cannot be made.
pub fn whole_tree(root: &Path) -> Result<()> {
    plain_tree(root)?;
    privileged(root)?;
    fs::set_permissions(root.join("many"), fs::Permissions::from_mode(0o500))?;
    Ok(())
}

/// Runs `nydus-image create` on a tree.
///
/// # Errors
/// With what it had to say.
pub fn nydus_create(tool: &Path, source: &Path, args: &[&OsStr]) -> Result<()> {
    let out = Command::new(tool)
        .args(["create", "-t", "dir-rafs", "--whiteout-spec", "none"])
        .args(args)
        .arg(source)
        .stdin(Stdio::null())
        .output()?;
    let said = || format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "{args:?}: {}", said());
    Ok(())
}

/// An image of one tree in an OCI layout `dir/layout`, by the engine.
///
/// # Errors
/// As [`build`].
pub fn engine_image(upper: &Path, dir: &Path, tag: &str, format: Format) -> Result<(Image, PathBuf)> {
    let image = build(&request(dir, tag, format, upper), &Quiet)?;
    Ok((image, dir.join("layout")))
}
