//! A container with writers in it, and the checker of what they do.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use snapshot_engine::container::Target;
use snapshot_engine::demo::{self, Seed, StartOptions, Workload};
use snapshot_engine::freeze::reader::now;

use super::check::{Checker, Span};
use super::log::{self, Log};
use super::lower;
use super::op::HOME;
use super::post;
use super::view::{self, Mounted};
use super::writer::{Crew, Process};
use crate::bench::{Disk, Running, slack, unique};

/// A container at work.
#[derive(Debug)]
pub struct Scene {
    processes: Vec<Process>,
    demo: Running,
    threads: u64,
    place: PathBuf,
    /// Judges frozen trees.
    pub checker: Checker,
}

impl Scene {
    /// Starts a container on a disk with a crew in it, and returns when each thread has done something. `program` is the one that calls
    /// `init_if_asked` and `write_if_asked`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &Path, disk: &Disk, crew: &Crew, redirect_dir: bool) -> Result<Scene> {
        let place = disk.path().join(unique("scene"));
        fs::create_dir(&place)?;
        let trees: Vec<_> = (0..crew.threads).map(|t| crew.tree(t)).collect();
        let top = place.join("top");
        fs::create_dir(&top)?;
        lower::build(&trees, &top).context("cannot make the lower layer")?;
        let mut options = StartOptions::new(&unique("torture"));
        options.program = Some(program.to_owned());
        options.layers_root = place.join("layers");
        options.workload = Workload::idle();
        options.seed = Seed { files: 2, bytes: 2 << 10 };
        options.lowers = 1;
        options.top = Some(top);
        options.redirect_dir = redirect_dir;
        let demo = Running(demo::start(&options)?);

        let memory = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile())?;
        memory.set_len(log::bytes(crew.threads))?;
        let log = Log::map(&memory, crew.threads)?;
        let checker = Checker::new(crew.seed, crew.kinds.clone(), log.clone(), trees);
        let mut scene = Scene { processes: Vec::new(), demo, threads: crew.threads, place, checker };
        scene.crew(program, &memory, crew)?;
        let began = Instant::now();
        while (0..crew.threads).any(|t| log.done(t) < 3) {
            scene.alive()?;
            if began.elapsed() > Duration::from_secs(60) * slack() {
                bail!("the writers do not start");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(scene)
    }

    fn crew(&mut self, program: &Path, memory: &File, crew: &Crew) -> Result<()> {
        let (cgroup, init) = (self.demo.cgroup()?, self.demo.0.init().context("the container is dead")?.0);
        let each = crew.each();
        let mut first = 0;
        while first < crew.threads {
            let count = each.min(crew.threads - first);
            let process = Process::start(program, &cgroup, init, memory, crew, (first, count))?;
            self.processes.push(process);
            first += count;
        }
        Ok(())
    }

    /// All writers are at work.
    ///
    /// # Errors
    /// When one has ended, which they never do by themselves.
    pub fn alive(&mut self) -> Result<()> {
        if self.processes.iter_mut().all(Process::runs) {
            Ok(())
        } else {
            bail!("a process of writers has ended")
        }
    }

    /// The container.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn target(&self) -> Result<Target> {
        self.demo.target()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.demo.0.name()
    }

    /// A directory of its own on the disk, outside the container.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Judges the live tree while everybody stands still: if it does not fit, the model is wrong and not the engine. The inner result is the verdict.
    ///
    /// # Errors
    /// When the container cannot be frozen.
    pub fn audit(&mut self) -> Result<Result<(), String>> {
        let control = self.demo.cgroup()?.join("cgroup.freeze");
        fs::write(&control, "1")?;
        let began = Instant::now();
        self.processes.iter().try_for_each(|process| process.hold(true))?;
        let still = |scene: &Scene| scene.demo.frozen() && scene.processes.iter().all(Process::stands_still);
        while !still(self) && began.elapsed() < Duration::from_secs(10) * slack() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let from = now();
        let seen = self.demo.root().map(|root| view::of_tree(&root.join(HOME), self.threads));
        let to = now();
        fs::write(&control, "0")?;
        self.processes.iter().try_for_each(|process| process.hold(false))?;
        Ok(match seen? {
            Ok(seen) => self.checker.judge(&seen, (from, to)),
            Err(e) => Err(format!("the live tree cannot be read: {e}")),
        })
    }

    /// Judges the frozen upperdir at `frozen`, cut within `window`, and removes it. The inner result is the verdict.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn judge(&mut self, frozen: &Path, window: Span) -> Result<Result<(), String>> {
        let lowers = self.target()?.overlay.lowers;
        let mounted = Mounted::new(frozen, &lowers, &self.place.join("view"))?;
        let seen = view::of_tree(&mounted.path().join(HOME), self.threads);
        drop(mounted);
        fs::remove_dir_all(frozen)?;
        Ok(match seen {
            Ok(seen) => self.checker.judge(&seen, window),
            Err(e) => Err(format!("the tree cannot be read: {e}")),
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.processes.clear();
        if let Ok(cgroup) = self.demo.cgroup() {
            let _ = post::clean(&cgroup);
        }
        let _ = demo::stop(self.demo.0.name());
        let _ = fs::remove_dir_all(&self.place);
    }
}
