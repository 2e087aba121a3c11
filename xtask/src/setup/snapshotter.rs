//! nydus-snapshotter, whom Nydus images are made for. It is unpacked and kept with the tools: nothing is installed.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{debian, shell, workspace};

/// The first of Debian's releases with a package of it. The program needs no library that Debian 12 does not have.
const SUITE: &str = "trixie";

/// Below the tools.
const NAME: &str = "nydus/snapshotter";

/// Where it is, if it could be had: for the tests, in `SNAPSHOT_NYDUS_SNAPSHOTTER`.
pub(crate) fn place() -> Option<PathBuf> {
    Some(workspace::tools().join(NAME)).filter(|place| place.is_dir())
}

/// Debian's. Where nobody knows a mirror of Debian its tests are skipped, but for CI, which is to miss nothing.
pub(super) fn ensure() -> Result<()> {
    let starts = |unpacked: &Path| {
        shell::quiet(shell::program(unpacked.join("usr/bin/containerd-nydus-grpc")).arg("--version"))
    };
    let mirror = std::env::var(debian::MIRROR).ok();
    match debian::kept(NAME, mirror.as_deref(), SUITE, &["nydus-snapshotter"], starts) {
        Err(why) if std::env::var_os("CI").is_none() => {
            eprintln!("setup: no nydus-snapshotter, so its tests are skipped: {why:#}");
            Ok(())
        }
        done => done,
    }
}
