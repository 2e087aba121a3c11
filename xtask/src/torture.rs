//! `cargo xtask torture`: containers full of writers, cut while they write, and every frozen tree checked.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::{ebpf, setup, shell, workspace};

/// Builds everything and becomes the harness, which is part of the tests: its exit code is ours (1: a violation).
pub(crate) fn torture(arguments: &[OsString]) -> Result<()> {
    setup::apt::need_root("make containers and load eBPF programs")?;
    setup::setup(true)?;
    ebpf::ebpf()?;
    shell::run(shell::cargo().args(["build", "--package=snapshot-tests", "--bin=torture"]))?;
    let harness = workspace::target().join("debug/torture");
    let error = shell::program(&harness).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", harness.display()))
}
