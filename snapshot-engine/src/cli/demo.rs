//! `demo`: containers of the engine's own, and the whole engine at work on them.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use serde::Serialize;
use snapshot_engine::container::tasks;
use snapshot_engine::demo::{self, Demo, LAYERS_ROOT, Seed, StartOptions, TickReport, Workload};
use snapshot_engine::kernel::signals;
use snapshot_engine::model::fault::Fault;
use snapshot_engine::model::nanos::{Nanos, Span};
use snapshot_engine::model::reference::{ContainerRef, Runtime};
use snapshot_engine::{pipeline, showcase};

use super::out::Out;
use super::{Error, Failed, Result};

#[derive(Debug, Args)]
pub(crate) struct Demos {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a demo container
    #[command(after_help = "Examples:\n  \
        snapshot-engine demo start web\n  \
        snapshot-engine demo start db --workload database=64:flat,write-tick --lowers 5 --seed-files 1000 --seed-bytes 100000000")]
    Start(Start),
    /// Stop a demo container and remove everything of it
    #[command(after_help = "Examples:\n  snapshot-engine demo stop web")]
    Stop(Named),
    /// List the demo containers
    #[command(visible_alias = "ls", after_help = "Examples:\n  snapshot-engine demo list --output json")]
    List,
    /// Show what a demo container's tickers felt since it was started
    #[command(after_help = "Examples:\n  snapshot-engine demo ticks web")]
    Ticks(Named),
    /// Cut demo containers hundreds of times, make an image, and judge both
    #[command(after_help = "Examples:\n  \
        snapshot-engine demo run\n  \
        snapshot-engine demo run --windows 1000 --max-pause 200us --output json\n  \
        snapshot-engine demo run --workload log=8:flat,churn:medium,write-tick --keep")]
    Run(Run),
}

#[derive(Debug, Args)]
struct Named {
    /// The demo container's name
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    named: Named,
    /// What it does: log, database, churn, tick, spin, write-tick, call-tick, idle, mmap, random, syncing, storm, flatout, sleepers
    #[arg(long, value_name = "SPEC", default_value_t)]
    workload: Workload,
    /// Lower layers, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 3)]
    lowers: u32,
    /// Files in its upperdir from the start
    #[arg(long, value_name = "N", default_value_t = 20)]
    seed_files: u32,
    /// Their bytes together
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    seed_bytes: u64,
    /// Where its layers go: on a file system that can hold an upperdir
    #[arg(long, value_name = "DIR", default_value = LAYERS_ROOT, value_hint = ValueHint::DirPath)]
    layers_root: PathBuf,
}

#[derive(Debug, Args)]
struct Run {
    /// Cuts by each gate
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    windows: u32,
    /// Leave the containers, shadows and snapshots where they are
    #[arg(long)]
    keep: bool,
    /// Where everything is made; the image and run.json stay there
    #[arg(long, value_name = "DIR", default_value = showcase::WORK_DIR, value_hint = ValueHint::DirPath)]
    work_dir: PathBuf,
    /// The longest pause allowed
    #[arg(long, value_name = "DURATION", default_value = "1ms")]
    max_pause: Nanos,
    /// What the loaded container does; see `demo start --help`
    #[arg(long, value_name = "SPEC", default_value_t = showcase::workload())]
    workload: Workload,
}

/// A demo container as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    running: bool,
    /// Its init, as the host numbers it.
    init: Option<u32>,
    /// All its processes.
    pids: Vec<u32>,
    upper: PathBuf,
    workload: String,
}

impl Shown {
    fn new(demo: &Demo) -> Shown {
        // No daemon is asked about a container of ours.
        let own = ContainerRef::At { runtime: Runtime::Demo, name: demo.name().to_owned() };
        let found = pipeline::resolve(&own).ok().filter(|_| demo.running);
        let mut pids: Vec<u32> =
            found.and_then(|t| tasks(&t).ok()).unwrap_or_default().iter().map(|t| t.pid.0).collect();
        pids.dedup();
        Shown {
            name: demo.name().to_owned(),
            running: demo.running,
            init: demo.init().map(|p| p.0),
            pids,
            upper: demo.upper(),
            workload: demo.state.workload.to_string(),
        }
    }
}

/// What a ticker felt.
#[derive(Debug, Serialize)]
struct Felt {
    mode: demo::TickMode,
    count: u64,
    p50: Span,
    p99: Span,
    max: Span,
}

