//! `cargo xtask bench push`: see `snapshot_benches::push`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use snapshot_benches::push::{Options, run};
use snapshot_engine::kernel::signals;

/// Measure how long it takes from a running container with an upperdir of 1 GiB to its image in a registry, beside `docker commit` and `docker push`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench push")]
struct Arguments {
    /// Turns; medians are over them
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Processes inside that overwrite a file each without pause; 0: a line to a log, 100 times a second
    #[arg(long, value_name = "N", default_value_t = 0)]
    writers: u32,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench-push/push.json")]
    out: PathBuf,
    /// Where docker, the registry and the images are kept while it runs: some 15 GiB, on a file system that can hold an upperdir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/snapshot-engine/bench")]
    place: PathBuf,
}

fn main() -> Result<()> {
    // The ticker in the container is this program.
    snapshot_engine::bench::run_if_asked();
    let arguments = Arguments::parse();
    signals::install()?;
    if let Some(dir) = arguments.out.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let options =
        Options { turns: arguments.turns.max(1), writers: arguments.writers, place: arguments.place };
    run(&options)?.write(&arguments.out)
}
