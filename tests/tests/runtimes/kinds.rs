//! The runtimes of the matrix: how each starts a container, and how it comes to run an image that is in a registry or on a directory.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::Value;
use snapshot_tests::inside::User;
use snapshot_tests::registry::Registry;
use snapshot_tests::unpacked::{OciImage, umoci};

use super::support::{CRUN, House, MARK};

/// One row.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The runtime, which also is the scheme of its containers.
    pub(crate) name: &'static str,
    /// The room that has it.
    pub(crate) peer: &'static str,
    /// Has the image of an archive in its store; a runtime without one has nothing to do.
    pub(crate) load: fn(&House, &Path) -> Result<()>,
    /// Starts the container `origin`.
    pub(crate) start: fn(&House, &Image, &Process) -> Result<()>,
    /// Has the image in the registry run as the container `copy`, by nothing but the runtime where it has a store; with another command than its own,
    /// unless that is empty.
    pub(crate) oci: fn(&House, &Registry, &str, &[&str]) -> Result<&'static str>,
    /// Runs the container `copy-nydus` on this root; `None`: it cannot.
    pub(crate) rootfs: Option<OnRoot>,
    /// Beside the way that is tested: what the runtime's own way would take.
    pub(crate) nydus: &'static str,
    /// What is not the same after its way through tar layers and its store.
    pub(crate) excused: &'static [&'static str],
}

/// How a container is started on a root.
pub(crate) type OnRoot = fn(&House, &Path, &Process) -> Result<()>;

/// What a container is made of.
pub(crate) struct Image {
    /// Its name at a runtime that has a store.
    pub(crate) name: &'static str,
    /// Its files, for those that have none.
    pub(crate) root: PathBuf,
}

/// What a container runs.
pub(crate) struct Process {
    /// Its user as an image has it: a name, the same in the container and on this machine, or `UID:GID`; empty for root.
    pub(crate) user: String,
    pub(crate) command: Vec<String>,
}

impl Process {
    /// Of root.
    pub(crate) fn of_root(command: &[&str]) -> Process {
        Process { user: String::new(), command: command.iter().map(|&word| word.to_owned()).collect() }
    }

    /// That which an image says, in a layout.
    pub(crate) fn of_image(layout: &Path, tag: &str) -> Result<Process> {
        let config = OciImage::read(layout, tag)?.config["config"].take();
        let words = |key: &str| -> Vec<String> {
            let all = config[key].as_array().into_iter().flatten();
            all.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        ensure!(words("Env").iter().any(|entry| entry == MARK), "another environment: {config:#}");
        let user = config["User"].as_str().unwrap_or_default().to_owned();
        Ok(Process { user, command: [words("Entrypoint"), words("Cmd")].concat() })
    }

    /// By numbers, as a bundle has it.
    fn user(&self) -> Result<User> {
        Ok(match self.user.split_once(':') {
            Some((uid, gid)) => User { uid: uid.parse()?, gid: gid.parse()? },
            None if self.user.is_empty() => User::ROOT,
            None => User::named(&self.user)?,
        })
    }

    fn words(&self) -> Vec<&str> {
        self.command.iter().map(String::as_str).collect()
    }
}

/// Not in a tar layer.
const SOCKET: &str = "data/all/socket: only on the left";

/// Readers of tar written in Go take an attribute without a value for none (`archive/tar`, `mergePAX`).
const NO_VALUE: &str =
    "data/all/size-1: attributes [trusted.t(8) user.a(0) user.b(1)] and [trusted.t(8) user.b(1)]";

/// docker and containers/storage set no time before 1970 (`Chtimes`, pkg/system/chtimes.go), nor does containerd (`boundTime`, archive/time.go).
const BEFORE_1970: &str = "data/all/same-b: mtime (-1000000000, 999999999) and (0, 0)";

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

pub(crate) const DOCKER: Kind = Kind {
    name: "docker",
    peer: "docker",
    load: |house, archive| {
        house.line(&format!("docker load --quiet --input {}", archive.display())).map(drop)
    },
    start: |house, image, process| {
        house.docker_like_of(image.name, "docker", "origin", &["--env", MARK], &process.words()).map(drop)
    },
    oci: |house, registry, image, command| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("docker pull --quiet {image}"))?;
        house.docker_like_of(&image, "docker", "copy", &[], command)?;
        Ok("`docker pull`, `docker run`")
    },
    rootfs: None,
    nydus: "docker runs no directory, and nydus-snapshotter 0.13 does not look past docker's init layer (`Mounts`, snapshot/snapshot.go): the root is empty",
    excused: &DOCKER_MAKES,
};

