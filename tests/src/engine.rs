//! The real binary as a process.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// No command of a test takes this long: one that does hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: `$SNAPSHOT_ENGINE`, or the one of this build, which is built if need be.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(given) = std::env::var_os("SNAPSHOT_ENGINE") {
            return given.into();
        }
        let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "snapshot-engine", "--bins"])
            .args(release)
            .status();
        assert!(built.is_ok_and(|status| status.success()), "the engine does not build");
        // target/debug/deps/kill-.. -> target/debug/snapshot-engine
        let test = std::env::current_exe().unwrap_or_default();
        test.ancestors().nth(2).unwrap_or(Path::new("/")).join("snapshot-engine")
    })
}

/// A command of the engine that takes nothing from our environment.
pub fn engine<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    clean(&mut command);
    command
}

fn clean(command: &mut Command) {
    command.env_remove("SNAPSHOT_ENGINE_WORK_DIR").env_remove("RUST_LOG").stdin(Stdio::null());
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it said.
    pub stdout: String,
    /// What it had to complain about.
    pub stderr: String,
}

impl Ended {
    /// The exit code is this one and every text is in stderr.
    ///
    /// # Errors
    /// With all there is to know, if not.
    pub fn must_fail(&self, code: i32, texts: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "exit code {:?} instead of {code}: {self:#?}", self.code);
        for text in texts {
            ensure!(self.stderr.contains(text), "{text:?} is not said: {self:#?}");
        }
        Ok(())
    }

    /// It succeeded; returns itself.
    ///
    /// # Errors
    /// With what it said, if not.
    pub fn must_succeed(self) -> Result<Ended> {
        ensure!(self.code == Some(0), "{self:#?}");
        Ok(self)
    }

    /// Its result as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("{self:#?}"))
    }
}

/// A started command. Killed when dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Started {
    /// Starts a command; what it says goes to files, so that nobody who inherits them keeps us waiting.
    ///
    /// # Errors
    /// As `execve(2)`.
    pub fn new(command: &mut Command) -> Result<Started> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = command
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Started { child, stdout, stderr })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL. True if it was still running.
    ///
    /// # Errors
    /// As `kill(2)`.
    pub fn kill(&mut self) -> Result<bool> {
        let running = self.child.try_wait()?.is_none();
        if running {
            self.child.kill()?;
        }
        Ok(running)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it takes longer than [`PATIENCE`].
    pub fn end(mut self) -> Result<Ended> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(began.elapsed() < PATIENCE, "process {} does not end", self.pid());
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = |file: &mut File| -> Result<String> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Ended { code: status.code(), stdout: text(&mut self.stdout)?, stderr: text(&mut self.stderr)? })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the engine to its end.
///
/// # Errors
/// When it cannot be started or does not end.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Ended> {
    Started::new(&mut engine(args))?.end()
}

/// The engine, started by another program that changes what it may or sees: `wrapper ARGS.. ENGINE args..`.
///
/// # Errors
/// When it cannot be started or does not end.
pub fn run_under(wrapper: &[&str], args: &[&str]) -> Result<Ended> {
    let (program, first) = wrapper.split_first().context("a wrapper is needed")?;
    let mut command = Command::new(program);
    command.args(first).arg(binary()).args(args);
    clean(&mut command);
    Started::new(&mut command)?.end()
}

/// What `list` shows of a work directory.
///
/// # Errors
/// When it fails.
pub fn list(work_dir: &Path) -> Result<Vec<Value>> {
    let text = work_dir.to_string_lossy();
    let ended = run(["list", "--output", "json", "--work-dir", &text])?.must_succeed()?;
    Ok(ended.json()?["snapshots"].as_array().cloned().unwrap_or_default())
}

/// Waits until the background has completed a snapshot; returns its last status.
///
/// # Errors
/// When it failed, was interrupted, or takes longer than [`PATIENCE`].
pub fn until_completed(work_dir: &Path, id: &str) -> Result<Value> {
    let began = Instant::now();
    loop {
        let text = work_dir.to_string_lossy();
        let status = run(["status", id, "--output", "json", "--work-dir", &text])?.must_succeed()?.json()?;
        if status["state"] == "completed" {
            return Ok(status);
        }
        ensure!(status["state"] != "failed" && status["interrupted"] == false, "{status:#}");
        ensure!(began.elapsed() < PATIENCE, "not completed: {status:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
