//! docker: its daemon with a containerd of its own, which it starts itself, and its command line as the client.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::contained::{DockerLike, Hosted};
use super::room::Room;
use super::{Layer, Peer, Running, image, need};

pub(super) const NAME: &str = "docker";

/// No network, no firewall, nothing of the host changed; the driver of cgroups that needs no systemd.
const DAEMON: [&str; 7] = [
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--storage-driver=overlay2",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    "--data-root",
];

pub(super) fn start(place: &Path) -> Result<Box<dyn Peer>> {
    need(&["dockerd", "docker", "containerd", "runc"])?;
    let room = Arc::new(Room::open(place, NAME)?);
    let mut daemon = room.command("dockerd");
    daemon.args(DAEMON).arg(room.dir().join("data"));
    // Without a daemon to answer the client fails to tell the server's version.
    room.daemon(&mut daemon, || {
        let mut probe = room.command("docker");
        probe.arg("version");
        probe
    })?;
    room.run(room.command("docker").args(["load", "--input"]).arg(image::archive(room.dir())?))?;
    let version = room.run(room.command("docker").args(["version", "--format", "{{.Server.Version}}"]))?;
    Ok(Box::new(Hosted { name: NAME, version, room, container }))
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
