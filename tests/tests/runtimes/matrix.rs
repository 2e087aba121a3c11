//! The matrix: runtime x format x cgroup version.
//!
//! ```text
//!   room A                             registry           room B, with stores of its own
//!   container, writers at work ──commit──►  image  ──oci──►   pulled by the runtime itself, or by skopeo and umoci; run
//!          │                                  │
//!          │                                  └────nydus──►   pulled by skopeo; `image mount --rw`, and run on it; nydusd is asked too
//!          ▼
//!   frozen upperdir over the lowers  ═══ compared, entry by entry, with the root of the container that runs in room B
//! ```
//!
//! Each cell is told in one line of a table: how the image was run, and what the runtime lacks where that is not its own way. A column that the machine
//! cannot have says what is missing.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use snapshot_benches::peers::Cgroups;
use snapshot_engine::container::cgroup::Hierarchies;
use snapshot_engine::container::{Target, process};
use snapshot_engine::kernel::enclosure;
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::eventually;
use snapshot_tests::engine;
use snapshot_tests::everything::{Mount, make};
use snapshot_tests::judges::{Verify, judge, serve};
use snapshot_tests::layered::overlay;
use snapshot_tests::registry::{Registry, Security};
use snapshot_tests::unpacked::{OciImage, must_be_equal, umoci};

use super::support::{CRUN, House, MARK, absent, frozen};
use super::writers::{SCRIPT, counted, fill, must_be_back, must_be_frozen};

/// The command of the containers that run in room B: nothing changes their tree.
const STILL: &str = "exec /bin/busybox sleep 1000";

/// Entries of the tree: all that `everything` makes, and more.
pub(crate) const ENTRIES: u64 = 120;

/// Not in a tar layer.
const SOCKET: &str = "data/all/socket: only on the left";

/// Readers of tar written in Go take an attribute without a value for none (`archive/tar`, `mergePAX`).
const NO_VALUE: &str =
    "data/all/size-1: attributes [trusted.t(8) user.a(0) user.b(1)] and [trusted.t(8) user.b(1)]";

/// docker and containers/storage set no time before 1970 (`Chtimes`, pkg/system/chtimes.go), nor does containerd (`boundTime`, archive/time.go).
const BEFORE_1970: &str = "data/all/same-b: mtime (-1000000000, 999999999) and (0, 0)";

/// nydusd shows every root with this mode, also those of images made by nydus-image. podman makes its layers with the other.
const NYDUSD_ROOT: &str = ".: mode 40555 and 40755";

/// One row.
#[derive(Debug)]
struct Kind {
    /// The runtime, which also is the scheme of its containers.
    name: &'static str,
    /// The room that has it.
    peer: &'static str,
    /// Starts the container `origin` with its writers.
    start: fn(&House) -> Result<()>,
    /// Has the image in the registry run as the container `copy`, by nothing but the runtime where it has a store.
    oci: fn(&House, &Registry, &str) -> Result<&'static str>,
    /// Runs the container `copy-nydus` on this root; `None`: it cannot.
    rootfs: Option<fn(&House, &Path) -> Result<()>>,
    /// Beside the way that is tested: what the runtime's own way would take.
    nydus: &'static str,
    /// What is not the same after its way through tar layers and its store.
    excused: &'static [&'static str],
}

/// docker makes these anew for every container, for what it mounts over them (`initlayer.Setup`).
const DOCKER_MAKES: [&str; 11] = [
    SOCKET,
    NO_VALUE,
    BEFORE_1970,
    ".dockerenv: mtime",
    "dev: mtime",
    "dev/console: mtime",
    "etc: mtime",
    "etc/hostname: mtime",
    "etc/hosts: mtime",
    "etc/mtab: mtime",
    "etc/resolv.conf: mtime",
];

