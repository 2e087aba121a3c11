//! `--with-path`: what is outside a container's own layer, captured at the same instant. Needs root.

mod image;
mod instant;
mod refused;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use snapshot_engine::demo::Workload;
use snapshot_tests::bench::{Disk, Running};
use snapshot_tests::volume;
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
/// Where the container has its volume. The demo's lowers have 64 files there, which the volume hides.
const VOLUME: &str = "/srv/pool";

/// A container with a volume on the file system of its layer. Dropped in this order.
struct Scene {
    worker: Worker,
    demo: Running,
    disk: Disk,
}

impl Scene {
    fn new(kind: &str) -> Result<Scene> {
        let disk = Disk::new(kind)?;
        let demo = Running::start(INIT, &disk, Workload::idle())?;
        let scene = Scene { worker: Worker::start(WORKER, &demo)?, demo, disk };
        scene.mount("volume", VOLUME)?;
        Ok(scene)
    }

    fn init(&self) -> Result<u32> {
        Ok(self.demo.0.init().context("the container is dead")?.0)
    }

    /// A directory of the disk.
    fn host(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// Mounts a directory of the disk in the container.
    fn mount(&self, name: &str, at: &str) -> Result<()> {
        volume::mount(self.init()?, &self.host(name), at)
    }

    /// What the container shows at a path.
    fn shown(&self, path: &str) -> Result<PathBuf> {
        Ok(self.demo.root()?.join(path.trim_start_matches('/')))
    }
}

fn clear(dir: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(dir)?)
}
