//! A runtime in a room of its own (see `snapshot_benches::peers`), its containers by its own commands, and the engine as it looks in from outside.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use snapshot_benches::peers::{self, Cgroups, Layer, Peer, Running};
use snapshot_engine::container::cgroup::{Hierarchies, members};
use snapshot_engine::container::{Found, Places, Target, find, process};
use snapshot_engine::kernel::enclosure;
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::{root, unique};
use snapshot_tests::engine::{self, Ended};
use snapshot_tests::everything::Mount;
use snapshot_tests::inside::User;
use snapshot_tests::layered::overlay;
use snapshot_tests::registry::Registry;

use super::kinds::Image;

/// The image of the peers' containers.
pub(crate) const IMAGE: &str = "localhost/snapshot-peer:latest";

/// Appends numbers to one file, each line whole or not there.
pub(crate) const COUNTING: &str =
    "i=0; while :; do i=$((i + 1)); echo line-$i >>/data/log; /bin/busybox usleep 2000; done";

/// In hybrid mode it refuses to work as long as the version 2 hierarchy has a controller, so it does not get to see that hierarchy.
pub(crate) const CRUN: [&str; 7] = [
    "unshare",
    "--mount",
    "/bin/busybox",
    "sh",
    "-c",
    "/bin/busybox umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"",
    "crun",
];

/// What all containers that are started from a bundle have in their environment.
pub(crate) const MARK: &str = "MARK=origin";

