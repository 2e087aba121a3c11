//! A docker with the containerd image store, for a machine whose own is older than that. It is unpacked and kept with the tools: nothing is
//! installed, and the machine's own docker stays what it is.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::debian::{self, numbers};
use crate::{shell, workspace};

/// The first version with the store.
const FIRST: u64 = 24;

/// Debian's release whose docker has it. Its programs need no library that Debian 12 does not have.
const SUITE: &str = "trixie";

/// The daemon, and the containerd that it starts. Client and runc are the machine's own.
const PACKAGES: [&str; 2] = ["docker.io", "containerd"];

/// Below the tools.
const NAME: &str = "docker/newer";

/// Where it is unpacked, whether it is or not: for the tests, in `SNAPSHOT_DOCKER`.
pub(crate) fn place() -> PathBuf {
    workspace::tools().join(NAME)
}

/// The machine's own, or one of Debian's.
pub(super) fn ensure_with_store() -> Result<()> {
    if shell::which("dockerd").is_some_and(|own| has_store(&own).is_ok()) {
        return Ok(());
    }
    let mirror = std::env::var(debian::MIRROR).ok();
    debian::kept(NAME, mirror.as_deref(), SUITE, &PACKAGES, |directory| {
        shell::quiet(shell::program(directory.join("usr/bin/containerd")).arg("--version"))?;
        has_store(&directory.join("usr/sbin/dockerd"))
    })
}

/// Fails unless this dockerd starts and is new enough.
fn has_store(dockerd: &Path) -> Result<()> {
    let said = shell::output(shell::program(dockerd).arg("--version"))?;
    ensure!(numbers(&said).first() >= Some(&FIRST), "it says: {said}");
    Ok(())
}
