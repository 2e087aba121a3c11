//! The peers alone: starts each with one layer, does to it what it can do, in turn with the others, and shows how long that took.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use snapshot_benches::peers::{self, Layer, Load, Running};
use snapshot_engine::kernel::signals;
use snapshot_engine::model::nanos::{Nanos, Span};

/// How long other ways to stop a container take on this machine.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Arguments {
    /// Where layers and images are kept while it runs: on a file system that can hold an upperdir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/snapshot-engine/bench")]
    place: PathBuf,
    /// Only these peers; may be given several times
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(peers::NAMES))]
    peer: Vec<String>,
    /// Files in the upperdir
    #[arg(long, value_name = "N", default_value_t = 0)]
    files: u32,
    /// Their size together, in MiB
    #[arg(long, value_name = "N", default_value_t = 0)]
    mib: u64,
    /// Processes that sleep inside
    #[arg(long, value_name = "N", default_value_t = 0)]
    tasks: u32,
    /// Writers inside that overwrite a file without pause
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "log")]
    writers: u32,
    /// A writer inside that appends about 100 lines a second
    #[arg(long)]
    log: bool,
    /// How often each operation is done
    #[arg(long, value_name = "N", default_value_t = 5)]
    times: u32,
    /// How the results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What is printed as JSON. Times are in nanoseconds, in the order they were measured.
#[derive(Debug, Serialize)]
struct Report {
    files: u32,
    bytes: u64,
    tasks: u32,
    load: String,
    peers: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The container's first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<u32>,
    /// Why there are no operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<String>,
    operations: Vec<Times>,
}

#[derive(Debug, Serialize)]
struct Times {
    name: &'static str,
    /// When each began, on CLOCK_MONOTONIC.
    from_ns: Vec<u64>,
    /// How long its commands took, from the first's start to the last's end.
    wall_ns: Vec<u64>,
    phases: Vec<Phase>,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    ns: Vec<u64>,
}

fn main() -> ExitCode {
    // The freezer's container has this program as its first process.
    snapshot_engine::demo::init_if_asked();
    let done = signals::install().context("installing handlers of signals").and_then(|()| run());
    if let Some(signal) = signals::caught() {
        return ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX));
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let load = match (arguments.log, arguments.writers) {
        (true, _) => Load::Log,
        (false, 0) => Load::Idle,
        (false, writers) => Load::Flat(writers),
    };
    let layer = Layer { files: arguments.files, bytes: arguments.mib << 20, tasks: arguments.tasks, load };
    layer.check()?;
    let wanted = |name: &&str| arguments.peer.is_empty() || arguments.peer.iter().any(|peer| peer == name);
    let mut figures = Vec::new();
    let mut running = Vec::new();
    for name in peers::NAMES.into_iter().filter(wanted) {
        go_on()?;
        let started = peers::one(name, &arguments.place, None).and_then(|peer| {
            let absent = |e| peers::Absent { name, reason: format!("{e:#}") };
            let container = peer.start(&layer).map_err(absent)?;
            Ok((peer.version().to_owned(), container))
        });
        let mut row = Figures {
            name: name.to_owned(),
            version: None,
            init: None,
            absent: None,
            operations: Vec::new(),
        };
        match started {
            Ok((version, container)) => {
                eprintln!("{name} {version}: container {}", container.target().init);
                (row.version, row.init) = (Some(version), Some(container.target().init.0));
                running.push((figures.len(), container));
            }
            Err(absent) => row.absent = Some(absent.reason),
        }
        figures.push(row);
    }
    for _ in 0..arguments.times {
        for (at, container) in &mut running {
            measure(container.as_mut(), &mut figures[*at].operations)?;
        }
    }
    let load = format!("{load:?}").to_lowercase();
    let report = Report { files: layer.files, bytes: layer.bytes, tasks: layer.tasks, load, peers: figures };
    match arguments.output {
        Format::Text => print(&report),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

/// Does each operation once.
fn measure(container: &mut dyn Running, operations: &mut Vec<Times>) -> Result<()> {
    for (at, name) in container.operations().into_iter().enumerate() {
        go_on()?;
        let took = container.perform(name)?;
        if operations.len() == at {
            let phases = took.phases.iter().map(|(name, _)| Phase { name, ns: Vec::new() }).collect();
            operations.push(Times { name, from_ns: Vec::new(), wall_ns: Vec::new(), phases });
        }
        let times = &mut operations[at];
        times.from_ns.push(took.from.0);
        times.wall_ns.push(ns(took.wall));
        for (phase, (_, took)) in times.phases.iter_mut().zip(&took.phases) {
            phase.ns.push(ns(*took));
        }
    }
    Ok(())
}

/// Fails once a signal has asked this process to end: what has been started is removed on the way out.
fn go_on() -> Result<()> {
    if signals::caught().is_some() {
        bail!("interrupted");
    }
    Ok(())
}

fn ns(time: Duration) -> u64 {
    Nanos::from(time).0
}

fn print(report: &Report) {
    println!(
        "{} files, {} MiB, {} tasks, load {}; times are those of the commands",
        report.files,
        report.bytes >> 20,
        report.tasks,
        report.load
    );
    println!("{:<34}{:>5}{:>11}{:>11}{:>11}  PHASES (MEDIAN)", "OPERATION", "N", "MEDIAN", "MIN", "MAX");
    for peer in &report.peers {
        match (&peer.absent, &peer.version) {
            (Some(reason), _) => println!("{}: absent: {reason}", peer.name),
            (None, version) => println!("{} {}", peer.name, version.as_deref().unwrap_or_default()),
        }
        for times in &peer.operations {
            let phases: Vec<String> =
                times.phases.iter().map(|phase| format!("{} {}", phase.name, at(&phase.ns, 50))).collect();
            println!(
                "  {:<32}{:>5}{:>11}{:>11}{:>11}  {}",
                times.name,
                times.wall_ns.len(),
                at(&times.wall_ns, 50),
                at(&times.wall_ns, 0),
                at(&times.wall_ns, 100),
                phases.join(", ")
            );
        }
    }
}

/// The value that was measured at this percentile, for people.
fn at(times: &[u64], percent: usize) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    Span::from(Nanos(sorted.get(rank).copied().unwrap_or_default())).human
}
