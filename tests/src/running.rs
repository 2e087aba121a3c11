//! Demo containers for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use snapshot_engine::demo::{self, Demo, Seed, StartOptions, Tickers};

/// A demo that is stopped whatever happens.
pub struct Running {
    /// The demo.
    pub demo: Demo,
    tickers: Tickers,
}

impl Running {
    /// Starts a demo; `program` is the helper that becomes its init. The workload needs a ticker for [`Running::goes_on`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &str, name: &str, workload: &str, seed: Seed) -> Result<Running> {
        Running::start_in(program, name, workload, seed, None)
    }

    /// The same with its layers below a directory.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_in(
        program: &str,
        name: &str,
        workload: &str,
        seed: Seed,
        layers_root: Option<&Path>,
    ) -> Result<Running> {
        let mut options = StartOptions::new(&format!("{name}-{}", std::process::id()));
        options.program = Some(PathBuf::from(program));
        options.workload = workload.parse()?;
        options.seed = seed;
        if let Some(root) = layers_root {
            options.layers_root = root.to_owned();
        }
        // A test of the same process id that was killed.
        let _ = demo::stop(&options.name);
        let demo = demo::start(&options)?;
        match demo::tickers(&options.name) {
            Ok(tickers) => Ok(Running { demo, tickers }),
            Err(e) => {
                let _ = demo::stop(&options.name);
                Err(e.into())
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.demo.name()
    }

    /// Its init.
    ///
    /// # Errors
    /// When it is dead.
    pub fn init(&self) -> Result<u32> {
        Ok(self.demo.init().context("the demo is dead")?.0)
    }

    /// Its version 2 cgroup.
    ///
    /// # Errors
    /// When the host has none.
    pub fn cgroup(&self) -> Result<&Path> {
        self.demo.state.cgroup_v2.as_deref().context("no cgroup2 here")
    }

    /// Whether its cgroup is frozen, as its tasks are and not only as somebody wished.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn frozen(&self) -> Result<bool> {
        let events = fs::read_to_string(self.cgroup()?.join("cgroup.events"))?;
        Ok(events.lines().any(|line| line == "frozen 1"))
    }

    /// Freezes or thaws it, as its owner.
    ///
    /// # Errors
    /// When it does not come about within a second.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        fs::write(self.cgroup()?.join("cgroup.freeze"), if freeze { "1" } else { "0" })?;
        let began = Instant::now();
        while self.frozen()? != freeze {
            ensure!(began.elapsed() < Duration::from_secs(1), "the freezer does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Its tickers make progress within a second, 30 ticks each, and nobody wishes it frozen.
    ///
    /// # Errors
    /// When it is frozen, held, dead, or far too slow.
    pub fn goes_on(&self) -> Result<()> {
        let count = || self.tickers.reports().iter().map(|r| r.count).collect::<Vec<u64>>();
        let (before, began) = (count(), Instant::now());
        ensure!(!before.is_empty(), "the workload has no ticker");
        while !count().iter().zip(&before).all(|(now, before)| *now >= before + 30) {
            ensure!(
                began.elapsed() < Duration::from_secs(1),
                "no progress in a second: {before:?} ticks, now {:?}; frozen: {}",
                count(),
                self.frozen()?
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let wish = fs::read_to_string(self.cgroup()?.join("cgroup.freeze"))?;
        ensure!(wish.trim() == "0" && !self.frozen()?, "it is or will be frozen: {wish}");
        Ok(())
    }

    /// Its mounts, as its init sees them.
    ///
    /// # Errors
    /// When it is dead.
    pub fn mounts(&self) -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/mountinfo", self.init()?))?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(e) = demo::stop(self.demo.name()) {
            eprintln!("{e}");
        }
    }
}
