//! Runtimes without a daemon: podman with and without its service, runc, crun.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use snapshot_engine::container::{Found, Places, find};
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;

use super::support::{CRUN, House, absent};

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

const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "1000"];

#[test]
fn a_runc_container_in_another_namespace() -> Result<()> {
    let Some(house) = House::open("runc")? else { return Ok(()) };
    house.bundle(&["runc"], "web", &house.overlay("web")?, &SLEEP)?;
    let target = house.running("runc://web")?;
    ensure!(target.runtime == Runtime::Runc && target.config.command == SLEEP, "{target:?}");
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

#[test]
fn a_crun_container_in_another_namespace() -> Result<()> {
    let Some(house) = House::open("runc")? else { return Ok(()) };
    if house.line("crun --version").is_err() {
        return absent("crun");
    }
    house.bundle(&CRUN, "web", &house.overlay("web")?, &SLEEP)?;
    let target = house.running("crun://web")?;
    ensure!(target.runtime == Runtime::Crun && target.config.command == SLEEP, "{target:?}");
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