/// Attributes for the administrator alone are none of an archive's business, says containerd (`setxattr`, archive/tar_unix.go).
const CONTAINERD_LEAVES: [&str; 5] = [
    SOCKET,
    BEFORE_1970,
    "data/all/link: attributes [trusted.on-a-link(1)] and []",
    "data/all/linked/link-too: attributes [trusted.on-a-link(1)] and []",
    "data/all/size-1: attributes [trusted.t(8) user.a(0) user.b(1)] and [user.a(0) user.b(1)]",
];

const DOCKER: Kind = Kind {
    name: "docker",
    peer: "docker",
    start: |house| house.docker_like("docker", "origin", &["--env", MARK], SCRIPT).map(drop),
    oci: |house, registry, image| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("docker pull --quiet {image}"))?;
        house.docker_like_of(&image, "docker", "copy", &[], STILL)?;
        Ok("`docker pull`, `docker run`")
    },
    rootfs: None,
    nydus: "docker runs no directory; it would take nydus-snapshotter below its containerd image store (no package in Debian)",
    excused: &DOCKER_MAKES,
};

const PODMAN: Kind = Kind {
    name: "podman",
    peer: "podman",
    start: |house| house.docker_like("podman", "origin", &["--env", MARK], SCRIPT).map(drop),
    oci: |house, registry, image| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("podman pull --quiet --tls-verify=false {image}"))?;
        house.docker_like_of(&image, "podman", "copy", &[], STILL)?;
        Ok("`podman pull`, `podman run`")
    },
    rootfs: Some(|house, root| {
        let root = root.display().to_string();
        house.docker_like_of(&root, "podman", "copy-nydus", &["--rootfs"], STILL).map(drop)
    }),
    nydus: "`podman run --rootfs`; containers/storage has no driver for Nydus",
    excused: &[SOCKET, NO_VALUE, BEFORE_1970],
};

const CONTAINERD: Kind = Kind {
    name: "containerd",
    peer: "containerd",
    start: |house| house.ctr("origin", &["--env", MARK], SCRIPT).map(drop),
    oci: |house, registry, image| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("ctr images pull --plain-http {image}"))?;
        house.ctr_of(&image, "copy", &[], STILL)?;
        Ok("`ctr images pull`, `ctr run`")
    },
    rootfs: Some(|house, root| {
        house.ctr_of(&root.display().to_string(), "copy-nydus", &["--rootfs"], STILL).map(drop)
    }),
    nydus: "`ctr run --rootfs`; `ctr images pull` needs nydus-snapshotter (no package in Debian)",
    excused: &CONTAINERD_LEAVES,
};

const RUNC: Kind = Kind {
    name: "runc",
    peer: "runc",
    start: |house| {
        house.bundle(&["runc"], "origin", &house.overlay("origin")?, &["/bin/busybox", "sh", "-c", SCRIPT])
    },
    oci: |house, registry, image| bare(house, registry, image, &["runc"]),
    rootfs: Some(|house, root| {
        house.bundle(&["runc"], "copy-nydus", root, &["/bin/busybox", "sh", "-c", STILL])
    }),
    nydus: "`runc run` on a bundle; it has no images of its own",
    excused: &[SOCKET, NO_VALUE],
};

const CRUN_ROW: Kind = Kind {
    name: "crun",
    peer: "runc",
    start: |house| {
        house.bundle(&CRUN, "origin", &house.overlay("origin")?, &["/bin/busybox", "sh", "-c", SCRIPT])
    },
    oci: |house, registry, image| bare(house, registry, image, &CRUN),
    rootfs: Some(|house, root| house.bundle(&CRUN, "copy-nydus", root, &["/bin/busybox", "sh", "-c", STILL])),
    nydus: "`crun run` on a bundle; it has no images of its own",
    excused: &[SOCKET, NO_VALUE],
};

