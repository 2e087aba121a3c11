//! `cargo xtask bench rafs`: see `snapshot_benches::rafs`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use snapshot_benches::rafs::{Options, builders, run};
use snapshot_engine::kernel::signals;

/// Measure how fast trees become RAFS images, beside nydus-image and the limit of the machine, in turns.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench rafs")]
struct Arguments {
    /// Turns; medians are over them
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Only trees whose name contains this: mixed, small, 4 GiB, duplicates; may be given several times
    #[arg(long, value_name = "NAME")]
    tree: Vec<String>,
    /// Only this compressor: none, lz4_block, zstd; may be given several times
    #[arg(long, value_name = "NAME")]
    compressor: Vec<String>,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench-rafs/rafs.json")]
    out: PathBuf,
    /// Where trees and images go while it runs: some 10 GiB
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    place: PathBuf,
}

fn main() -> Result<()> {
    if builders::build_if_asked()? {
        return Ok(());
    }
    let arguments = Arguments::parse();
    signals::install()?;
    let options = Options {
        turns: arguments.turns.max(1),
        trees: arguments.tree,
        compressors: arguments.compressor,
        place: arguments.place,
    };
    let figures = run(&options)?;
    if let Some(dir) = arguments.out.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    figures.write(&arguments.out)
}
