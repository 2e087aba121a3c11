//! `cargo xtask ebpf`: the eBPF programs, as the one object that the engine embeds.

use std::fs;

use anyhow::{Context as _, Result};

use crate::toolchain::{TARGET, Toolchain};
use crate::{shell, workspace};

/// Builds the object. Does next to nothing when it is up to date.
pub(crate) fn ebpf() -> Result<()> {
    let toolchain = Toolchain::find()?;
    shell::run(toolchain.cargo_build()?.args([
        "--package=snapshot-ebpf",
        "--bin=snapshot-ebpf",
        "--features=programs",
        "--profile=bpf",
        "--quiet",
    ]))?;

    let built = workspace::bpf_target().join(TARGET).join("bpf/snapshot-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let object = workspace::bpf_object();
    // The engine's build script watches the time of this file: an equal one must keep it.
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(&object, &bytes).with_context(|| format!("writing {}", object.display()))?;
    eprintln!("eBPF programs: {} ({} KiB)", object.display(), bytes.len() / 1024);
    Ok(())
}