/// A runtime without images: skopeo pulls, umoci unpacks.
fn bare(house: &House, registry: &Registry, image: &str, runtime: &[&str]) -> Result<&'static str> {
    let (layout, root) = (house.place.0.join("pulled"), house.place.0.join("unpacked"));
    registry.pull(image, &format!("oci:{}:t", layout.display()))?;
    umoci(&layout, "t", &root)?;
    let config = OciImage::read(&layout, "t")?.config;
    let env = config["config"]["Env"].as_array().context("no environment")?;
    ensure!(env.iter().any(|entry| entry == MARK), "{config:#}");
    house.bundle(runtime, "copy", &root, &["/bin/busybox", "sh", "-c", STILL])?;
    Ok("skopeo, `umoci raw unpack`, a bundle")
}

/// The column of machines that have both versions.
const HYBRID: &str = "hybrid";

/// The column's name, or why it cannot be had here.
fn column(cgroups: Cgroups) -> Result<&'static str, &'static str> {
    let here = Hierarchies::find().unwrap_or_default();
    match (cgroups, here.v2.is_some(), here.freezer_v1.is_some()) {
        (_, false, _) => Err("this kernel has no cgroup2 mounted"),
        (Cgroups::V2Only, true, _) => Ok("v2 alone"),
        (Cgroups::AsHost, true, true) => Ok(HYBRID),
        (Cgroups::AsHost, true, false) => Err("this machine has no version 1 freezer hierarchy"),
    }
}

/// One line of the table, to whoever runs the tests.
fn tell(kind: &Kind, format: &str, column: &str, how: &str) {
    static HEAD: Once = Once::new();
    let mut out = std::io::stdout();
    HEAD.call_once(|| {
        let _ = writeln!(out, "\n| runtime | format | cgroups | |\n|---|---|---|---|");
    });
    let _ = writeln!(out, "| {} | {format} | {column} | {how} |", kind.name);
}

/// Types of what is mounted at `/sys/fs/cgroup` and below (proc_pid_mountinfo(5)).
fn hierarchies(mountinfo: &str) -> Vec<&str> {
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let there = |head: &str| head.split(' ').nth(4).is_some_and(|point| point.starts_with("/sys/fs/cgroup"));
    lines.filter(|(head, _)| there(head)).filter_map(|(_, tail)| tail.split(' ').next()).collect()
}

/// Neither the room nor the engine's command sees anything else than version 2.
fn must_be_alone(house: &House) -> Result<()> {
    let room = fs::read_to_string(process::dir(house.witness).join("mountinfo"))?;
    ensure!(hierarchies(&room) == ["cgroup2"], "the room has {:?}", hierarchies(&room));
    let wrapper = house.wrapper();
    let output =
        Command::new(&wrapper[0]).args(&wrapper[1..]).args(["cat", "/proc/self/mountinfo"]).output()?;
    let engine = String::from_utf8(output.stdout)?;
    ensure!(hierarchies(&engine) == ["cgroup2"], "the engine has {:?}", hierarchies(&engine));
    Ok(())
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

/// The container of this name runs, on the tree that was frozen. Its init.
fn must_run(house: &House, name: &str, reference: &Path, excused: &[&str]) -> Result<Pid> {
    let init = house.init_of(name)?;
    let root = root_of(init)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
    must_be_back(&path)?;
    must_be_equal(reference, &path, ENTRIES, excused)?;
    Ok(init)
}

/// What the cells of a row in a column have in common.
struct Cell<'a> {
    kind: &'a Kind,
    /// Where the container is that is committed.
    first: &'a House,
    origin: &'a Target,
    /// Where the image is run.
    second: &'a House,
    registry: &'a Registry,
    column: &'static str,
}

