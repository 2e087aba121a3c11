//! docker: its daemon with a containerd of its own, which it starts itself, and its command line as the client. With its images and layers kept by
//! itself, or in that containerd (the containerd image store).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::contained::{DockerLike, Hosted};
use super::room::{Cgroups, Room};
use super::{Layer, PATH, Peer, Running, image, need, version_in, which};

pub(super) const NAME: &str = "docker";

/// The same with the containerd image store. No benchmark asks for it.
pub(super) const WITH_STORE: &str = "docker-store";

/// Names a directory with a newer docker's `usr/sbin` and `usr/bin` in it, for a machine whose own has no such store.
const NEWER: &str = "SNAPSHOT_DOCKER";

/// The first major version with the store.
const FIRST_WITH_STORE: u32 = 24;

/// No network, no firewall, nothing of the host changed; the driver of cgroups that needs no systemd.
const DAEMON: [&str; 6] = [
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    "--data-root",
];

pub(super) fn start(place: &Path, cgroups: Cgroups) -> Result<Box<dyn Peer>> {
    need(&["dockerd", "docker", "containerd", "runc"])?;
    let room = Arc::new(Room::open(place, NAME, cgroups)?);
    let mut daemon = room.command("dockerd");
    daemon.args(DAEMON).arg(room.dir().join("data")).arg("--storage-driver=overlay2");
    serve(NAME, room, daemon)
}

pub(super) fn start_with_store(place: &Path, cgroups: Cgroups) -> Result<Box<dyn Peer>> {
    need(&["docker", "runc"])?;
    let (program, path) = with_store()?;
    let room = Arc::new(Room::open(place, WITH_STORE, cgroups)?);
    // Whatever the host's says. dockerd has no flag for features before version 28.
    let config = room.dir().join("daemon.json");
    fs::write(&config, r#"{"features":{"containerd-snapshotter":true}}"#)?;
    let mut daemon = room.command(&program.to_string_lossy());
    daemon.env("PATH", path).args(DAEMON).arg(room.dir().join("data")).arg("--config-file").arg(config);
    serve(WITH_STORE, room, daemon)
}

/// A dockerd that has the store, and the PATH by which it finds the containerd that it came with.
fn with_store() -> Result<(PathBuf, String)> {
    if let Some(own) = which("dockerd").filter(|own| major(own) >= Some(FIRST_WITH_STORE)) {
        return Ok((own, PATH.to_owned()));
    }
    let newer = std::env::var_os(NEWER).map(PathBuf::from).with_context(|| {
        format!(
            "dockerd {FIRST_WITH_STORE} or newer is not installed, and {NEWER} names none \
             (`cargo xtask test --tier runtimes` fetches one)"
        )
    })?;
    let program = newer.join("usr/sbin/dockerd");
    major(&program).with_context(|| {
        format!(
            "{} is missing or does not start (`cargo xtask test --tier runtimes` fetches it)",
            program.display()
        )
    })?;
    Ok((program, format!("{0}/usr/sbin:{0}/usr/bin:{PATH}", newer.display())))
}

/// `Docker version 26.1.5+dfsg1, build 411e817` is 26.
fn major(dockerd: &Path) -> Option<u32> {
    let said = Command::new(dockerd).arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&said.stdout)).split('.').next()?.parse().ok()
}

/// Starts the daemon in its room and gives it the image.
fn serve(name: &'static str, room: Arc<Room>, mut daemon: Command) -> Result<Box<dyn Peer>> {
    // Without a daemon to answer the client fails to tell the server's version.
    room.daemon(&mut daemon, || {
        let mut probe = room.command("docker");
        probe.arg("version");
        probe
    })?;
    room.run(room.command("docker").args(["load", "--input"]).arg(image::archive(room.dir())?))?;
    let version = room.run(room.command("docker").args(["version", "--format", "{{.Server.Version}}"]))?;
    Ok(Box::new(Hosted { name, version, room, container }))
}

fn container(room: &Arc<Room>, layer: &Layer) -> Result<Box<dyn Running>> {
    let like = DockerLike {
        program: "docker",
        remove: "--force",
        commit: "",
        names: ["docker commit", "docker pause; unpause"],
    };
    like.start(room, layer)
}
