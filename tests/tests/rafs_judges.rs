//! Images judged by those who will read them: the kernel's EROFS, `nydus-image check`, `nydusd`.
//!
//! Needs root (overlay, EROFS and FUSE mounts). The tools are looked for in `$NYDUS_BIN`, then in `$PATH`; where one is missing, its
//! test says so and passes, unless `CI` or `SNAPSHOT_REQUIRE_JUDGES` is set: then it fails.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::Uid;
use rustix::mount::{MountFlags, mount};
use snapshot_engine::image::build::{Image, Request, build};
use snapshot_engine::image::mount::mount as mount_image;
use snapshot_engine::image::{ImageError, Quiet};
use snapshot_engine::model::chunk::{ChunkSize, Compressor, Digester, Format, FsVersion};
use snapshot_tests::building::{blobs, must_be_equal, request};
use snapshot_tests::everything::{Mount, everything, make, noise};
use snapshot_tests::judges::{Verify, check, judge, serve};

fn compressors() -> [Compressor; 4] {
    [Compressor::None, Compressor::Lz4Block, Compressor::Gzip, Compressor::zstd()]
}

/// Layers made by a real overlay mount, the lowest first, and one above them all.
struct Layers {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    upper: PathBuf,
}

/// Mounts `lowers` (top first) under `upper`, or read-only without one.
fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, at: &Path, more: &str) -> Result<Mount> {
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

/// `base`, and what two containers in a row made of it.
fn layers(options: &str, acls: bool) -> Result<Layers> {
    let dir = tempfile::Builder::new().prefix("rafs-judges-").tempdir()?;
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
    fn build(&self, format: Format, tag: &str) -> Result<Image> {
        let lowers = self.lowers.clone();
        let request = Request { lowers, ..request(self.dir.path(), tag, format, &self.upper) };
        Ok(build(&request, &Quiet)?)
    }

    /// The tree an overlay mount of all layers shows, with nothing writable.
    fn merged(&self, options: &str) -> Result<Mount> {
        let mut all = vec![self.upper.clone()];
        all.extend(self.lowers.iter().cloned());
        overlay(&all, None, &make(self.dir.path(), "reference")?, options)
    }
}

/// The least there is in the merged tree.
const ENTRIES: u64 = 3100;

fn format(compressor: Compressor, digester: Digester, chunk: u64) -> Result<Format> {
    Ok(Format { compressor, digester, chunk_size: ChunkSize::new(chunk)?, ..Format::default() })
}

const REDIRECT: &str = ",redirect_dir=on,metacopy=on,index=off";

#[test]
fn the_kernel_mounts_what_the_overlay_shows() -> Result<()> {
    for (options, read_options) in [("", ""), (REDIRECT, ",redirect_dir=follow,metacopy=on")] {
        let layers = layers(options, true)?;
        let reference = layers.merged(read_options)?;
        for chunk in [4096, 64 << 10, 1 << 20, 16 << 20] {
            let image =
                layers.build(format(Compressor::None, Digester::Blake3, chunk)?, &format!("c{chunk}"))?;
            let at = make(layers.dir.path(), "erofs")?;
            let mounted = mount_image(&image, &at)?;
            must_be_equal(&reference.0, mounted.path(), FsVersion::V6, ENTRIES)
                .with_context(|| format!("{options} chunk {chunk}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_second_build_uses_the_cache_and_gives_the_same_image() -> Result<()> {
    let layers = layers(REDIRECT, true)?;
    let first = layers.build(Format::default(), "one")?;
    let second = layers.build(Format::default(), "two")?;
    ensure!((first.cached_lowers, second.cached_lowers) == (0, 2));
    ensure!(fs::read(&first.bootstrap)? == fs::read(&second.bootstrap)?, "equal layers, other bootstraps");
    ensure!(first.deduplicated > 2_900_000, "the changed text's other chunks are the base's");
    let again = layers.build(Format::default(), "two");
    let error = again.err().context("the tag exists")?;
    ensure!(matches!(error.downcast_ref(), Some(ImageError::TargetExists { .. })), "{error:#}");
    let refused = mount_image(&first, layers.dir.path());
    ensure!(matches!(refused, Err(ImageError::Compressed)));
    Ok(())
}

#[test]
fn nydus_image_accepts_every_format() -> Result<()> {
    let Some(nydus_image) = judge("nydus-image")? else { return Ok(()) };
    // No ACLs: nydus-image 2.2.0 refuses `system.posix_acl_access` in its own images too (rafs/src/metadata/layout/mod.rs,
    // `RafsXAttrs::add`: the key must be longer than its prefix). nydusd and the kernel read them.
    let layers = layers(REDIRECT, false)?;
    for compressor in compressors() {
        for digester in [Digester::Blake3, Digester::Sha256] {
            for chunk in [1 << 20, 4096] {
                let image = layers.build(
                    format(compressor, digester, chunk)?,
                    &format!("{compressor}-{digester}-{chunk}"),
                )?;
                check(&nydus_image, &image.bootstrap)
                    .with_context(|| format!("{compressor} {digester} {chunk}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn nydusd_serves_what_the_overlay_shows() -> Result<()> {
    let Some(nydusd) = judge("nydusd")? else { return Ok(()) };
    let layers = layers(REDIRECT, true)?;
    let reference = layers.merged(",redirect_dir=follow,metacopy=on")?;
    for version in [FsVersion::V5, FsVersion::V6] {
        for compressor in compressors() {
            let format = Format { version, ..format(compressor, Digester::Blake3, 1 << 20)? };
            let compressor = format!("{compressor}-{version:?}");
            let image = layers.build(format, &format!("served-{compressor}"))?;
            let dir = make(layers.dir.path(), &format!("serve-{compressor}"))?;
            let served = serve(&nydusd, &image.bootstrap, &blobs(&image), &dir, Verify::Nothing)?;
            must_be_equal(&reference.0, &served.at, version, ENTRIES).context(compressor)?;
        }
    }
    Ok(())
}