impl Cell<'_> {
    /// Commits the container to the registry, as it is at work.
    fn commit(&self, format: &str, gate: &str) -> Result<(String, Value)> {
        let image = format!("matrix/{}:{format}", self.kind.name);
        let (container, target) =
            (format!("{}://origin", self.kind.name), format!("{}/{image}", self.registry.host()));
        let work = make(&self.first.place.0, &format!("work-{format}"))?.display().to_string();
        let words = ["commit", &container, &target, "--format", format, "--gate", gate, "--work-dir", &work];
        // Long enough for a machine that does other things, too: how long it takes is measured elsewhere.
        let more = ["--target-insecure", "--wait", "--max-pause", "500ms", "--output", "json"];
        let lines = || counted(&process::root(self.origin.init).join("data/log"));
        let done = self.first.engine(&[&words[..], &more].concat())?.must_succeed()?.json()?;
        ensure!(
            done["state"] == "completed" && done["delivery"]["digest"] == done["image"]["manifest"],
            "{done:#}"
        );
        must_be_frozen(&frozen(&done)?)?;
        let before = counted(&frozen(&done)?.join("data/log"))?;
        ensure!(self.origin.is_alive() && !self.origin.cgroup.is_frozen()?, "{done:#}");
        eventually("it goes on", || lines().is_ok_and(|now| now > before));
        Ok((image, done))
    }

    /// What an image must look like, mounted as long as the value lives.
    fn reference(&self, format: &str, done: &Value) -> Result<Mount> {
        reference(self.origin, &frozen(done)?, &make(&self.first.place.0, &format!("reference-{format}"))?)
    }

    fn oci(&self) -> Result<String> {
        // The gate that depends on the version of the cgroups.
        let (image, done) = self.commit("oci", "freezer")?;
        ensure!(done["gate"] == "freezer", "{done:#}");
        let reference = self.reference("oci", &done)?;
        let how = (self.kind.oci)(self.second, self.registry, &image)?;
        let init = must_run(self.second, "copy", &reference.0, self.kind.excused)?;
        let environment = fs::read(process::dir(init).join("environ"))?;
        ensure!(
            environment.split(|b| *b == 0).any(|entry| entry == MARK.as_bytes()),
            "without its environment"
        );
        Ok(how.to_owned())
    }

    fn nydus(&self) -> Result<String> {
        let (image, done) = self.commit("nydus", "auto")?;
        let reference = self.reference("nydus", &done)?;
        let dir = make(&self.second.place.0, "nydus")?;
        let layout = dir.join("layout").display().to_string();
        self.registry.pull(&image, &format!("oci:{layout}:t"))?;
        let judged = served_by_nydusd(Path::new(&layout), &dir, &reference.0)?;
        let (at, written) = (make(&dir, "rootfs")?, make(&dir, "written")?);
        let (engine, image) = (engine::binary().to_string_lossy(), format!("{layout}:t"));
        let words = [&engine, "image", "mount", &image, &at.to_string_lossy(), "--rw", "--rw-dir"];
        self.second.run(&[&words[..], &[&written.to_string_lossy()]].concat())?;
        let seen = process::root(self.second.witness).join(at.strip_prefix("/")?);
        must_be_equal(&reference.0, &seen, ENTRIES, &[])?;
        let mut how = format!("`image mount`{judged}; ");
        if let Some(run) = self.kind.rootfs {
            run(self.second, &at)?;
            must_run(self.second, "copy-nydus", &reference.0, &[])?;
        }
        if self.kind.peer == "runc" && !(self.kind.name == "crun" && self.column == HYBRID) {
            // crun refuses hybrid hierarchies with controllers in version 2.
            self.run(&image)?;
            how += "`snapshot-engine run`; ";
        }
        how += self.kind.nydus;
        Ok(how)
    }

    /// What the engine's own `run` starts by this runtime sees what was written.
    fn run(&self, image: &str) -> Result<()> {
        let work = make(&self.second.place.0, "run")?.display().to_string();
        let words = ["run", image, "--runtime", self.kind.name, "--work-dir", &work, "--"];
        let said =
            self.second.engine_alone(&[&words[..], &["/bin/busybox", "cat", "/base/replaced"]].concat())?;
        ensure!(said.must_succeed()?.stdout == "new\n", "another file");
        Ok(())
    }
}

