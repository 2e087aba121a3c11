//! `cargo xtask bench`: the benchmarks, with the programs embedded as a user would have them.

use std::ffi::OsString;

use anyhow::Result;

use crate::{ebpf, setup, shell};

/// Runs every benchmark of the `benches` package; arguments go to `cargo bench`.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    setup::apt::need_root("measure on real containers")?;
    setup::setup(false)?;
    ebpf::ebpf()?;
    shell::run(shell::cargo().args(["bench", "--package=snapshot-benches"]).args(arguments))
}
