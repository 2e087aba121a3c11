//! runc alone, with an overlay mounted for it.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

use super::contained::{Contained, Hosted, Operation, Remove, words};
use super::room::{Cgroups, Room};
use super::{Layer, Peer, Running, image, need, version_in};

pub(super) const NAME: &str = "runc";

pub(super) fn start(place: &Path, cgroups: Cgroups) -> Result<Box<dyn Peer>> {
    need(&["runc"])?;
    let room = Arc::new(Room::open(place, NAME, cgroups)?);
    image::root(room.dir())?;
    let version = version_in(&room.run(room.command("runc").arg("--version"))?);
    Ok(Box::new(Hosted { name: NAME, version, room, container }))
}

/// What `runc spec` gives, with this command, cgroup, and a root that can be written.
fn bundle(room: &Room, dir: &Path, cgroup: &str, layer: &Layer) -> Result<()> {
    room.run(room.command("runc").arg("spec").current_dir(dir))?;
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(layer.command());
    config["root"] = json!({ "path": dir.join("merged"), "readonly": false });
    config["linux"]["cgroupsPath"] = json!(format!("/{cgroup}"));
    // The default lowers the number of open files, and raising its hard limit again would take CAP_SYS_RESOURCE.
    config["process"].as_object_mut().context("runc spec gave no process")?.remove("rlimits");
    Ok(fs::write(&path, serde_json::to_vec(&config)?)?)
}

fn container(room: &Arc<Room>, layer: &Layer) -> Result<Box<dyn Running>> {
    let (name, cgroup) = room.next();
    let dir = room.dir().join(&name);
    for part in ["upper", "work", "merged"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let merged = dir.join("merged");
    let commands = vec![
        words(&format!("runc delete --force {name}")),
        words(&format!("/bin/busybox umount -l {}", merged.display())),
        words(&format!("/bin/busybox rm -rf {}", dir.display())),
    ];
    let remove = Remove { room: Arc::clone(room), cgroup: cgroup.clone(), commands };
    let path = |part: &str| dir.join(part).display().to_string();
    let lower = room.dir().join("root").display().to_string();
    let options = format!("lowerdir={lower},upperdir={},workdir={}", path("upper"), path("work"));
    let options = CString::new(options)?;
    room.inside(|| {
        Ok(rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str())?)
    })
    .context("mounting an overlay for runc")?;
    bundle(room, &dir, &format!("{cgroup}/{name}"), layer)?;
    // The container has runc's own output as its own: were that a pipe, we would wait for the container to close it.
    let log = dir.join("runc.log");
    let mut run = room.command("runc");
    run.arg("--log").arg(&log).args(["run", "--detach", "--bundle"]).arg(&dir).arg(&name);
    run.stdout(Stdio::null()).stderr(Stdio::null());
    room.run(&mut run).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    let operations = vec![Operation {
        name: "runc pause; resume",
        steps: vec![
            ("pause", words(&format!("runc pause {name}"))),
            ("resume", words(&format!("runc resume {name}"))),
        ],
        after: Vec::new(),
    }];
    Ok(Box::new(Contained::arrive(remove, layer, operations)?))
}