/// nydusd shows the same; what to say of it.
fn served_by_nydusd(layout: &Path, dir: &Path, reference: &Path) -> Result<&'static str> {
    let Some(nydusd) = judge("nydusd")? else { return Ok(" (nydusd was not asked: absent)") };
    let mut layers = OciImage::read(layout, "t")?.layers;
    let packed = layers.pop().context("no layer")?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(packed)?));
    tar.unpack(dir)?;
    let served = serve(&nydusd, &dir.join("image/image.boot"), &layers, dir, Verify::Nothing)?;
    must_be_equal(reference, &served.at, ENTRIES, &[NYDUSD_ROOT]).context("nydusd")?;
    Ok(" and nydusd")
}

/// `ps` knows it, and how it would be snapshot.
fn must_be_listed(kind: &Kind, house: &House, origin: &Target) -> Result<()> {
    let listed = house.engine(&["ps", "--output", "json"])?.must_succeed()?.json()?;
    let rows = listed["containers"].as_array().context("no containers")?;
    let row = rows.iter().find(|row| row["runtime"] == kind.name && row["init"] == origin.init.0);
    let row = row.with_context(|| format!("not listed: {listed:#}"))?;
    ensure!(row["gate"]["gate"] == "fence" && row["refused"].is_null(), "{row:#}");
    Ok(())
}

/// Both formats of a runtime with these cgroups. A cell that fails does not keep the other from being tried.
fn row(kind: &Kind, cgroups: Cgroups) -> Result<()> {
    let column = match column(cgroups) {
        Ok(column) => column,
        Err(why) => {
            ["oci", "nydus"].iter().for_each(|format| tell(kind, format, &format!("{cgroups:?}"), why));
            return Ok(());
        }
    };
    let Some(first) = House::open_with(kind.peer, cgroups)? else { return Ok(()) };
    if first.line(&format!("{} --version", kind.name)).is_err() && kind.name == "crun" {
        return absent("crun");
    }
    if cgroups == Cgroups::V2Only {
        must_be_alone(&first)?;
    }
    (kind.start)(&first)?;
    let origin = first.running(&format!("{}://origin", kind.name))?;
    fill(origin.init)?;
    must_be_listed(kind, &first, &origin)?;
    let Some(second) = House::open_with(kind.peer, cgroups)? else { return Ok(()) };
    let registry = Registry::start(Security::Open)?;
    let cell = Cell { kind, first: &first, origin: &origin, second: &second, registry: &registry, column };
    let mut failures = Vec::new();
    for (format, result) in [("oci", cell.oci()), ("nydus", cell.nydus())] {
        tell(kind, format, column, result.as_deref().unwrap_or("FAILED"));
        if let Err(error) = result {
            failures.push(format!("{} {format} {column}: {error:#}", kind.name));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn docker_hybrid() -> Result<()> {
    row(&DOCKER, Cgroups::AsHost)
}

#[test]
fn docker_version_2() -> Result<()> {
    row(&DOCKER, Cgroups::V2Only)
}

#[test]
fn podman_hybrid() -> Result<()> {
    row(&PODMAN, Cgroups::AsHost)
}

#[test]
fn podman_version_2() -> Result<()> {
    row(&PODMAN, Cgroups::V2Only)
}

#[test]
fn containerd_hybrid() -> Result<()> {
    row(&CONTAINERD, Cgroups::AsHost)
}

#[test]
fn containerd_version_2() -> Result<()> {
    row(&CONTAINERD, Cgroups::V2Only)
}

#[test]
fn runc_hybrid() -> Result<()> {
    row(&RUNC, Cgroups::AsHost)
}

#[test]
fn runc_version_2() -> Result<()> {
    row(&RUNC, Cgroups::V2Only)
}

#[test]
fn crun_hybrid() -> Result<()> {
    row(&CRUN_ROW, Cgroups::AsHost)
}

#[test]
fn crun_version_2() -> Result<()> {
    row(&CRUN_ROW, Cgroups::V2Only)
}