pub(crate) const PODMAN: Kind = Kind {
    name: "podman",
    peer: "podman",
    load: |house, archive| {
        house.line(&format!("podman load --quiet --input {}", archive.display())).map(drop)
    },
    start: |house, image, process| {
        house.docker_like_of(image.name, "podman", "origin", &["--env", MARK], &process.words()).map(drop)
    },
    oci: |house, registry, image, command| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("podman pull --quiet --tls-verify=false {image}"))?;
        house.docker_like_of(&image, "podman", "copy", &[], command)?;
        Ok("`podman pull`, `podman run`")
    },
    rootfs: Some(|house, root, process| {
        let root = root.display().to_string();
        let options = ["--user", &process.user, "--rootfs"];
        house.docker_like_of(&root, "podman", "copy-nydus", &options, &process.words()).map(drop)
    }),
    nydus: "`podman run --rootfs`; containers/storage has no driver for Nydus",
    excused: &[SOCKET, NO_VALUE, BEFORE_1970],
};

pub(crate) const CONTAINERD: Kind = Kind {
    name: "containerd",
    peer: "containerd",
    load: |house, archive| house.line(&format!("ctr images import {}", archive.display())).map(drop),
    start: |house, image, process| {
        house.ctr_of(image.name, "origin", &["--env", MARK], &process.words()).map(drop)
    },
    oci: |house, registry, image, command| {
        let image = format!("{}/{image}", registry.host());
        house.line(&format!("ctr images pull --plain-http {image}"))?;
        house.ctr_of(&image, "copy", &[], command)?;
        Ok("`ctr images pull`, `ctr run`")
    },
    rootfs: Some(|house, root, process| {
        // Only of an image it takes the user; containerd 2 has an option for it.
        let (mut words, user) = (process.words(), process.user()?.name()?);
        if let ([program, rest @ ..], false) = (&words[..], user == "root") {
            let su = ["/bin/busybox", "su", "-m", "-s", program, &user, "--"];
            words = [&su[..], rest].concat();
        }
        house.ctr_of(&root.display().to_string(), "copy-nydus", &["--rootfs"], &words).map(drop)
    }),
    nydus: "`ctr run --rootfs`; nydus-snapshotter runs it through CRI (`snapshotter`)",
    excused: &CONTAINERD_LEAVES,
};

/// What has no store has no archive to load.
const NO_STORE: fn(&House, &Path) -> Result<()> = |_, _| Ok(());

pub(crate) const RUNC: Kind = Kind {
    name: "runc",
    peer: "runc",
    load: NO_STORE,
    start: |house, image, process| start_bare(house, &["runc"], image, process),
    oci: |house, registry, image, command| bare(house, registry, image, &["runc"], command),
    rootfs: Some(|house, root, process| {
        house.bundle_as(process.user()?, &["runc"], "copy-nydus", root, &process.words())
    }),
    nydus: "`runc run` on a bundle; it has no images of its own",
    excused: &[SOCKET, NO_VALUE],
};

pub(crate) const CRUN_ROW: Kind = Kind {
    name: "crun",
    peer: "runc",
    load: NO_STORE,
    start: |house, image, process| start_bare(house, &CRUN, image, process),
    oci: |house, registry, image, command| bare(house, registry, image, &CRUN, command),
    rootfs: Some(|house, root, process| {
        house.bundle_as(process.user()?, &CRUN, "copy-nydus", root, &process.words())
    }),
    nydus: "`crun run` on a bundle; it has no images of its own",
    excused: &[SOCKET, NO_VALUE],
};

/// A runtime that is given a bundle.
fn start_bare(house: &House, runtime: &[&str], image: &Image, process: &Process) -> Result<()> {
    let root = house.overlay_on(&image.root, "origin")?;
    house.bundle_as(process.user()?, runtime, "origin", &root, &process.words())
}

/// A runtime without images: skopeo pulls, umoci unpacks.
fn bare(
    house: &House,
    registry: &Registry,
    image: &str,
    runtime: &[&str],
    command: &[&str],
) -> Result<&'static str> {
    let (layout, root) = (house.place.0.join("pulled"), house.place.0.join("unpacked"));
    registry.pull(image, &format!("oci:{}:t", layout.display()))?;
    umoci(&layout, "t", &root)?;
    let own = Process::of_image(&layout, "t")?;
    let command = if command.is_empty() { own.words() } else { command.to_vec() };
    house.bundle_as(own.user()?, runtime, "copy", &root, &command)?;
    Ok("skopeo, `umoci raw unpack`, a bundle")
}
