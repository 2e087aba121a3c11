//! A container from a snapshot, by `run`: what it had on disk is there, what it says and how it ends is passed on, and nothing of it stays. Needs root, and
//! runc or crun.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snapshot_engine::demo::Seed;
use snapshot_tests::engine::{self, Ended};
use snapshot_tests::running::Running;
use snapshot_tests::{host, root_or_skip};

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");

#[test]
fn what_a_container_had_is_there_when_its_snapshot_is_run() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "restore", "log=1:light,write-tick", Seed { files: 5, bytes: 1 << 20 })?;
    // It has no program of its own that ends: a static shell is put there as the container's own work would.
    let root = format!("/proc/{}/root", demo.init()?);
    let upper = Path::new(&root);
    fs::create_dir_all(upper.join("opt"))?;
    fs::copy("/bin/busybox", upper.join("opt/busybox"))?;
    fs::write(upper.join("opt/letter"), "dear snapshot\n")?;
    let dir = tempfile::Builder::new().prefix("snapshot-restore-").tempdir()?;
    let work = dir.path().join("work").display().to_string();
    fs::create_dir(&work)?;
    // Read by the kernel, by a process, and unpacked.
    for (format, compressor) in [("nydus", "none"), ("nydus", "lz4_block"), ("oci", "gzip"), ("oci", "zstd")]
    {
        let target = format!("oci:{}:{compressor}", dir.path().join("images").display());
        let made = engine::run([
            "commit",
            demo.name(),
            &target,
            "--wait",
            "--format",
            format,
            "--compressor",
            compressor,
            "--max-pause",
            "50ms",
            "--output",
            "json",
            "--work-dir",
            &work,
        ])?;
        let made = made.must_succeed()?.json()?;
        let id = made["snapshot_id"].as_str().context("no id")?;
        let run = |image: &str, script: &str, more: &[&str]| -> Result<Ended> {
            let words = ["run", image, "--work-dir", &work];
            let command = ["--", "/opt/busybox", "sh", "-c", script];
            engine::run(words.iter().chain(more).chain(&command))
        };
        let said = run(&target, "cat /opt/letter; echo $$; echo more > /opt/letter; exit 7", &[])?;
        ensure!(said.code == Some(7) && said.stdout == "dear snapshot\n1\n", "{said:#?}");
        // By the snapshot's id; what the first one wrote is gone with it.
        let kept = dir.path().join(format!("kept-{compressor}"));
        fs::create_dir(&kept)?;
        let keep = ["--rw-dir", &kept.display().to_string()];
        let said = run(id, "cat /opt/letter; echo more > /opt/letter", &keep)?;
        ensure!(said.code == Some(0) && said.stdout == "dear snapshot\n", "{said:#?}");
        ensure!(fs::read_to_string(kept.join("upper/opt/letter"))? == "more\n");
        ensure!(
            fs::read_dir(&work)?
                .flatten()
                .all(|e| !e.file_name().to_string_lossy().starts_with("snapshot-run"))
        );
    }
    let none = engine::run(["run", "/no/such:image", "--work-dir", &work])?;
    none.must_fail(2, &["/no/such"])?;
    demo.goes_on()?;
    host::must_be_clean(&programs, Path::new(dir.path()))
}
