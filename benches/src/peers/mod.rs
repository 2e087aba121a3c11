//! The peers: other ways on this machine to stop a container and keep its writable layer, each started privately and driven as its users
//! drive it, by its own command line.
//!
//! ```text
//!   all(place) -> a peer each, or why it is absent          rooms opened, daemons started
//!     peer.start(layer) -> a running container              its upperdir filled through its own root
//!       running.perform("docker commit") -> wall, phases    what it made is removed again, outside of the time
//! ```
//!
//! | file | what |
//! |---|---|
//! | `room` | private namespaces that hold a whole runtime, and their end |
//! | `group` | the cgroups of a room |
//! | `image` | a root of busybox, made without a network |
//! | `layer` | what a container has in its upperdir and does |
//! | `contained` | a container whose operations are command lines |
//! | `limited` | the end of a command that does not end |
//! | `docker`, `podman`, `containerd`, `runc`, `freezer` | one peer each |
//!
//! Containers and peers may be dropped in any order. Each container removes itself; with a room's last user everything of the runtime is gone.

mod contained;
mod containerd;
mod docker;
mod freezer;
mod group;
pub mod image;
mod layer;
mod limited;
mod podman;
mod room;
mod runc;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use snapshot_engine::container::Target;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::pid::Pid;

pub use layer::{Layer, Load};
pub use room::Cgroups;

/// A way to stop a container.
pub trait Peer: Send {
    /// `docker`, `podman` ...
    fn name(&self) -> &'static str;

    /// As it says itself.
    fn version(&self) -> &str;

    /// Starts a container and fills it. On an error nothing of it is left.
    ///
    /// # Errors
    /// When the runtime refuses, or the layer cannot be written.
    fn start(&self, layer: &Layer) -> Result<Box<dyn Running>>;
}

/// A running container of a peer. It is removed on drop.
pub trait Running: Send {
    /// Its init, cgroups and upperdir, as the engine itself finds them.
    fn target(&self) -> &Target;

    /// What can be done to it, by the names that [`Running::perform`] takes.
    fn operations(&self) -> Vec<&'static str>;

    /// Does it once. The container runs on return, with an error too if the runtime can be brought to it.
    ///
    /// # Errors
    /// When there is no such operation, or it fails.
    fn perform(&mut self, operation: &str) -> Result<Took>;
}

/// How long an operation took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Took {
    /// When the first command was started, on the clock of [`snapshot_engine::demo::ticks::now_ns`].
    pub from: Nanos,
    /// From the start of its first command to the end of its last: not the stop that the container felt, which is shorter.
    pub wall: Duration,
    /// Its parts in order, where they can be told from outside; otherwise one part, the whole.
    pub phases: Vec<(&'static str, Duration)>,
}

/// A peer that cannot take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Its name.
    pub name: &'static str,
    /// Why, and what to do.
    pub reason: String,
}

/// The names of all peers, in the order of [`all`].
pub const NAMES: [&str; 5] = [docker::NAME, podman::NAME, containerd::NAME, runc::NAME, freezer::NAME];

/// Every peer, started, or why it is absent. What earlier runs have left that were killed is removed first.
///
/// Whatever the peers keep goes to directories of their own below `place`, which is made and must be able to hold an upperdir; their sockets
/// and locks are in memory that only they see. `init` is a program whose `main` calls [`snapshot_engine::demo::init_if_asked`]; `None`: this one.
#[must_use]
pub fn all(place: &Path, init: Option<&Path>) -> Vec<Result<Box<dyn Peer>, Absent>> {
    NAMES.into_iter().map(|name| one(name, place, init)).collect()
}

/// One peer by its name; see [`all`]. `docker-store` is docker with its containerd image store, which is not among them.
///
/// # Errors
/// Why it is absent.
pub fn one(name: &'static str, place: &Path, init: Option<&Path>) -> Result<Box<dyn Peer>, Absent> {
    one_with(name, place, init, Cgroups::AsHost)
}

/// The same with other cgroups: those of its room, so that they mean nothing to one that has none.
///
/// # Errors
/// Why it is absent.
pub fn one_with(
    name: &'static str,
    place: &Path,
    init: Option<&Path>,
    cgroups: Cgroups,
) -> Result<Box<dyn Peer>, Absent> {
    let peer = match name {
        docker::NAME => docker::start(place, cgroups),
        docker::WITH_STORE => docker::start_with_store(place, cgroups),
        podman::NAME => podman::start(place, cgroups),
        containerd::NAME => containerd::start(place, cgroups),
        runc::NAME => runc::start(place, cgroups),
        freezer::NAME => freezer::start(place, init),
        _ => Err(anyhow::anyhow!("there is no such peer: {}", NAMES.join(", "))),
    };
    peer.map_err(|e| Absent { name, reason: format!("{e:#}") })
}

/// Where programs are looked for. Packages' own come first: a client of another version than its daemon may lie in `/usr/local`.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// A program in the namespaces of a room, by a process that lives there, with nothing of our environment; `home` is its directory.
#[must_use]
pub fn inside(witness: Pid, home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--pid", "--target", &witness.to_string(), "--"]).args(words);
    command.env_clear().env("PATH", PATH).env("HOME", home).current_dir(home).stdin(Stdio::null());
    command
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(PATH).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Fails unless all of these programs are there.
fn need(programs: &[&str]) -> Result<()> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| which(program).is_none()).collect();
    anyhow::ensure!(
        missing.is_empty(),
        "not installed: {} (`cargo xtask bench peers` installs it where apt has it)",
        missing.join(", ")
    );
    Ok(())
}

/// The version in the first line that a program prints when asked for it.
fn version_in(text: &str) -> String {
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let mut numbers = words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    numbers.next().unwrap_or("unknown").trim_end_matches(',').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_the_runtimes_print() {
        for (text, version) in [
            ("Docker version 20.10.24+dfsg1, build 297e128", "20.10.24+dfsg1"),
            ("podman version 4.3.1\n", "4.3.1"),
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", "1.6.20~ds1"),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5", "1.1.5+ds1"),
            ("", "unknown"),
        ] {
            assert_eq!(version_in(text), version);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let text = need(&["sh", "no-such-runtime"]).unwrap_err().to_string();
        assert!(
            text.contains("no-such-runtime") && !text.contains("sh,") && text.contains("xtask"),
            "{text}"
        );
        let absent = one("nothing", Path::new("/nowhere"), None).err().unwrap();
        assert!(absent.reason.contains("docker, podman"), "{}", absent.reason);
    }
}
