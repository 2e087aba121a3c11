//! Images built on others, by the command, of a container that runs: on that of an earlier snapshot, on that of the container's lowers, and with the
//! chunks of another. Judged by the kernel's EROFS, `nydus-image` and `nydusd`.
//!
//! The reference is a real overlay mount of the frozen upperdir over the container's lowers. Needs root; for the tools see `rafs_judges.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snapshot_engine::demo::Seed;
use snapshot_engine::image::Quiet;
use snapshot_engine::image::build::build;
use snapshot_engine::model::format::{Compressor, Format};
use snapshot_tests::building::{nydus, task};
use snapshot_tests::everything::make;
use snapshot_tests::judges::{self, Verify, judge, serve};
use snapshot_tests::made::{Made, lowers, path};
use snapshot_tests::running::Running;
use snapshot_tests::{engine, host, root_or_skip};

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const BUSY: &str = "log=1:light,write-tick";
const SEED: Seed = Seed { files: 120, bytes: 8 << 20 };

/// One snapshot by the command, waited for; its result.
fn commit(demo: &Running, dir: &Path, tag: &str, more: &[&str]) -> Result<Value> {
    let target = format!("oci:{}:{tag}", dir.join("layout").display());
    let work = dir.join("work");
    let work = work.to_string_lossy();
    let mut args = vec!["commit", demo.name(), &target, "--wait", "--max-pause", "50ms", "--output", "json"];
    // The last --work-dir counts.
    if !more.contains(&"--work-dir") {
        args.extend(["--work-dir", &work]);
    }
    engine::run(args.into_iter().chain(more.iter().copied()))?.must_succeed()?.json()
}

fn number(result: &Value, name: &str) -> Result<u64> {
    result["image"][name].as_u64().with_context(|| format!("no {name}: {result:#}"))
}

/// Bytes that were taken over; not in the result if there were none.
fn taken_over(result: &Value) -> u64 {
    result["image"]["taken_over_bytes"].as_u64().unwrap_or(0)
}

fn made(demo: &Running, result: &Value, dir: &Path) -> Result<Made> {
    Made::new(demo, &path(&result["old_upper_dir"])?, &result["image"], dir)
}

/// The second snapshot reads what has changed and stores that; its image is that of any other.
#[test]
fn the_second_snapshot_of_a_container_reads_only_what_has_changed() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "on-earlier", BUSY, SEED)?;
    let dir = tempfile::Builder::new().prefix("snapshot-on-").tempdir()?;
    // What is seen to have been left alone was left alone for two seconds.
    std::thread::sleep(Duration::from_millis(2500));
    let none = ["--compressor", "none"];
    let first = commit(&demo, dir.path(), "first", &none)?;
    made(&demo, &first, dir.path())?.kernel_must_agree(dir.path()).context("the first")?;
    ensure!(taken_over(&first) == 0, "{first:#}");
    let content = number(&first, "content_bytes")?;

    // One file is changed, and gets the times it had.
    let file = seeded(&demo.demo.upper())?;
    let had = fs::metadata(&file)?;
    let times = fs::FileTimes::new().set_modified(had.modified()?).set_accessed(had.accessed()?);
    let file = fs::File::options().write(true).open(&file)?;
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", had.len() / 2)?;
    file.set_times(times)?;
    drop(file);

    let second = commit(&demo, dir.path(), "second", &none)?;
    made(&demo, &second, dir.path())?.kernel_must_agree(dir.path()).context("the second")?;
    let taken = taken_over(&second);
    ensure!(taken > content / 2 && taken + had.len() <= content, "{taken} of {content}: {second:#}");
    ensure!(number(&second, "stored_bytes")? < number(&first, "stored_bytes")? / 2, "{second:#}");
    let shared = |a: &Value, b: &Value| {
        let of = |v: &Value| v["image"]["blobs"].as_array().cloned().unwrap_or_default();
        of(a).iter().filter(|blob| of(b).contains(blob)).count()
    };
    ensure!(shared(&first, &second) == first["image"]["blobs"].as_array().map_or(0, Vec::len), "{second:#}");

    // The earlier snapshot may go; its image stays, but what it knew of its files is gone with it.
    let third = commit(&demo, dir.path(), "third", &[&none[..], &["--full"]].concat())?;
    made(&demo, &third, dir.path())?.kernel_must_agree(dir.path()).context("the third")?;
    ensure!(taken_over(&third) == 0, "{third:#}");
    // Other options, another image.
    let other = commit(&demo, dir.path(), "other", &["--compressor", "zstd"])?;
    ensure!(taken_over(&other) == 0, "{other:#}");
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// A file of the seed, which nobody works on.
fn seeded(upper: &Path) -> Result<PathBuf> {
    let dir = upper.join("data/0");
    let first = fs::read_dir(&dir)?.next().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(first?.path())
}

