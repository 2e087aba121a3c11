//! What is added is in the image, where the container has it, in both formats: judged by the kernel's EROFS, a model of what a runtime unpacks, and umoci.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use serde_json::Value;
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::mount::{Mounted, mount_files};
use snapshot_tests::bench;
use snapshot_tests::engine;
use snapshot_tests::everything::{everything, noise};
use snapshot_tests::made::path;
use snapshot_tests::unpacked::{OciImage, umoci};

use crate::{Scene, VOLUME};

/// An image on a directory, as long as this lives.
struct Shown {
    at: PathBuf,
    _mounted: Option<Mounted>,
}

impl Scene {
    fn commit(&self, tag: &str, more: &[&str]) -> Result<Value> {
        let target = format!("oci:{}:{tag}", self.host("layout").display());
        let work = self.host("work").display().to_string();
        let usual =
            ["commit", self.demo.0.name(), &target, "--wait", "--work-dir", &work, "--output", "json"];
        let result = engine::run([&usual[..], &["--max-pause", "50ms"], more].concat())?;
        result.must_succeed()?.json()
    }

    /// A nydus image, mounted by the kernel.
    fn nydus(&self, tag: &str, more: &[&str]) -> Result<(Value, Shown)> {
        let result = self.commit(tag, &[&["--compressor", "none"], more].concat())?;
        let at = self.host(&format!("erofs-{tag}"));
        fs::create_dir(&at)?;
        let blobs = result["image"]["blobs"].as_array().context("no blobs")?;
        let blobs: Vec<PathBuf> = blobs.iter().map(path).collect::<Result<_>>()?;
        let blobs: Vec<&Path> = blobs.iter().map(PathBuf::as_path).collect();
        let mounted = mount_files(&path(&result["image"]["bootstrap"])?, &blobs, &at)?;
        Ok((result, Shown { at, _mounted: Some(mounted) }))
    }

    /// An image of tar layers, unpacked by the model and by umoci.
    fn oci(&self, tag: &str, more: &[&str]) -> Result<Vec<Shown>> {
        self.commit(tag, &[&["--format", "oci"], more].concat())?;
        let (model, other) = (self.host(&format!("model-{tag}")), self.host(&format!("umoci-{tag}")));
        OciImage::read(&self.host("layout"), tag)?.unpack(&model)?;
        umoci(&self.host("layout"), tag, &other)?;
        Ok([model, other].map(|at| Shown { at, _mounted: None }).into())
    }
}

impl Shown {
    /// A directory of the image is what that tree is.
    fn must_equal(&self, tree: &Path, at: &str, entries: u64) -> Result<()> {
        let result = compare(tree, &self.at.join(at.trim_start_matches('/')), 20)?;
        // tar has no sockets, and readers in Go take an attribute without a value for none.
        let excused = |d: &String| d == "socket: only on the left" || d.starts_with("size-1: ");
        let list: Vec<String> =
            result.differences.iter().map(ToString::to_string).filter(|d| !excused(d)).collect();
        ensure!(list.is_empty(), "{} {at}: differences:\n{}", self.at.display(), list.join("\n"));
        ensure!(result.entries >= entries, "{at}: only {} entries", result.entries);
        Ok(())
    }

    fn stat(&self, at: &str) -> Result<fs::Metadata> {
        let path = self.at.join(at.trim_start_matches('/'));
        fs::symlink_metadata(&path).with_context(|| format!("{}", path.display()))
    }

    fn must_lack(&self, at: &str) -> Result<()> {
        let there = self.at.join(at.trim_start_matches('/')).symlink_metadata().is_ok();
        ensure!(!there, "{} has {at}", self.at.display());
        Ok(())
    }
}

