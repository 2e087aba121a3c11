//! The project's tasks, one file each: `cargo xtask --help` is the table of contents.

mod bench;
mod debian;
mod ebpf;
mod run;
mod setup;
mod shell;
mod test;
mod tidy;
mod toolchain;
mod torture;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// The project's tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install what the other tasks need
    Setup {
        /// Also what the tests need
        #[arg(long)]
        tests: bool,
        /// Also the container runtimes that some of the tests are about, which are left out where they are missing
        #[arg(long)]
        runtimes: bool,
    },
    /// Build the eBPF programs into the object that the engine embeds
    Ebpf,
    /// Build everything, snapshot a demo container under load, show what happened
    Run {
        /// Arguments for `snapshot-engine demo run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Run the tests and look for what they left behind
    Test(test::Arguments),
    /// Run the tests on other kernels, in QEMU
    VmTest(vm_test::Arguments),
    /// Run the benchmarks; `bench pause` measures the pause and makes a report of it
    Bench {
        /// `pause` or `peers` with their options (`bench pause --help` lists them), or arguments for `cargo bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Cut containers while writers of every kind are at work, and check every frozen tree
    #[command(disable_help_flag = true)]
    Torture {
        /// Arguments for the harness: `cargo xtask torture --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Check the house rules that no compiler checks
    Tidy,
}

/// Every task by name, `help` included.
fn names() -> std::collections::BTreeSet<String> {
    let mut command = Arguments::command();
    command.build();
    command.get_subcommands().map(|task| task.get_name().to_owned()).collect()
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { tests, runtimes } => setup::setup_all(tests, runtimes).map(|()| ExitCode::SUCCESS),
        Task::Ebpf => ebpf::ebpf().map(|()| ExitCode::SUCCESS),
        Task::Run { arguments } => run::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Test(arguments) => test::test(&arguments),
        Task::VmTest(arguments) => vm_test::vm_test(&arguments),
        Task::Bench { arguments } => bench::bench(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Torture { arguments } => torture::torture(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Tidy => tidy::tidy(&names()).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            // The same number by which the engine itself tells a missing privilege.
            if error.is::<setup::apt::NeedsRoot>() { ExitCode::from(4) } else { ExitCode::FAILURE }
        }
    }
}
