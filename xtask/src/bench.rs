//! `cargo xtask bench`: the benchmarks, with the programs embedded as a user would have them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::{ebpf, setup, shell, workspace};

/// `pause ..` becomes the harness that measures the pause: its exit code is ours (1: a promise was broken). `peers ..` becomes the program that
/// measures the peers alone, `rafs ..` the one that builds images, `push ..` the one that pushes them. Everything else goes to `cargo bench`, which runs every benchmark of the `benches` package.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    setup::apt::need_root("measure on real containers")?;
    setup::setup(false)?;
    ebpf::ebpf()?;
    let has = |list: &[OsString], words: &[&str]| list.iter().any(|a| words.iter().any(|word| a == word));
    match arguments.split_first() {
        Some((first, rest)) if first == "pause" => {
            // File systems for the containers, and who copies beside us.
            setup::apt::install(&["e2fsprogs", "xfsprogs", "rsync"])?;
            // Works inside the containers; without it that part is missing from the report, which says so.
            if (!has(rest, &["--only"]) || has(rest, &["slowdown"]))
                && let Err(error) = setup::apt::add(&["fio"])
            {
                eprintln!("setup: fio is left out: {error:#}");
            }
            // Whoever asks for one part only, or for help, gets no runtimes installed for it.
            let part = has(rest, &["--only"]) && !has(rest, &["peer"]);
            if !part && !has(rest, &["--help", "-h"]) {
                setup::setup_for_peers();
            }
            become_harness("bench-pause", rest)
        }
        Some((first, rest)) if first == "peers" => {
            setup::setup_for_peers();
            become_harness("peers", rest)
        }
        Some((first, rest)) if first == "push" => {
            setup::setup(true)?;
            setup::setup_for_peers();
            // It measures the command as users have it.
            shell::run(shell::cargo().args(["build", "--release", "--package=snapshot-engine", "--bins"]))?;
            become_harness("bench-push", rest)
        }
        Some((first, rest)) if first == "rafs" => {
            setup::setup(true)?;
            become_harness("bench-rafs", rest)
        }
        _ => shell::run(shell::cargo().args(["bench", "--package=snapshot-benches"]).args(arguments)),
    }
}

fn become_harness(name: &str, arguments: &[OsString]) -> Result<()> {
    // `inside` lends a container the host's programs.
    let packages = ["--package=snapshot-benches", "--package=snapshot-tests"];
    shell::run(shell::cargo().args(["build", "--release"]).args(packages).args([
        "--bin",
        name,
        "--bin=inside",
    ]))?;
    let built = workspace::target().join("release");
    let program = built.join(name);
    let error = shell::program(&program)
        .args(arguments)
        .env("NYDUS_BIN", workspace::tools_bin())
        .env("SNAPSHOT_ENGINE", built.join("snapshot-engine"))
        .exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
