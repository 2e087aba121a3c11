//! `cargo xtask setup`: finds or installs what the other tasks need. Silent about what is there, one line
//! about what was chosen, and without a call to apt or the network when nothing is missing.

pub(crate) mod apt;
mod bpf;
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