#[test]
fn a_volume_is_in_images_of_both_formats() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let scene = Scene::new("ext4")?;
    everything(&scene.host("volume"), true)?;
    // Below the mount of another volume.
    fs::create_dir(scene.host("volume/inner"))?;
    fs::write(scene.host("volume/inner/covered"), "covered")?;
    fs::create_dir(scene.host("volume/skip"))?;
    fs::write(scene.host("volume/skip/file"), "x")?;
    scene.mount("inner", "/srv/pool/inner")?;
    fs::write(scene.host("inner/shown"), "shown")?;
    // Where the upperdir has not even the directory above.
    scene.mount("logs", "/var/log")?;
    fs::write(scene.host("logs/log"), "a line\n")?;
    ensure!(!scene.demo.upper().join("var").exists());
    let above = fs::symlink_metadata(scene.shown("/var")?)?;

    let both = ["--with-path", VOLUME, "--with-path", "/var/log/", "--without-path", "/srv/pool/skip"];
    let (result, kernel) = scene.nydus("one", &both)?;
    ensure!(result["with_paths"] == serde_json::json!([VOLUME, "/var/log"]), "{result:#}");
    let mut images = scene.oci("two", &both)?;
    images.push(kernel);
    fs::remove_dir_all(scene.host("volume/skip"))?;
    for image in &images {
        image.must_lack("/srv/pool/skip")?;
        // What the lowers have below the mount point does not shine through, and what is mounted below the volume is not in it.
        image.must_equal(&scene.host("volume"), VOLUME, 90)?;
        image.must_equal(&scene.host("logs"), "/var/log", 2)?;
        image.must_equal(&scene.shown("/etc")?, "/etc", 5)?;
        let found = image.stat("/var")?;
        let facts = |s: &fs::Metadata| (s.mode(), s.uid(), s.gid(), s.mtime(), s.mtime_nsec());
        ensure!(facts(&found) == facts(&above), "{found:?} instead of {above:?}");
    }

    // One volume in the other, each in its place; the order does not matter.
    let nested = ["--with-path", "/srv/pool/inner", "--with-path", VOLUME];
    let mut images = scene.oci("three", &nested)?;
    images.push(scene.nydus("four", &nested)?.1);
    for image in &images {
        image.must_equal(&scene.host("inner"), "/srv/pool/inner", 2)?;
        image.must_lack("/srv/pool/inner/covered")?;
    }
    Ok(())
}

/// The volume holds layers itself: none of their marks gets into the image, and none is obeyed.
#[test]
fn marks_of_an_overlay_in_a_volume_are_no_marks_of_the_image() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let scene = Scene::new("ext4")?;
    let volume = scene.host("volume");
    fs::create_dir(volume.join("moved"))?;
    fs::write(volume.join("moved/file"), "x")?;
    fs::write(volume.join("data"), "data")?;
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(volume.join(name), key, value, XattrFlags::empty())
    };
    // A way out of the volume, into what the image has elsewhere.
    set("moved", "trusted.overlay.redirect", b"/etc")?;
    set("moved", "user.kept", b"kept")?;
    set("data", "trusted.overlay.metacopy", b"")?;
    rustix::fs::mknodat(CWD, volume.join("deleted"), FileType::CharacterDevice, Mode::RUSR, 0)?;
    // Two names, one of them in the container's layer: by the host, as the container cannot.
    fs::hard_link(volume.join("data"), scene.demo.upper().join("data-too"))?;

    let with = ["--with-path", VOLUME];
    let mut images = scene.oci("one", &with)?;
    images.push(scene.nydus("two", &with)?.1);
    for image in &images {
        image.must_lack("/srv/pool/deleted")?;
        image.must_lack("/srv/pool/0")?;
        image.must_lack("/srv/pool/moved/passwd")?;
        let read = |at: &str| fs::read(image.at.join(at));
        ensure!(read("srv/pool/moved/file")? == b"x" && read("srv/pool/data")? == b"data");
        let (one, other) = (image.stat("/srv/pool/data")?, image.stat("/data-too")?);
        ensure!(one.ino() == other.ino() && one.nlink() == 2, "the links are two files");
        let mut names = [0u8; 4096];
        for name in ["moved", "data"] {
            let len = rustix::fs::llistxattr(image.at.join("srv/pool").join(name), &mut names[..])?;
            let names = String::from_utf8_lossy(&names[..len]);
            ensure!(!names.contains("overlay"), "{name}: {names}");
            ensure!(name != "moved" || names.contains("user.kept"), "{name}: {names}");
        }
    }
    Ok(())
}

/// The second snapshot takes over what has not changed in the volume, and nothing that has.
#[test]
fn a_second_snapshot_reads_what_has_changed_in_the_volume() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let scene = Scene::new("ext4")?;
    let (same, other) = (scene.host("volume/same"), scene.host("volume/other"));
    fs::write(&same, noise(1, 3 << 20))?;
    fs::write(&other, noise(2, 2 << 20))?;
    // Left alone for longer than a time stamp may be wrong.
    std::thread::sleep(Duration::from_secs(3));
    let with = ["--with-path", VOLUME];
    drop(scene.nydus("one", &with)?);
    // Same size, and the time of before.
    let before = fs::metadata(&other)?.modified()?;
    fs::write(&other, noise(3, 2 << 20))?;
    File::options().write(true).open(&other)?.set_times(FileTimes::new().set_modified(before))?;
    let (result, image) = scene.nydus("two", &with)?;
    let taken_over = result["image"]["taken_over_bytes"].as_u64().unwrap_or(0);
    // Beside `same` the demo's sparse file of 8 MiB, and not `other`.
    ensure!((11 << 20..13 << 20).contains(&taken_over), "{taken_over} bytes taken over");
    image.must_equal(&scene.host("volume"), VOLUME, 3)?;
    ensure!(fs::read(image.at.join("srv/pool/other"))? == noise(3, 2 << 20));
    Ok(())
}
