//! `bench pause`: what a user's own container feels when it is cut.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use snapshot_engine::bench::{self, pause};
use snapshot_engine::kernel::signals;
use snapshot_engine::model::fault::Fault;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::model::reference::ContainerRef;

use super::out::{Out, printable};
use super::runtimes::Runtimes;
use super::{Error, Failed, Result};

#[derive(Debug, Args)]
pub(crate) struct Benches {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cut a running container again and again and measure every stop by three clocks
    ///
    /// Nothing of the container changes: a process in its cgroups feels the stops, and no image is made. With --gate freezer and for comparison
    /// its cgroup is frozen and thawed, for well below a millisecond as a rule.
    #[command(after_help = "Examples:\n  \
        snapshot-engine bench pause --container web\n  \
        snapshot-engine bench pause --container pid:4711 --windows 1000 --gate fence --html pause.html\n  \
        snapshot-engine bench pause --container db --gate none --gate fence --max-pause 100us --csv pause.csv --output json")]
    Pause(Pause),
}

#[derive(Debug, Args)]
struct Pause {
    /// The container: its name, id or a beginning of the id, at any runtime or at one (docker://NAME), or pid:N for any process of it
    #[arg(long, value_name = "CONTAINER")]
    container: ContainerRef,
    /// Windows by each gate
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    windows: u32,
    /// A gate to measure, instead of all: none, fence, freezer, auto; may be given several times
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<GateChoice>,
    /// The longest pause allowed [default: 1ms, and 20ms for the freezer]
    #[arg(long, value_name = "DURATION")]
    max_pause: Option<Nanos>,
    /// Do not freeze and thaw the container's cgroup for comparison
    #[arg(long)]
    no_freeze: bool,
    /// Where the shadow goes while it is measured; best on the upperdir's file system
    #[arg(long, value_name = "DIR", env = "SNAPSHOT_ENGINE_WORK_DIR", default_value = "/tmp", value_hint = ValueHint::DirPath)]
    work_dir: PathBuf,
    #[command(flatten)]
    runtimes: Runtimes,
    /// Write the report as JSON to a file, whatever --output says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    json: Option<PathBuf>,
    /// Write every window as a line of CSV
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    csv: Option<PathBuf>,
    /// Write the report as one HTML page with plots
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    html: Option<PathBuf>,
}

/// A measurement that was made to its end and shows a promise broken.
#[derive(Debug, thiserror::Error)]
#[error("a promise was broken: {0}")]
struct Broken(String);

impl Fault for Broken {}

/// The exit code of a signal is told by the pipeline's own error.
fn failed(error: bench::Error) -> Failed {
    match error {
        bench::Error::Pipeline(e) => Failed(Box::new(e)),
        other => Failed(Box::new(other)),
    }
}

pub(super) fn run(args: &Benches, out: &Out, quiet: bool) -> Result {
    let Command::Pause(args) = &args.command;
    signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
    let mut options = pause::Options::new(args.container.clone());
    options.places = args.runtimes.places();
    options.windows = args.windows;
    if !args.gates.is_empty() {
        options.gates.clear();
        for gate in &args.gates {
            if !options.gates.contains(gate) {
                options.gates.push(*gate);
            }
        }
    }
    options.max_pause = args.max_pause;
    options.work_dir.clone_from(&args.work_dir);
    options.freeze = !args.no_freeze;
    let report = pause::run(&options, &|what| {
        if !quiet {
            eprintln!("{what} ...");
        }
    })
    .map_err(failed)?;
    report.write(args.json.as_deref(), args.csv.as_deref(), args.html.as_deref()).map_err(failed)?;
    let text: String = report.to_string().lines().map(|line| printable(line) + "\n").collect();
    out.result(&text, &report)?;
    if report.violations.is_empty() { Ok(()) } else { Err(Broken(report.violations.join("; ")).into()) }
}
