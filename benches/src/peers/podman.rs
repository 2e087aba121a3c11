//! podman, with runc below it. It has no daemon: every command opens its store anew.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, getrlimit};

use super::contained::{DockerLike, Hosted};
use super::room::{Cgroups, Room};
use super::{Layer, Peer, Running, image, need, version_in};

pub(super) const NAME: &str = "podman";

pub(super) fn start(place: &Path, cgroups: Cgroups) -> Result<Box<dyn Peer>> {
    need(&["podman", "conmon", "runc"])?;
    // It keeps a cache there, whatever its configuration says. The room can only cover a directory that is there; podman's first use makes it anyway.
    fs::create_dir_all("/var/lib/containers")?;
    let room = Arc::new(Room::open(place, NAME, cgroups)?);
    let dir = room.dir().to_str().context("the place must be UTF-8")?;
    let (storage, containers) = (storage(dir), containers());
    // The room's own `/etc`: no other command needs to be told where to look.
    room.inside(|| {
        fs::create_dir_all("/etc/containers")?;
        fs::write("/etc/containers/storage.conf", storage)?;
        Ok(fs::write("/etc/containers/containers.conf", containers)?)
    })?;
    let archive = image::archive(room.dir())?;
    room.run(room.command("podman").args(["load", "--quiet", "--input"]).arg(archive))?;
    let version = version_in(&room.run(room.command("podman").arg("--version"))?);
    Ok(Box::new(Hosted { name: NAME, version, room, container }))
}

fn storage(dir: &str) -> String {
    format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{dir}/data\"\nrunroot = \"/run/containers/storage\"\n"
    )
}

/// Its own defaults raise limits, which takes CAP_SYS_RESOURCE, and set one on processes, which takes a controller.
fn containers() -> String {
    let limit = |resource| getrlimit(resource).maximum.map_or("-1".to_owned(), |most| most.to_string());
    let (files, processes) = (limit(Resource::Nofile), limit(Resource::Nproc));
    format!(
        "[containers]\n\
         default_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
         pids_limit = 0\n\
         [engine]\n\
         runtime = \"runc\"\n\
         cgroup_manager = \"cgroupfs\"\n\
         events_logger = \"file\"\n"
    )
}

fn container(room: &Arc<Room>, layer: &Layer) -> Result<Box<dyn Running>> {
    let like = DockerLike {
        program: "podman",
        remove: "--force --time 0",
        commit: "--quiet --pause ",
        names: ["podman commit", "podman pause; unpause"],
    };
    like.start(room, layer)
}
