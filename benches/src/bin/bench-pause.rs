//! `cargo xtask bench pause`: see `snapshot_benches::pause`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use snapshot_benches::pause::plan::Extent;
use snapshot_benches::pause::{Options, run, stopped};
use snapshot_engine::demo::init_if_asked;
use snapshot_engine::kernel::signals;

/// Measure the pause: workloads, gates, layer sizes and task counts, with the peers on this machine in the same run.
///
/// Exit code 1: a promise was broken (a window above its budget, a missed change, a container left frozen). A missed goal is reported and
/// changes nothing.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench pause")]
struct Arguments {
    /// The ends of each axis only, in about two minutes
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// More windows, and every axis on XFS too; hours
    #[arg(long)]
    full: bool,
    /// Only this part: `file system`, upper, files, tasks, workload, peer, slowdown, copy, or one workload by its name; may be given several times
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Where pause.json, pause.csv and pause.html go
    #[arg(long, value_name = "DIR", default_value = "target/bench-pause")]
    out: PathBuf,
    /// Where the disks of the containers go while it runs: some 15 GiB
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/bench-pause")]
    place: PathBuf,
}

fn main() -> Result<ExitCode> {
    init_if_asked();
    snapshot_engine::bench::run_if_asked();
    let arguments = Arguments::parse();
    // The run ends between two cuts then, and clears up.
    signals::install()?;
    let extent = match (arguments.quick, arguments.full) {
        (true, _) => Extent::Quick,
        (_, true) => Extent::Full,
        _ => Extent::Usual,
    };
    let options = Options { extent, only: arguments.only, place: arguments.place };
    let report = match run(&options, &|what| eprintln!("{what} ...")) {
        Err(e) if stopped(&e) => {
            eprintln!("{e:#}");
            return Ok(ExitCode::from(130));
        }
        other => other?,
    };
    let out = arguments.out;
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let files = ["pause.json", "pause.csv", "pause.html"].map(|name| out.join(name));
    report.write(Some(&files[0]), Some(&files[1]), Some(&files[2]))?;
    println!("{report}");
    println!("Results: {}", files.map(|f| f.display().to_string()).join(" "));
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
