//! Runtimes without a daemon: podman with and without its service, runc, crun.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use snapshot_engine::container::{Found, Places, find};
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;

use super::support::{House, skip};

#[test]
fn podmans_service_and_its_storage_say_the_same() -> Result<()> {
    let Some(mut house) = House::open("podman")? else { return Ok(()) };
    house.line("/bin/busybox mkdir -p /run/podman")?;
    house.keep("podman system service --time 0 unix:///run/podman/podman.sock")?;
    let script = "echo x >/data/x; exec /bin/busybox sleep 1000";
    house.docker_like("podman", "web", &["--env", "A=b"], script)?;
    let usual = house.places();
    let service = Places { storage: Vec::new(), runc: Vec::new(), crun: Vec::new(), ..usual.clone() };
    let storage = Places { podman: Vec::new(), runc: Vec::new(), crun: Vec::new(), ..usual };
    let reference = "podman://web".parse()?;
    eventually("the service answers", || find(&reference, &service).is_ok());
    let at = |places: &Places| -> Result<_> {
        match find(&reference, places)? {
            Found::Running(target) => Ok(*target),
            Found::Stopped(stopped) => anyhow::bail!("it does not run: {stopped:?}"),
        }
    };
    let (a, b) = (at(&service)?, at(&storage)?);
    ensure!(
        (a.init, &a.overlay, &a.image, &a.name) == (b.init, &b.overlay, &b.image, &b.name),
        "{a:?}\n{b:?}"
    );
    ensure!(a.config.command == b.config.command && a.config.env.contains(&"A=b".to_owned()), "{a:?}\n{b:?}");

    house.line("podman stop --time 0 web")?;
    eventually("it ends", || !a.is_alive());
    let at = |places: &Places| match find(&reference, places) {
        Ok(Found::Stopped(stopped)) => Ok(*stopped),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    let (a, b) = (at(&service)?, at(&storage)?);
    // The one path leads through the service's root, the other through the witness'.
    ensure!((a.identity, &a.image) == (b.identity, &b.image), "{a:?}\n{b:?}");
    let inode = |path: &PathBuf| fs::metadata(path).map(|stat| (stat.dev(), stat.ino()));
    let lowers = |paths: &[PathBuf]| paths.iter().map(inode).collect::<std::io::Result<Vec<_>>>();
    ensure!(
        lowers(&a.layers.lowers)? == lowers(&b.layers.lowers)? && !a.layers.lowers.is_empty(),
        "{a:?}\n{b:?}"
    );
    ensure!(fs::read(a.layers.upper.join("data/x"))? == b"x\n", "{a:?}");
    Ok(())
}

/// Starts a container from a bundle with an overlay of its own, in the room of runc.
fn bundle(house: &House, runtime: &[&str], name: &str) -> Result<()> {
    let dir = house.place.0.join(name);
    for part in ["upper", "work", "merged", "root/bin"] {
        fs::create_dir_all(dir.join(part))?;
    }
    for part in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir(dir.join("root").join(part))?;
    }
    fs::copy("/bin/busybox", dir.join("root/bin/busybox"))?;
    let path = |part: &str| dir.join(part).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("root"), path("upper"), path("work"));
    house.run(&["/bin/busybox", "mount", "-t", "overlay", "-o", &options, "overlay", &path("merged")])?;
    house.run(&["/bin/busybox", "sh", "-c", &format!("cd {} && runc spec", dir.display())])?;
    let file = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/busybox", "sleep", "1000"]);
    config["process"].as_object_mut().context("no process")?.remove("rlimits");
    config["root"] = json!({ "path": path("merged"), "readonly": false });
    config["linux"]["cgroupsPath"] = json!(house.cgroup(name)?);
    fs::write(&file, serde_json::to_vec(&config)?)?;
    house.run(&[runtime, &["run", "--detach", "--bundle", &dir.to_string_lossy(), name]].concat()).map(drop)
}

#[test]
fn a_runc_container_in_another_namespace() -> Result<()> {
    let Some(house) = House::open("runc")? else { return Ok(()) };
    bundle(&house, &["runc"], "web")?;
    let target = house.running("runc://web")?;
    ensure!(
        target.runtime == Runtime::Runc && target.config.command == ["/bin/busybox", "sleep", "1000"],
        "{target:?}"
    );
    ensure!(target.cgroup.freezer().is_some(), "{target:?}");
    ensure!(house.running("web")?.init == target.init, "without a scheme another");
    house.line("runc pause web")?;
    ensure!(target.cgroup.is_frozen()?, "{target:?}");
    let cut = house.commit("web", "paused")?;
    ensure!(cut["pause_time"]["ns"] == 0 && target.cgroup.is_frozen()?, "{cut:#}");
    house.line("runc resume web")?;
    house.line("runc kill web KILL")?;
    eventually("it ends", || !target.is_alive());
    // runc does not know whose layers they are, and the mount is gone with the container: refused, with the state to remove.
    let words = ["commit", "web", "oci:/nowhere/x:t"];
    house.engine(&words)?.must_fail(3, &["not running", "state.json"])?;
    house.line("runc delete web").map(drop)
}

/// In hybrid mode it refuses to work as long as the version 2 hierarchy has a controller, so it does not get to see that hierarchy.
const CRUN: [&str; 7] = [
    "unshare",
    "--mount",
    "/bin/busybox",
    "sh",
    "-c",
    "/bin/busybox umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"",
    "crun",
];

#[test]
fn a_crun_container_in_another_namespace() -> Result<()> {
    let Some(house) = House::open("runc")? else { return Ok(()) };
    if house.line("crun --version").is_err() {
        ensure!(std::env::var_os("SNAPSHOT_REQUIRE_RUNTIMES").is_none(), "crun is absent");
        skip("crun", "not installed");
        return Ok(());
    }
    bundle(&house, &CRUN, "web")?;
    let target = house.running("crun://web")?;
    ensure!(
        target.runtime == Runtime::Crun && target.config.command == ["/bin/busybox", "sleep", "1000"],
        "{target:?}"
    );
    ensure!(house.running("web")?.init == target.init, "without a scheme another");
    ensure!(target.cgroup.freezer().is_some(), "{target:?}");
    let cut = house.commit("crun://web", "running")?;
    ensure!(cut["gate"] == "none" || cut["gate"] == "fence", "{cut:#}");
    house.run(&[&CRUN[..], &["pause", "web"]].concat())?;
    let cut = house.commit("crun://web", "paused")?;
    ensure!(cut["pause_time"]["ns"] == 0 && target.cgroup.is_frozen()?, "{cut:#}");
    house.run(&[&CRUN[..], &["delete", "--force", "web"]].concat())?;
    ensure!(house.find("crun://web").is_err(), "it is gone");
    Ok(())
}
