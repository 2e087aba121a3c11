//! From a busy container to an image, by the command; the image is judged by those who will read it: the kernel's EROFS, `nydus-image`, `nydusd`.
//!
//! The reference is a real overlay mount of the frozen upperdir over the container's lowers. Needs root; for the tools see `rafs_judges.rs`.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use snapshot_engine::demo::Seed;
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::mount::mount_files;
use snapshot_tests::running::Running;
use snapshot_tests::{engine, host, root_or_skip};

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const BUSY: &str = "log=2:medium,database=2:light,churn:light,write-tick";

/// A mount that goes away with the test.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// What an image is made of and where it is, as the result says.
struct Made {
    bootstrap: PathBuf,
    blobs: Vec<PathBuf>,
    reference: Mount,
}

fn path(value: &Value) -> Result<PathBuf> {
    Ok(value.as_str().with_context(|| format!("{value} is no path"))?.into())
}

fn make(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

impl Made {
    /// `frozen` over the demo's lowers, mounted in `dir`, and the image of a report.
    fn new(demo: &Running, frozen: &Path, image: &Value, dir: &Path) -> Result<Made> {
        let state = &demo.demo.state;
        let lowers = (1..=state.lowers).rev().map(|n| state.layers.join(format!("lower{n}")));
        let all: Vec<String> =
            std::iter::once(frozen.to_owned()).chain(lowers).map(|p| p.display().to_string()).collect();
        let options = CString::new(format!("lowerdir={}", all.join(":")))?;
        let at = make(dir, "reference")?;
        mount("overlay", &at, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))?;
        let reference = Mount(at);
        let blobs = image["blobs"].as_array().context("no blobs")?.iter().map(path).collect::<Result<_>>()?;
        Ok(Made { bootstrap: path(&image["bootstrap"])?, blobs, reference })
    }

    fn must_equal(&self, other: &Path) -> Result<()> {
        let result = compare(&self.reference.0, other, 20)?;
        let list: Vec<String> = result.differences.iter().map(ToString::to_string).collect();
        ensure!(list.is_empty(), "{} entries compared, differences:\n{}", result.entries, list.join("\n"));
        ensure!(result.entries > 200, "only {} entries compared", result.entries);
        Ok(())
    }
}

