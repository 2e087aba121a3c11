//! `cargo xtask run`: the whole engine at work on a demo container.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::{ebpf, setup, shell, workspace};

/// Builds everything and becomes the engine, which owns the demo from there on: its exit code is ours.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    setup::apt::need_root("make containers and load eBPF programs")?;
    setup::setup(false)?;
    ebpf::ebpf()?;
    shell::run(shell::cargo().args(["build", "--release", "--package=snapshot-engine"]))?;
    let engine = workspace::target().join("release/snapshot-engine");
    let mut demo = shell::program(&engine);
    demo.args(["demo", "run"]).args(arguments);
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start {}", engine.display()))
}
