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
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snapshot_benches::peers::Cgroups;
use snapshot_engine::container::cgroup::Hierarchies;
use snapshot_engine::container::{Target, process};
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::eventually;
use snapshot_tests::everything::{Mount, make};
use snapshot_tests::judges::{Verify, judge, serve};
use snapshot_tests::registry::{Registry, Security};
use snapshot_tests::unpacked::{OciImage, must_be_equal};

use super::kinds::{CONTAINERD, CRUN_ROW, DOCKER, Kind, PODMAN, Process, RUNC};
use super::support::{House, MARK, absent, frozen, reference, root_of, shell, tree};
use super::writers::{SCRIPT, counted, fill, must_be_back, must_be_frozen};

/// The command of the containers that run in room B: nothing changes their tree.
const STILL: &str = "exec /bin/busybox sleep 1000";

/// Entries of the tree: all that `everything` makes, and more.
pub(crate) const ENTRIES: u64 = 120;

/// nydusd shows every root with this mode, also those of images made by nydus-image. podman makes its layers with the other.
const NYDUSD_ROOT: &str = ".: mode 40555 and 40755";

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

/// The container of this name runs, on the tree that was frozen. Its init.
fn must_run(house: &House, name: &str, reference: &Path, excused: &[&str]) -> Result<Pid> {
    let init = house.init_of(name)?;
    let root = root_of(init)?;
    let path = tree(&root);
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
        let lines = || counted(&process::root(self.origin.init).join("data/log"));
        let container = format!("{}://origin", self.kind.name);
        let done = self.first.push(&container, self.registry, &image, format, gate)?;
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
        let how = (self.kind.oci)(self.second, self.registry, &image, &shell(STILL))?;
        let init = must_run(self.second, "copy", &reference.0, self.kind.excused)?;
        // A runtime says that it has started before its own init has become the command.
        let file = process::dir(init).join("environ");
        let has_mark = || {
            let environment = fs::read(&file).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == MARK.as_bytes())
        };
        eventually("it has the image's environment", has_mark);
        Ok(how.to_owned())
    }

    fn nydus(&self) -> Result<String> {
        let (image, done) = self.commit("nydus", "auto")?;
        let reference = self.reference("nydus", &done)?;
        let dir = make(&self.second.place.0, "nydus")?;
        let layout = dir.join("layout").display().to_string();
        self.registry.pull(&image, &format!("oci:{layout}:t"))?;
        let judged = served_by_nydusd(Path::new(&layout), &dir, &reference.0)?;
        let at = self.second.mount(Path::new(&layout), "t", &dir)?;
        let seen = process::root(self.second.witness).join(at.strip_prefix("/")?);
        must_be_equal(&reference.0, &seen, ENTRIES, &[])?;
        let mut how = format!("`image mount`{judged}; ");
        if let Some(run) = self.kind.rootfs {
            run(self.second, &at, &Process::of_root(&shell(STILL)))?;
            must_run(self.second, "copy-nydus", &reference.0, &[])?;
        }
        if self.kind.peer == "runc" && !(self.kind.name == "crun" && self.column == HYBRID) {
            // crun refuses hybrid hierarchies with controllers in version 2.
            self.run(&format!("{layout}:t"))?;
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
    (kind.start)(&first, &first.image()?, &Process::of_root(&shell(SCRIPT)))?;
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
