//! A runtime in a room of its own (see `snapshot_benches::peers`), its containers by its own commands, and the engine as it looks in from outside.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use snapshot_benches::peers::{self, Layer, Peer, Running};
use snapshot_engine::container::{Found, Places, Target, find, process};
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::{root, unique};
use snapshot_tests::engine::{self, Ended};

/// The image of the peers' containers.
pub(crate) const IMAGE: &str = "localhost/snapshot-peer:latest";

/// Appends numbers to one file, each line whole or not there.
pub(crate) const COUNTING: &str =
    "i=0; while :; do i=$((i + 1)); echo line-$i >>/data/log; /bin/busybox usleep 2000; done";

/// Packages' own programs first: a client of another version than its daemon may lie in `/usr/local`.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// A runtime, the namespaces that hold it, and a directory for the engine.
pub(crate) struct House {
    // Dropped in this order: what is in the room, the room, what lies on disk.
    clients: Vec<Client>,
    container: Box<dyn Running>,
    _peer: Box<dyn Peer>,
    pub(crate) place: Place,
    /// Who started the first container: it lives in the room's namespaces.
    pub(crate) witness: Pid,
}

/// A directory for one test, on a file system that can hold an upperdir.
pub(crate) struct Place(pub(crate) PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Only if it is empty: others may be at work there.
        let _ = fs::remove_dir("/var/lib/snapshot-engine");
    }
}

/// A program in the room that runs until it is dropped.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl House {
    /// The runtime by this name, unless the machine lacks it: then the test says so. `cargo xtask test --tier runtimes` installs them all, and then one that
    /// is missing is a failure.
    pub(crate) fn open(name: &'static str) -> Result<Option<House>> {
        if !root() {
            return Ok(None);
        }
        let place = Place(Path::new("/var/lib/snapshot-engine").join(unique("runtimes-test")));
        fs::create_dir_all(&place.0)?;
        let peer = match peers::one(name, &place.0, None) {
            Ok(peer) => peer,
            Err(absent) => {
                let all = std::env::var_os("SNAPSHOT_REQUIRE_RUNTIMES").is_some();
                ensure!(!all, "{name} is absent: {}", absent.reason);
                skip(name, &absent.reason);
                return Ok(None);
            }
        };
        let container = peer.start(&Layer::default())?;
        let witness = process::stat(container.target().init)?.parent;
        Ok(Some(House { clients: Vec::new(), container, _peer: peer, place, witness }))
    }

    /// A program in the room.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", &self.witness.to_string(), "--"]).args(words);
        command.env_clear().env("PATH", PATH).env("HOME", &self.place.0).stdin(Stdio::null());
        command.current_dir(&self.place.0);
        command
    }

    /// Runs one to its end. What it prints, trimmed.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = self.command(words);
        // The inits of containers inherit what their runtime has: a pipe would be waited for until they end.
        let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
        let status = command.stdout(out.reopen()?).stderr(err.reopen()?).status()?;
        let said = fs::read_to_string(out.path())?;
        ensure!(status.success(), "{words:?}: {status}: {said}{}", fs::read_to_string(err.path())?);
        Ok(said.trim().to_owned())
    }

    /// The same with the words of one line.
    pub(crate) fn line(&self, line: &str) -> Result<String> {
        self.run(&line.split(' ').collect::<Vec<_>>())
    }

    /// Starts a program that runs until the house is dropped.
    pub(crate) fn keep(&mut self, line: &str) -> Result<()> {
        let mut command = self.command(&line.split(' ').collect::<Vec<_>>());
        self.clients.push(Client(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
        Ok(())
    }

    /// The room's cgroup for one more container: everything below it ends with the room.
    pub(crate) fn cgroup(&self, name: &str) -> Result<String> {
        let file = process::dir(self.container.target().init).join("cgroup");
        let text = fs::read_to_string(file)?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
        let top = path.split('/').next().unwrap_or_default();
        Ok(format!("/{top}/{name}"))
    }

    /// Starts a container named `name` by the command line that docker and podman have in common, with more options. What it prints: the id.
    pub(crate) fn docker_like(
        &self,
        program: &str,
        name: &str,
        options: &[&str],
        script: &str,
    ) -> Result<String> {
        let parent = format!("--cgroup-parent={}", self.cgroup(name)?);
        let run = [program, "run", "--detach", "--network=none", "--name", name, &parent];
        self.run(&[&run[..], options, &[IMAGE, "/bin/busybox", "sh", "-c", script]].concat())
    }

    /// The same by `ctr`.
    pub(crate) fn ctr(&self, name: &str, options: &[&str], script: &str) -> Result<String> {
        let cgroup = self.cgroup(name)?;
        // It would ask for a weight, for which a version 2 hierarchy without controllers has no file.
        let run = ["ctr", "run", "--detach", "--null-io", "--cpu-shares", "0", "--cgroup", &cgroup];
        self.run(&[&run[..], options, &[IMAGE, name, "/bin/busybox", "sh", "-c", script]].concat())
    }

    /// The init of the first container.
    pub(crate) fn init(&self) -> Pid {
        self.container.target().init
    }

    /// Where the engine looks for this runtime.
    pub(crate) fn places(&self) -> Places {
        Places::usual(Some(self.witness))
    }

    /// What a reference means.
    pub(crate) fn find(&self, reference: &str) -> Result<Found> {
        Ok(find(&reference.parse()?, &self.places())?)
    }

    /// A container that must run.
    pub(crate) fn running(&self, reference: &str) -> Result<Target> {
        match self.find(reference)? {
            Found::Running(target) => Ok(*target),
            Found::Stopped(stopped) => anyhow::bail!("it does not run: {stopped:?}"),
        }
    }

    /// The engine's command, told to look in here.
    pub(crate) fn engine(&self, words: &[&str]) -> Result<Ended> {
        let witness = self.witness.to_string();
        engine::run(words.iter().copied().chain(["--runtimes-of", &witness]))
    }

    /// Commits a container; the result as JSON.
    pub(crate) fn commit(&self, container: &str, tag: &str) -> Result<serde_json::Value> {
        let (target, work) =
            (format!("oci:{}:{tag}", self.place.0.join("images").display()), self.place.0.join("work"));
        fs::create_dir_all(&work)?;
        let work = work.to_string_lossy().into_owned();
        let words = ["seamless-commit", "--container", container, "--target", &target, "--work-dir", &work];
        let words = [&words[..], &["--wait", "--max-pause", "100ms", "--output", "json"]].concat();
        self.engine(&words)?.must_succeed()?.json()
    }
}

/// Says that a runtime was not tried, to whoever runs the tests: what a test prints by the macros is shown only if it fails.
pub(crate) fn skip(name: &str, why: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {name}: {why}");
}

/// The frozen upperdir of a result.
pub(crate) fn frozen(result: &serde_json::Value) -> Result<PathBuf> {
    Ok(result["old_upper_dir"].as_str().context("no frozen upperdir")?.into())
}
