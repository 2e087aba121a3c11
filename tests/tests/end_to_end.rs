//! From a busy container to an image, by the command; the image is judged by those who will read it: the kernel's EROFS, `nydus-image`, `nydusd`, umoci.
//!
//! The reference is a real overlay mount of the frozen upperdir over the container's lowers. Needs root; for the tools see `rafs_judges.rs`.

use anyhow::{Context, Result, ensure};
use snapshot_engine::demo::Seed;
use snapshot_tests::judges::{self, Verify, judge, serve};
use snapshot_tests::made::{Made, path};
use snapshot_tests::running::Running;
use snapshot_tests::unpacked::{OciImage, umoci};
use snapshot_tests::{engine, host, root_or_skip};

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const BUSY: &str = "log=2:medium,database=2:light,churn:light,write-tick";

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
        made.kernel_must_agree(dir.path()).with_context(|| format!("{result:#}"))?;
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
        judges::check(&tool, &made.bootstrap)?;
    }
    if let Some(tool) = judge("nydusd")? {
        let served = serve(&tool, &made.bootstrap, &made.blobs, dir.path(), Verify::Nothing)?;
        made.must_equal(&served.at)?;
    }
    drop(made);
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// In the format that any runtime runs: the layers are unpacked by umoci, and by a model of our own; the second image refers to the lowers' layers that
/// the first has brought.
#[test]
fn an_oci_image_unpacks_to_the_frozen_tree_over_its_lowers() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "end-oci", BUSY, Seed { files: 120, bytes: 8 << 20 })?;
    let dir = tempfile::Builder::new().prefix("snapshot-end-").tempdir()?;
    let layout = dir.path().join("layout");
    let work = dir.path().join("work").to_string_lossy().into_owned();
    let mut lowers = Vec::new();
    for (turn, compressor) in ["gzip", "zstd", "gzip"].into_iter().enumerate() {
        let target = format!("oci:{}:t{turn}", layout.display());
        let args = ["commit", demo.name(), &target, "--wait", "--format", "oci", "--compressor", compressor];
        let more =
            ["--max-pause", "50ms", "--output", "json", "--work-dir", &work, "--message", "end to end"];
        let change =
            ["--change", "ENV FROM=snapshot", "--change", r#"CMD ["/x", "y"]"#, "--change", "LABEL a=b"];
        let result = engine::run([&args[..], &more, &change].concat())?.must_succeed()?.json()?;
        let report = &result["image"];
        ensure!(report["format"] == "oci" && report["bootstrap"].is_null(), "{result:#}");
        let made = Made::new(&demo, &path(&result["old_upper_dir"])?, report, dir.path())?;
        let image = OciImage::read(&layout, &format!("t{turn}"))?;
        let run = &image.config["config"];
        ensure!(run["Cmd"] == serde_json::json!(["/x", "y"]) && run["Labels"]["a"] == "b", "{run:#}");
        let env = run["Env"].as_array().context("no environment")?;
        ensure!(env.iter().any(|pair| pair == "FROM=snapshot"), "{run:#}");
        let last = image.config["history"].as_array().and_then(|h| h.last()).context("no history")?.clone();
        ensure!(last["comment"] == "end to end" && last["created"] == image.config["created"], "{last:#}");
        let at = dir.path().join(format!("model-{turn}"));
        image.unpack(&at)?;
        made.must_equal(&at).with_context(|| format!("{result:#}"))?;
        if compressor == "gzip" {
            let at = dir.path().join(format!("umoci-{turn}"));
            umoci(&layout, &format!("t{turn}"), &at)?;
            made.must_equal(&at)?;
            lowers.push(image.layers[..image.layers.len() - 1].to_vec());
        }
    }
    ensure!(!lowers[0].is_empty() && lowers[0] == lowers[1], "the lowers' layers are made once");
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

#[test]
fn options_of_the_other_format_are_refused_before_anything_is_done() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let target = format!("oci:{}:t", dir.path().join("layout").display());
    for (options, said) in [
        ("--format oci --compressor lz4_block", "--format nydus"),
        ("--format oci --prefetch /etc", "--prefetch"),
        ("--base-image oci:/x:y", "--format oci"),
        ("--format tar", "nydus, oci or auto"),
        ("--change RUN", "CMD, ENTRYPOINT"),
    ] {
        let mut args = vec!["commit", "nobody", &target];
        args.extend(options.split(' '));
        engine::run(args)?.must_fail(2, &[said])?;
    }
    Ok(())
}