/// `--parent`: the lowers are that image, and are not read.
#[test]
fn a_snapshot_on_a_parent_reads_only_the_containers_layer() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "on-parent", BUSY, SEED)?;
    let dir = tempfile::Builder::new().prefix("snapshot-on-").tempdir()?;
    for (turn, compressor) in [Compressor::None, Compressor::Lz4Block].into_iter().enumerate() {
        let empty = make(dir.path(), "empty")?;
        let format = Format { compressor, ..Format::default() };
        let lowers: Vec<_> = lowers(&demo).collect();
        let base = task(dir.path(), &format!("base-{turn}"), &lowers, &empty);
        let parent = build(&nydus(base, format), &Quiet)?;
        let work = make(dir.path(), &format!("work-of-{turn}"))?;
        let bootstrap = format!("bootstrap={}", parent.bootstrap.display());
        let args = [
            "--parent",
            &bootstrap,
            "--compressor",
            &compressor.to_string(),
            "--work-dir",
            &work.to_string_lossy(),
        ];
        let result = commit(&demo, dir.path(), &format!("t{turn}"), &args)?;
        let made = made(&demo, &result, dir.path())?;
        for blob in &parent.blobs {
            ensure!(made.blobs.contains(&blob.path), "{result:#}");
        }
        let layers = work.join("snapshot-engine/layers/layers");
        ensure!(fs::read_dir(&layers)?.next().is_none(), "the lowers were read");
        judged(&made, compressor, dir.path()).with_context(|| format!("{result:#}"))?;
    }
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// `--chunk-dict`: what an earlier image has is not stored again, though nothing else is known of it.
#[test]
fn a_snapshot_with_a_dictionary_stores_only_new_chunks() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let programs = host::programs();
    let demo = Running::start(INIT, "on-dict", BUSY, SEED)?;
    let dir = tempfile::Builder::new().prefix("snapshot-on-").tempdir()?;
    for (turn, compressor) in [Compressor::None, Compressor::Lz4Block].into_iter().enumerate() {
        let word = ["--compressor", &compressor.to_string()];
        let first = commit(&demo, dir.path(), &format!("first-{turn}"), &word)?;
        // Another work directory, and everything read: only the dictionary knows.
        let work = make(dir.path(), &format!("work-of-{turn}"))?;
        let known = format!("bootstrap={}", path(&first["image"]["bootstrap"])?.display());
        let work = work.to_string_lossy();
        let args = [&word[..], &["--chunk-dict", &known, "--full", "--work-dir", &work]].concat();
        let result = commit(&demo, dir.path(), &format!("t{turn}"), &args)?;
        let made = made(&demo, &result, dir.path())?;
        ensure!(taken_over(&result) == 0, "{result:#}");
        ensure!(number(&result, "stored_bytes")? < number(&first, "stored_bytes")? / 2, "{result:#}");
        let shared = first["image"]["blobs"].as_array().context("no blobs")?;
        ensure!(shared.iter().all(|blob| path(blob).is_ok_and(|p| made.blobs.contains(&p))), "{result:#}");
        judged(&made, compressor, dir.path()).with_context(|| format!("{result:#}"))?;
    }
    // One that was made otherwise is refused before the container is touched.
    let known = format!("bootstrap={}", dir.path().join("nowhere").display());
    let target = format!("oci:{}:never", dir.path().join("layout").display());
    let work = dir.path().join("work");
    engine::run([
        "commit",
        demo.name(),
        &target,
        "--chunk-dict",
        &known,
        "--work-dir",
        &work.to_string_lossy(),
    ])?
    .must_fail(2, &["nowhere"])?;
    demo.goes_on()?;
    host::must_be_clean(&programs, dir.path())
}

/// By the kernel where it can read the blobs, by Nydus otherwise.
fn judged(made: &Made, compressor: Compressor, dir: &Path) -> Result<()> {
    if let Some(tool) = judge("nydus-image")? {
        judges::check(&tool, &made.bootstrap)?;
    }
    if compressor == Compressor::None {
        return made.kernel_must_agree(dir);
    }
    if let Some(tool) = judge("nydusd")? {
        let place = make(dir, "served")?;
        let served = serve(&tool, &made.bootstrap, &made.blobs, &place, Verify::Nothing)?;
        made.must_equal(&served.at)?;
    }
    Ok(())
}
