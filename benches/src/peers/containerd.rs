//! containerd by its own client, `ctr`: pause, write out the difference of the two snapshots, resume.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::contained::{Contained, Hosted, Operation, Remove, words};
use super::room::{Cgroups, Room};
use super::{Layer, Peer, Running, image, need, version_in};

pub(super) const NAME: &str = "containerd";

pub(super) fn start(place: &Path, cgroups: Cgroups) -> Result<Box<dyn Peer>> {
    need(&["containerd", "ctr", "runc"])?;
    let room = Arc::new(Room::open(place, NAME, cgroups)?);
    // Whatever the host's configuration says: it names the host's own directories.
    let config = room.dir().join("config.toml");
    // The part for Kubernetes looks for networks and images of its own.
    std::fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
    let mut daemon = room.command("containerd");
    daemon.arg("--config").arg(config).arg("--root").arg(room.dir().join("data"));
    room.daemon(&mut daemon, || {
        let mut probe = room.command("ctr");
        probe.arg("version");
        probe
    })?;
    let archive = image::archive(room.dir())?;
    room.run(room.command("ctr").args(["images", "import"]).arg(archive))?;
    let version = version_in(&room.run(room.command("containerd").arg("--version"))?);
    Ok(Box::new(Hosted { name: NAME, version, room, container }))
}

fn container(room: &Arc<Room>, layer: &Layer) -> Result<Box<dyn Running>> {
    let (name, cgroup) = room.next();
    let mut run = room.command("ctr");
    // It would ask for a weight, for which a version 2 hierarchy without controllers has no file.
    run.args(["run", "--detach", "--null-io", "--cpu-shares", "0"]);
    run.arg("--cgroup").arg(format!("/{cgroup}/{name}"));
    run.arg(image::NAME).arg(&name).args(layer.command());
    // What is deleted stays on disk until the next collection of garbage, which the end of a lease can be made to wait for.
    let collect = [
        words(&format!("ctr leases create --id {name}")),
        words(&format!("ctr leases delete --sync {name}")),
    ];
    let mut commands = vec![
        words(&format!("ctr tasks delete --force {name}")),
        words(&format!("ctr containers delete {name}")),
    ];
    commands.extend(collect.clone());
    let remove = Remove { room: Arc::clone(room), cgroup, commands };
    room.run(&mut run).context("starting a container")?;
    let stopped = |operation, middle: Option<String>| {
        let mut steps = vec![("pause", words(&format!("ctr tasks pause {name}")))];
        steps.extend(middle.map(|line| ("diff", words(&line))));
        steps.push(("resume", words(&format!("ctr tasks resume {name}"))));
        let after = if steps.len() > 2 { collect.to_vec() } else { Vec::new() };
        Operation { name: operation, steps, after }
    };
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let operations = vec![
        stopped("ctr pause; diff; resume", Some(format!("ctr snapshots diff {name}"))),
        stopped(
            "ctr pause; diff (tar); resume",
            Some(format!("ctr snapshots diff --media-type {plain} {name}")),
        ),
        stopped("ctr pause; resume", None),
    ];
    Ok(Box::new(Contained::arrive(remove, layer, operations)?))
}
