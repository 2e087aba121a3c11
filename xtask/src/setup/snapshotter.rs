//! nydus-snapshotter, whom Nydus images are made for. It is unpacked and kept with the tools: nothing is installed.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{debian, shell, workspace};

/// The first of Debian's releases with a package of it. The program needs no library that Debian 12 does not have.
const SUITE: &str = "trixie";

/// Below the tools.
const NAME: &str = "nydus/snapshotter";

/// Where it is unpacked, whether it is or not: for the tests, in `SNAPSHOT_NYDUS_SNAPSHOTTER`.
pub(crate) fn place() -> PathBuf {
    workspace::tools().join(NAME)
}

/// Debian's.
pub(super) fn ensure() -> Result<()> {
    let starts = |unpacked: &Path| {
        shell::quiet(shell::program(unpacked.join("usr/bin/containerd-nydus-grpc")).arg("--version"))
    };
    let mirror = std::env::var(debian::MIRROR).ok();
    debian::kept(NAME, mirror.as_deref(), SUITE, &["nydus-snapshotter"], starts)
}
