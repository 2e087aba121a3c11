//! What a container has in its upperdir, and what it does.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::container::{Target, process};
use snapshot_engine::demo::{Seed, fill};

use super::group;
use super::room::BUSYBOX;

/// How long a container may take until all its tasks are there.
const START: Duration = Duration::from_secs(30);

/// The shape of a container. The default has an empty upperdir, one task, and does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layer {
    /// Files below `/data`, in directories of a hundred.
    pub files: u32,
    /// Their bytes together, incompressible.
    pub bytes: u64,
    /// Processes that sleep, besides the init, which sleeps too.
    pub tasks: u32,
    /// What else it does.
    pub load: Load,
}

/// A writer's load, made by the container's own shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Load {
    /// None.
    #[default]
    Idle,
    /// Appends a line to one file about 100 times a second.
    Log,
    /// So many processes that overwrite 16 MiB each, 4 KiB a call, one after the other.
    Flat(u32),
}

impl Layer {
    /// The container's command. Its shell becomes a `sleep` as soon as it has started the others.
    pub(super) fn command(&self) -> Vec<String> {
        let tasks = self.tasks;
        let load = match self.load {
            Load::Idle => String::new(),
            Load::Log => format!(
                "while :; do echo 'the quick brown fox jumps over the lazy dog'; {BUSYBOX} usleep 10000; done >>/data/log &"
            ),
            Load::Flat(writers) => format!(
                "w=0; while [ $w -lt {writers} ]; do w=$((w + 1)); while :; do \
                 {BUSYBOX} dd if=/dev/zero of=/data/flat-$w bs=4k count=4096 conv=notrunc 2>/dev/null; done & done;"
            ),
        };
        let sleep = format!("{BUSYBOX} sleep 2147483");
        let script =
            format!("t=0; while [ $t -lt {tasks} ]; do t=$((t + 1)); {sleep} & done\n{load}\nexec {sleep}");
        [BUSYBOX, "sh", "-c", &script].map(str::to_owned).to_vec()
    }

    /// Fails for shapes that no container can have.
    ///
    /// # Errors
    /// When there are bytes and no file to hold them.
    pub fn check(&self) -> Result<()> {
        ensure!(self.files > 0 || self.bytes == 0, "{} bytes need at least one file", self.bytes);
        Ok(())
    }

    /// The container in this cgroup as the engine finds it once all it starts has started, its layer written through its own root, and
    /// written back: no operation pays for what was written before it.
    pub(super) fn arrive(&self, cgroup: &str) -> Result<Target> {
        let init = group::init(cgroup)?;
        let asleep = format!("{BUSYBOX}\0sleep\0").into_bytes();
        let deadline = Instant::now() + START;
        while !fs::read(process::dir(init).join("cmdline"))?.starts_with(&asleep) {
            ensure!(process::is_alive(init, None), "the container's first process has ended");
            ensure!(Instant::now() < deadline, "the container has not started all its tasks in {START:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let target = Target::of_process(init)?;
        fill(&process::root(init).join("data"), &Seed { files: self.files, bytes: self.bytes })
            .context("writing the layer through the container's root")?;
        write_back(&target)?;
        Ok(target)
    }
}

/// Brings the upperdir's file system to disk.
pub(super) fn write_back(target: &Target) -> Result<()> {
    let path = &target.overlay.upper;
    let upper = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(rustix::fs::syncfs(&upper)?)
}
