//! The project's tasks, one file each: `cargo xtask --help` is the table of contents.

mod ebpf;
mod shell;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};

/// The project's tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the eBPF programs into the object that the engine embeds
    Ebpf,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Ebpf => ebpf::ebpf(),
    }
}