/// A runtime, the namespaces that hold it, and a directory for the engine.
pub(crate) struct House {
    // Dropped in this order: what is in the room, the room, what lies on disk.
    clients: Vec<Client>,
    container: Box<dyn Running>,
    _peer: Box<dyn Peer>,
    cgroups: Cgroups,
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
        House::open_with(name, Cgroups::AsHost)
    }

    /// The same with other cgroups, for the runtime and for the engine's command.
    pub(crate) fn open_with(name: &'static str, cgroups: Cgroups) -> Result<Option<House>> {
        if !root() {
            return Ok(None);
        }
        let place = Place(Path::new("/var/lib/snapshot-engine").join(unique("runtimes-test")));
        fs::create_dir_all(&place.0)?;
        let peer = match peers::one_with(name, &place.0, None, cgroups) {
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
        Ok(Some(House { clients: Vec::new(), container, _peer: peer, cgroups, place, witness }))
    }

    /// A program in the room.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        peers::inside(self.witness, &self.place.0, words)
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
        self.docker_like_of(IMAGE, program, name, options, &shell(script))
    }

    /// The same of another image (or of what the last option says it is), with any command; none is the image's own.
    pub(crate) fn docker_like_of(
        &self,
        image: &str,
        program: &str,
        name: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<String> {
        let parent = format!("--cgroup-parent={}", self.cgroup(name)?);
        let run = [program, "run", "--detach", "--network=none", "--name", name, &parent];
        self.run(&[&run[..], options, &[image], command].concat())
    }

    /// The same by `ctr`.
    pub(crate) fn ctr(&self, name: &str, options: &[&str], script: &str) -> Result<String> {
        self.ctr_of(IMAGE, name, options, &shell(script))
    }

    /// The same of another image (or of what the last option says it is), with any command; none is the image's own.
    pub(crate) fn ctr_of(
        &self,
        image: &str,
        name: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<String> {
        let cgroup = self.cgroup(name)?;
        // It would ask for a weight, for which a version 2 hierarchy without controllers has no file.
        let run = ["ctr", "run", "--detach", "--null-io", "--cpu-shares", "0", "--cgroup", &cgroup];
        self.run(&[&run[..], options, &[image, name], command].concat())
    }

    /// The peers' image.
    pub(crate) fn image(&self) -> Result<Image> {
        let lowers = &self.container.target().overlay.lowers;
        Ok(Image { name: IMAGE, root: lowers.last().context("no image")?.clone() })
    }

    /// A root of its own for a container named `name`: an overlay in the room, on the image's files.
    pub(crate) fn overlay(&self, name: &str) -> Result<PathBuf> {
        self.overlay_on(&self.image()?.root, name)
    }

    /// The same on a directory.
    pub(crate) fn overlay_on(&self, lower: &Path, name: &str) -> Result<PathBuf> {
        let dir = self.place.0.join(name);
        for part in ["upper", "work", "merged"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let path = |part: &str| dir.join(part).display().to_string();
        let (lower, upper, work) = (lower.display(), path("upper"), path("work"));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        self.run(&["/bin/busybox", "mount", "-t", "overlay", "-o", &options, "overlay", &path("merged")])?;
        Ok(dir.join("merged"))
    }

    /// Starts a container on that root by runc, crun or a wrapper of theirs.
    pub(crate) fn bundle(&self, runtime: &[&str], name: &str, root: &Path, command: &[&str]) -> Result<()> {
        self.bundle_as(User::ROOT, runtime, name, root, command)
    }

    /// The same as another user.
    pub(crate) fn bundle_as(
        &self,
        user: User,
        runtime: &[&str],
        name: &str,
        root: &Path,
        command: &[&str],
    ) -> Result<()> {
        let dir = self.place.0.join(name);
        fs::create_dir_all(&dir)?;
        self.run(&["/bin/busybox", "sh", "-c", &format!("cd {} && runc spec", dir.display())])?;
        let file = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let process = config["process"].as_object_mut().context("no process")?;
        process.insert("terminal".into(), json!(false));
        process.insert("args".into(), json!(command));
        process.insert("user".into(), json!({ "uid": user.uid, "gid": user.gid }));
        process.remove("rlimits");
        config["process"]["env"].as_array_mut().context("no environment")?.push(json!(MARK));
        config["root"] = json!({ "path": root, "readonly": false });
        let linux = config["linux"].as_object_mut().context("no linux")?;
        linux.insert("cgroupsPath".into(), json!(self.cgroup(name)?));
        // crun raises the limit on locked memory for its program for devices, which takes CAP_SYS_RESOURCE.
        linux.remove("resources");
        fs::write(&file, serde_json::to_vec(&config)?)?;
        self.run(&[runtime, &["run", "--detach", "--bundle", &dir.to_string_lossy(), name]].concat())
            .map(drop)
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
        self.engine_alone(&[words, &["--runtimes-of", &witness]].concat())
    }

    /// The engine's command, outside. It sees the same cgroups as the room.
    pub(crate) fn engine_alone(&self, words: &[&str]) -> Result<Ended> {
        match &self.wrapper()[..] {
            [] => engine::run(words),
            wrapper => engine::run_under(&wrapper.iter().map(String::as_str).collect::<Vec<_>>(), words),
        }
    }

    /// What runs a command so that it sees the same cgroups as the room.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        if self.cgroups == Cgroups::AsHost {
            return Vec::new();
        }
        let script = format!("{} && exec \"$@\"", self.cgroups.commands());
        let unshare = ["unshare", "--mount", "--propagation", "private"];
        let shell = ["/bin/busybox", "sh", "-c", &script, "engine"];
        unshare.into_iter().chain(shell).map(str::to_owned).collect()
    }

    /// The first process of the container with this name, by its cgroup: also of one whose root is no overlay.
    pub(crate) fn init_of(&self, name: &str) -> Result<Pid> {
        let Hierarchies { v2, freezer_v1 } = Hierarchies::find()?;
        let path = self.cgroup(name)?;
        let dirs = v2.into_iter().chain(freezer_v1).map(|(point, _)| point.join(&path[1..]));
        let first = |pid: &Pid| {
            let status = fs::read_to_string(process::dir(*pid).join("status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            numbers.split_whitespace().next_back() == Some("1")
        };
        let mut members = dirs.filter(|dir| dir.is_dir()).filter_map(|dir| members(&dir).ok()).flatten();
        members.find(first).with_context(|| format!("{name} does not run"))
    }

    /// Commits a container that is at work to a registry; the result as JSON.
    pub(crate) fn push(
        &self,
        container: &str,
        registry: &Registry,
        image: &str,
        format: &str,
        gate: &str,
    ) -> Result<Value> {
        let target = format!("{}/{image}", registry.host());
        let work = self.place.0.join(format!("work-{format}"));
        fs::create_dir_all(&work)?;
        let work = work.display().to_string();
        let words = ["commit", container, &target, "--format", format, "--gate", gate, "--work-dir", &work];
        // Long enough for a machine that does other things, too: how long it takes is measured elsewhere.
        let more = ["--target-insecure", "--wait", "--max-pause", "500ms", "--output", "json"];
        let done = self.engine(&[&words[..], &more].concat())?.must_succeed()?.json()?;
        ensure!(
            done["state"] == "completed" && done["delivery"]["digest"] == done["image"]["manifest"],
            "{done:#}"
        );
        Ok(done)
    }

    /// Has an image in a layout mounted in the room, writable, by the engine. The root of what is mounted.
    pub(crate) fn mount(&self, layout: &Path, tag: &str, dir: &Path) -> Result<PathBuf> {
        let [at, written] = ["rootfs", "written"].map(|name| dir.join(name));
        for dir in [&at, &written] {
            fs::create_dir_all(dir)?;
        }
        let (engine, image) = (engine::binary().to_string_lossy(), format!("{}:{tag}", layout.display()));
        let words = [&engine, "image", "mount", &image, &at.to_string_lossy(), "--rw", "--rw-dir"];
        self.run(&[&words[..], &[&written.to_string_lossy()]].concat())?;
        Ok(at)
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

/// The command that runs a script.
pub(crate) fn shell(script: &str) -> [&str; 4] {
    ["/bin/busybox", "sh", "-c", script]
}

/// Says that a runtime was not tried, to whoever runs the tests: what a test prints by the macros is shown only if it fails.
pub(crate) fn skip(name: &str, why: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {name}: {why}");
}

/// A program is absent: a failure where all must be there.
pub(crate) fn absent(name: &str) -> Result<()> {
    ensure!(std::env::var_os("SNAPSHOT_REQUIRE_RUNTIMES").is_none(), "{name} is absent");
    skip(name, "not installed");
    Ok(())
}

/// The frozen upperdir of a result.
pub(crate) fn frozen(result: &serde_json::Value) -> Result<PathBuf> {
    Ok(result["old_upper_dir"].as_str().context("no frozen upperdir")?.into())
}

/// The frozen upperdir over the lowers of the container.
pub(crate) fn reference(target: &Target, frozen: &Path, at: &Path) -> Result<Mount> {
    let mut layers = vec![frozen.to_owned()];
    layers.extend(target.overlay.lowers.iter().cloned());
    overlay(&layers, None, at, "")
}

/// A container's root without what is mounted on it.
pub(crate) fn root_of(init: Pid) -> Result<OwnedFd> {
    let namespace = File::open(process::dir(init).join("ns/mnt"))?;
    let root = rustix::fs::open(process::root(init), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(enclosure::in_namespace(namespace.as_fd(), root.as_fd())?)
}

/// The way to an open directory.
pub(crate) fn tree(root: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", root.as_raw_fd()).into()
}
