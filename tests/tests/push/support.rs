//! A container, a directory, and the engine's command for the tests of pushing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snapshot_engine::demo::Seed;
use snapshot_tests::engine::{self, Ended, Started, engine};
use snapshot_tests::host;
use snapshot_tests::registry::Registry;
use snapshot_tests::running::Running;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const BUSY: &str = "log=1:light,write-tick";

/// A container, and a directory for everything of a test.
pub(crate) struct Lab {
    pub(crate) demo: Running,
    dir: tempfile::TempDir,
    programs: std::collections::BTreeSet<u32>,
}

impl Lab {
    pub(crate) fn new(name: &str, bytes: u64) -> Result<Lab> {
        let programs = host::programs();
        let demo = Running::start(INIT, name, BUSY, Seed { files: 40, bytes })?;
        let dir = tempfile::Builder::new().prefix("snapshot-push-").tempdir()?;
        fs::create_dir(dir.path().join("home"))?;
        Ok(Lab { demo, dir, programs })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn work(&self) -> String {
        self.path("work").display().to_string()
    }

    /// A command of the engine for whom there are no credentials on this machine.
    pub(crate) fn command(&self, words: &[&str], more: &[&str]) -> Command {
        let mut command = engine(words.iter().chain(more));
        command.args(["--work-dir", &self.work(), "--output", "json"]);
        for variable in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command.env("HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.path("home"));
        command
    }

    pub(crate) fn run(&self, words: &[&str], more: &[&str]) -> Result<Ended> {
        Started::new(&mut self.command(words, more))?.end()
    }

    pub(crate) fn commit(&self, target: &str, more: &[&str]) -> Result<Ended> {
        self.run(&["commit", self.demo.name(), target, "--max-pause", "50ms"], more)
    }

    /// What is known of the only snapshot.
    pub(crate) fn only(&self) -> Result<Value> {
        let mut all = engine::list(Path::new(&self.work()))?;
        ensure!(all.len() == 1, "{all:#?}");
        all.pop().context("just counted")
    }

    pub(crate) fn end(self) -> Result<()> {
        self.demo.goes_on()?;
        host::must_be_clean(&self.programs, self.dir.path())
    }
}

/// Pulls an image and looks at all of it.
pub(crate) fn must_be_whole(lab: &Lab, registry: &Registry, name: &str, digest: &Value) -> Result<()> {
    let layout = lab.path("pulled");
    registry.pull(name, &format!("oci:{}:back", layout.display()))?;
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    ensure!(index["manifests"][0]["digest"] == *digest, "{index:#}, and not {digest}");
    let image = format!("oci:{}:back", layout.display());
    engine::run(["image", "check", &image])?.must_succeed()?;
    fs::remove_dir_all(layout)?;
    Ok(())
}