#[test]
fn what_the_kernel_mounts_is_the_frozen_tree_over_its_lowers() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "end-kernel", BUSY, Seed { files: 120, bytes: 8 << 20 })?;
    let dir = tempfile::Builder::new().prefix("snapshot-end-").tempdir()?;
    let work = dir.path().join("work");
    let work = work.to_string_lossy();
    for (turn, gate) in ["auto", "freezer", "auto"].into_iter().enumerate() {
        let target = format!("oci:{}:t{turn}", dir.path().join("layout").display());
        let result = engine::run([
            "commit",
            demo.name(),
            &target,
            "--wait",
            "--compressor",
            "none",
            "--gate",
            gate,
            "--max-pause",
            "50ms",
            "--output",
            "json",
            "--work-dir",
            &work,
        ])?
        .must_succeed()?
        .json()?;
        ensure!(path(&result["new_upper_dir"])? == demo.demo.upper(), "{result:#}");
        let frozen = path(&result["old_upper_dir"])?;
        let made = Made::new(&demo, &frozen, &result["image"], dir.path())?;
        let blobs: Vec<&Path> = made.blobs.iter().map(PathBuf::as_path).collect();
        let image = mount_files(&made.bootstrap, &blobs, &make(dir.path(), "erofs")?)?;
        made.must_equal(image.path()).with_context(|| format!("{result:#}"))?;
    }
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// Without `--wait`: the command returns after the cut, `status` and `list` follow the background to the end, and the default compressor's image is
/// what the Nydus tools accept and serve.
#[test]
fn what_the_background_completes_is_accepted_and_served_by_nydus() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "end-nydus", BUSY, Seed { files: 120, bytes: 8 << 20 })?;
    let dir = tempfile::Builder::new().prefix("snapshot-end-").tempdir()?;
    let work = dir.path().join("work");
    let work_text = work.to_string_lossy();
    let target = format!("oci:{}:served", dir.path().join("layout").display());
    let ended =
        engine::run(["commit", demo.name(), &target, "--max-pause", "50ms", "--work-dir", &work_text])?
            .must_succeed()?;
    ensure!(!ended.stdout.contains("completed"), "it does not know yet: {ended:#?}");
    let id = ended.stdout.split("Snapshot ID: ").nth(1).and_then(|s| s.split_whitespace().next());
    let id = id.with_context(|| format!("{ended:#?}"))?;
    let status = engine::until_completed(&work, id)?;
    ensure!(status["progress"] == 1.0, "{status:#}");
    let listed = engine::list(&work)?;
    ensure!(listed.len() == 1 && listed[0]["state"] == "completed", "{listed:#?}");
    // Done already: again is no harm.
    engine::run(["resume", id, "--wait", "--work-dir", &work_text])?.must_succeed()?;

    let record = &status["record"];
    let made = Made::new(&demo, &path(&record["cut"]["old_upper_dir"])?, &record["image"], dir.path())?;
    if let Some(tool) = judge("nydus-image")? {
        let out =
            Command::new(tool).args(["check", "-B"]).arg(&made.bootstrap).stdin(Stdio::null()).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    if let Some(tool) = judge("nydusd")? {
        let served = serve(&tool, &made, dir.path())?;
        made.must_equal(&served.mount.0)?;
    }
    drop(made);
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// A tool, or `None` where it may be missing.
fn judge(name: &str) -> Result<Option<PathBuf>> {
    let dirs = std::env::var_os("NYDUS_BIN").into_iter().map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = dirs.chain(std::env::split_paths(&path)).map(|d| d.join(name)).find(|p| p.is_file());
    if found.is_none() {
        let required = ["CI", "SNAPSHOT_REQUIRE_JUDGES"].iter().any(|v| std::env::var_os(v).is_some());
        ensure!(
            !required,
            "`{name}` is missing: cargo install nydus-rs --version 2.2.0 --locked, and set NYDUS_BIN"
        );
        eprintln!("NOT JUDGED: `{name}` is missing");
    }
    Ok(found)
}

/// A running daemon and its mount.
struct Served {
    // Unmounted before the daemon is killed.
    mount: Mount,
    daemon: Daemon,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(nydusd: &Path, made: &Made, dir: &Path) -> Result<Served> {
    // A backend has one directory; the blobs of lowers and of the upper may lie in several.
    let blobs = make(dir, "nydusd-blobs")?;
    for blob in &made.blobs {
        std::os::unix::fs::symlink(blob, blobs.join(blob.file_name().context("a blob has a name")?))?;
    }
    let config = serde_json::json!({
        "device": {
            "backend": {"type": "localfs", "config": {"dir": blobs}},
            "cache": {"type": "blobcache", "config": {"work_dir": make(dir, "nydusd-cache")?}},
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "fs_prefetch": {"enable": false},
    });
    let config_path = dir.join("nydusd.json");
    fs::write(&config_path, config.to_string())?;
    let at = make(dir, "fuse")?;
    let log = File::create(dir.join("nydusd.log"))?;
    let child = Command::new(nydusd)
        .args(["fuse", "--rlimit-nofile", "0", "--config"])
        .arg(&config_path)
        .arg("--mountpoint")
        .arg(&at)
        .arg("--bootstrap")
        .arg(&made.bootstrap)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut served = Served { mount: Mount(at), daemon: Daemon(child) };
    let began = Instant::now();
    let device = |path: &Path| rustix::fs::stat(path).map(|s| s.st_dev).ok();
    while device(&served.mount.0) == device(dir) {
        if began.elapsed() > Duration::from_secs(20) || served.daemon.0.try_wait()?.is_some() {
            bail!("nydusd does not serve: {}", fs::read_to_string(dir.join("nydusd.log"))?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(served)
}
