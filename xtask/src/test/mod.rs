//! `cargo xtask test`: the tests in tiers by the privilege they need, what they left behind, and a last line
//! `N passed, N failed, N skipped` for machines to read.

pub(crate) mod counts;
mod leftovers;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{ebpf, setup, shell, workspace};
use counts::Counts;

/// Which tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which tests by what they need
    #[arg(long, value_enum, default_value_t = Tier::All)]
    tier: Tier,
    /// Only tests whose name contains this
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Tests beside the code; no privilege
    Unit,
    /// Tests against the real kernel; root
    Root,
    /// Tests with the real container runtimes, which are installed for it; root
    Runtimes,
    /// Unit and root; of the runtimes those that are on the machine
    All,
}

/// Runs the tests. Succeeds only if none failed and nothing is left behind.
pub(crate) fn test(arguments: &Arguments) -> Result<ExitCode> {
    let filter = arguments.filter.as_deref();
    let root = arguments.tier != Tier::Unit;
    if root {
        setup::apt::need_root("run the tests against the kernel (`--tier unit` needs none)")?;
    }
    setup::setup_all(root, arguments.tier == Tier::Runtimes)?;
    ebpf::ebpf()?;

    let mut tiers = Vec::new();
    if matches!(arguments.tier, Tier::Unit | Tier::All) {
        let mut command = cargo_test();
        // The integration tests' own helpers may need root and are tested with them.
        command.args(["--workspace", "--exclude=snapshot-tests", "--lib", "--bins"]);
        tiers.push(("unit", counted(&mut with_filter(command, filter, &[]))?));
    }
    if root {
        shell::run(shell::cargo().args(["build", "--package=snapshot-engine"]))?;
        let mut command = cargo_test();
        command.args(["--package=snapshot-tests"]);
        let mut name = "root";
        if arguments.tier == Tier::Runtimes {
            name = "runtimes";
            // One that is missing fails its tests instead of skipping them: `setup` has just put it there.
            command.args(["--test=runtimes"]).env("SNAPSHOT_REQUIRE_RUNTIMES", "1");
        }
        let before = leftovers::survey();
        report_earlier(&before);
        // One at a time: they share the tracker's tracepoints, two cores and the clock.
        tiers.push((name, counted(&mut with_filter(command, filter, &["--test-threads=1"]))?));
        tiers.push(("left behind", leftovers::judge(&before)));
    }

    println!();
    for (tier, counts) in &tiers {
        println!("{tier}: {counts}");
    }
    let total: Counts = tiers.into_iter().map(|(_, counts)| counts).sum();
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo_test() -> Command {
    let mut command = shell::cargo();
    command
        .args(["test", "--no-fail-fast"])
        .env("NYDUS_BIN", workspace::tools_bin())
        // Fetched for `--tier runtimes`; without them the tests of them say so.
        .env("SNAPSHOT_DOCKER", setup::docker::place())
        .envs(setup::snapshotter::place().map(|place| ("SNAPSHOT_NYDUS_SNAPSHOTTER", place)))
        .env("SNAPSHOT_ENGINE", workspace::target().join("debug/snapshot-engine"))
        // A judge that is missing fails its test instead of skipping it: `setup` has just put it there.
        .env("SNAPSHOT_REQUIRE_JUDGES", "1");
    command
}

fn with_filter(mut command: Command, filter: Option<&str>, more: &[&str]) -> Command {
    command.arg("--").args(filter).args(more);
    command
}

/// Runs the tests, shows their output as it comes, and counts.
fn counted(command: &mut Command) -> Result<Counts> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start `cargo test`")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            // A test may print anything; only cargo's own lines must be text.
            let line =
                String::from_utf8_lossy(&line.context("reading the output of `cargo test`")?).into_owned();
            println!("{line}");
            counts += Counts::of_line(&line);
        }
    }
    let status = child.wait().context("waiting for `cargo test`")?;
    if !status.success() && counts.failed == 0 {
        // It did not compile, or a test binary died before it could report.
        eprintln!("`cargo test` ended with {status} without naming a failed test");
        counts.failed = 1;
    }
    Ok(counts)
}

fn report_earlier(found: &std::collections::BTreeSet<String>) {
    for thing in found {
        eprintln!("there before the tests: {thing}");
    }
}
