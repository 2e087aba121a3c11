//! From a busy container to an image, by the command; the image is judged by those who will read it: the kernel's EROFS, `nydus-image`, `nydusd`.
//!
//! The reference is a real overlay mount of the frozen upperdir over the container's lowers. Needs root; for the tools see `rafs_judges.rs`.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use snapshot_engine::demo::Seed;
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::mount::mount_files;
use snapshot_tests::judges::{Verify, judge, serve};
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
        let served = serve(&tool, &made.bootstrap, &made.blobs, dir.path(), Verify::Nothing)?;
        made.must_equal(&served.at)?;
    }
    drop(made);
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}
