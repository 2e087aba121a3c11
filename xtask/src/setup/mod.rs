//! `cargo xtask setup`: finds or installs what the other tasks need. Silent about what is there, one line
//! about what was chosen, and without a call to apt or the network when nothing is missing.

pub(crate) mod apt;
mod bpf;
pub(crate) mod docker;
pub(crate) mod snapshotter;
mod tools;

use anyhow::Result;

/// The eBPF toolchain; with `tests`, also the programs that the tests call.
pub(crate) fn setup(tests: bool) -> Result<()> {
    bpf::ensure()?;
    if tests {
        tools::ensure_for_tests()?;
    }
    Ok(())
}

/// The same, and with `runtimes` the real runtimes, for their tests.
pub(crate) fn setup_all(tests: bool, runtimes: bool) -> Result<()> {
    setup(tests)?;
    if runtimes {
        tools::ensure_runtimes()?;
        docker::ensure_with_store()?;
        snapshotter::ensure()?;
    }
    Ok(())
}

/// The eBPF toolchain, and what boots other kernels.
pub(crate) fn setup_for_guests() -> Result<()> {
    bpf::ensure()?;
    tools::ensure_for_guests()
}

/// What the peers of the pause benchmark need, as far as it can be had.
pub(crate) fn setup_for_peers() {
    tools::ensure_for_peers();
}