impl From<&TickReport> for Felt {
    fn from(report: &TickReport) -> Felt {
        let at = |ns| Span::from(Nanos(ns));
        Felt {
            mode: report.mode,
            count: report.count,
            p50: at(report.quantile_ns(0.5)),
            p99: at(report.quantile_ns(0.99)),
            max: at(report.max_gap_ns),
        }
    }
}

/// A run that was made to its end, but not everything held.
#[derive(Debug, thiserror::Error)]
#[error("not everything held: {0}")]
struct NotHeld(String);

impl Fault for NotHeld {}

/// The exit code of a signal is told by the pipeline's own error.
fn failed(error: showcase::Error) -> Failed {
    match error {
        showcase::Error::Pipeline(e) => Failed(Box::new(e)),
        other => Failed(Box::new(other)),
    }
}

pub(super) fn run(args: &Demos, out: &Out, quiet: bool) -> Result {
    match &args.command {
        Command::Start(args) => start(args, out),
        Command::Stop(args) => {
            // A name that is not there is an error for a user, though not for a clean-up.
            demo::load(&args.name)?;
            demo::stop(&args.name)?;
            out.result(&format!("Stopped {}\n", args.name), &serde_json::json!({ "stopped": args.name }))
        }
        Command::List => {
            let demos: Vec<Shown> = demo::list()?.iter().map(Shown::new).collect();
            out.result(&list(&demos), &serde_json::json!({ "demos": demos }))
        }
        Command::Ticks(args) => {
            let felt: Vec<Felt> = demo::ticks(&args.name)?.iter().map(Felt::from).collect();
            out.result(&ticks(&felt), &serde_json::json!({ "name": args.name, "tickers": felt }))
        }
        Command::Run(args) => show(args, out, quiet),
    }
}

fn start(args: &Start, out: &Out) -> Result {
    let demo = demo::start(&StartOptions {
        layers_root: args.layers_root.clone(),
        lowers: args.lowers,
        seed: Seed { files: args.seed_files, bytes: args.seed_bytes },
        workload: args.workload.clone(),
        ..StartOptions::new(&args.named.name)
    })?;
    let shown = Shown::new(&demo);
    let pids: Vec<String> = shown.pids.iter().map(ToString::to_string).collect();
    let text = format!(
        "Started {}: {}\n  Processes: {}\n  Upper Dir: {}\n",
        shown.name,
        shown.workload,
        pids.join(" "),
        shown.upper.display()
    );
    out.result(&text, &shown)
}

fn list(demos: &[Shown]) -> String {
    let mut text = format!(
        "{:<24}  {:<7}  {:>8}  {:>5}  {:<40}  UPPER DIR\n",
        "NAME", "STATE", "INIT", "PIDS", "WORKLOAD"
    );
    for d in demos {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<24}  {:<7}  {:>8}  {:>5}  {:<40}  {}",
            d.name,
            if d.running { "running" } else { "dead" },
            d.init.map_or_else(|| "-".to_owned(), |p| p.to_string()),
            d.pids.len(),
            d.workload,
            d.upper.display()
        );
    }
    text
}

fn ticks(felt: &[Felt]) -> String {
    let mut text = format!("{:<7}  {:>10}  {:>9}  {:>9}  {:>9}\n", "TICKER", "GAPS", "P50", "P99", "MAX");
    for f in felt {
        let mode = format!("{:?}", f.mode).to_lowercase();
        let _ = writeln!(
            text,
            "{mode:<7}  {:>10}  {:>9}  {:>9}  {:>9}",
            f.count, f.p50.human, f.p99.human, f.max.human
        );
    }
    text
}

fn show(args: &Run, out: &Out, quiet: bool) -> Result {
    signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
    let options = showcase::Options {
        windows: args.windows,
        keep: args.keep,
        work_dir: args.work_dir.clone(),
        max_pause: args.max_pause,
        workload: args.workload.clone(),
    };
    let report = showcase::run(&options, &|what| {
        if !quiet {
            eprintln!("{what} ...");
        }
    })
    .map_err(failed)?;
    out.result(&format!("\n{report}"), &report)?;
    if report.held { Ok(()) } else { Err(NotHeld(report.failures.join("; ")).into()) }
}
