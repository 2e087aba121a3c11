//! A container's whole life at a real runtime, with a snapshot at every station: running under load, paused, stopped, started again, gone.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use snapshot_benches::peers::Cgroups;
use snapshot_engine::container::{Error, Found, Target, find, resolver};
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;
use snapshot_tests::listing::{Depth, list, must_equal};

use super::support::{COUNTING, House, IMAGE, frozen};
use super::writers::counted;

/// How a runtime's own client is told to do something to the container `web`.
struct Client {
    peer: &'static str,
    runtime: Runtime,
    start: fn(&House) -> Result<()>,
    pause: &'static [&'static str],
    resume: &'static [&'static str],
    stop: &'static [&'static str],
    again: &'static [&'static str],
    remove: &'static [&'static str],
}

/// What the engine is to find of the container's environment.
const ENV: &[&str] = &["--env", "LIFE=1"];

const DOCKER: Client = Client {
    peer: "docker",
    runtime: Runtime::Docker,
    start: |house| house.docker_like("docker", "web", ENV, COUNTING).map(drop),
    pause: &["docker pause web"],
    resume: &["docker unpause web"],
    stop: &["docker kill web"],
    again: &["docker start web"],
    remove: &["docker rm --force web"],
};

const DOCKER_STORE: Client = Client { peer: "docker-store", ..DOCKER };

const PODMAN: Client = Client {
    peer: "podman",
    runtime: Runtime::Podman,
    start: |house| house.docker_like("podman", "web", ENV, COUNTING).map(drop),
    pause: &["podman pause web"],
    resume: &["podman unpause web"],
    stop: &["podman stop --time 0 web"],
    again: &["podman start web"],
    remove: &["podman rm --force --time 0 web"],
};

const CONTAINERD: Client = Client {
    peer: "containerd",
    runtime: Runtime::Containerd,
    start: |house| house.ctr("web", ENV, COUNTING).map(drop),
    pause: &["ctr tasks pause web"],
    resume: &["ctr tasks resume web"],
    stop: &["ctr tasks delete --force web"],
    again: &["ctr tasks start --detach --null-io web"],
    remove: &["ctr containers delete web"],
};

impl Client {
    fn tell(&self, house: &House, lines: &[&str]) -> Result<()> {
        lines.iter().try_for_each(|line| house.line(line).map(drop))
    }

    fn named(&self) -> String {
        format!("{}://web", self.runtime)
    }
}

/// By every kind of name it is the same container, and the runtime's own words are known of it.
fn is_found(client: &Client, house: &House) -> Result<Target> {
    let target = house.running(&client.named())?;
    ensure!(
        target == Target { reference: client.named(), ..house.running("web")? },
        "without a scheme another"
    );
    let answers = resolver::list(&house.places());
    let mut all = answers.candidates.into_iter();
    let listed = all.find(|c| c.names.iter().any(|n| n == "web")).context("not listed")?;
    ensure!(listed.runtime == client.runtime && listed.init == Some(target.init), "{listed:?}");
    for reference in [listed.id.clone(), format!("{}://{}", client.runtime, listed.id)] {
        ensure!(house.running(&reference)?.init == target.init, "{reference} is another");
    }
    if listed.id.len() == 64 {
        ensure!(house.running(&listed.id[..12])?.init == target.init, "the beginning of its id is another's");
    }
    let image = target.image.as_ref().context("no image")?;
    ensure!(
        image.name == IMAGE && image.digest.starts_with("sha256:") && image.digest.len() == 71,
        "{image:?}"
    );
    let config = &target.config;
    ensure!(config.command.last().map(String::as_str) == Some(COUNTING), "{config:?}");
    ensure!(config.env.iter().any(|e| e == "LIFE=1"), "{config:?}");
    // Known of the image alone.
    ensure!(config.platform.os == "linux" && !config.platform.architecture.is_empty(), "{config:?}");
    ensure!(
        target.overlay.upper.starts_with(&house.place.0) || target.overlay.upper.starts_with("/proc"),
        "{target:?}"
    );
    ensure!(target.cgroup.freezer().is_some(), "no cgroup of its own: {target:?}");
    Ok(target)
}

fn lives(client: &Client, cgroups: Cgroups) -> Result<()> {
    let Some(house) = House::open_with(client.peer, cgroups)? else { return Ok(()) };
    (client.start)(&house)?;
    let target = is_found(client, &house)?;
    let upper = target.overlay.upper.clone();
    let lines = || fs::read_to_string(upper.join("data/log")).map_or(0, |text| text.lines().count());
    eventually("it writes", || lines() > 20);

    let cut = house.commit("web", "running")?;
    let before = counted(&frozen(&cut)?.join("data/log"))?;
    ensure!(before > 20 && target.is_alive() && !target.cgroup.is_frozen()?, "{cut:#}");
    eventually("it goes on", || lines() > before + 20);

    client.tell(&house, client.pause)?;
    let still = list(&upper, Depth::Copy)?;
    let cut = house.commit(&client.named(), "paused")?;
    ensure!(target.cgroup.is_frozen()?, "the owner's pause was ended");
    ensure!(cut["gate"] == "none" && cut["pause_time"]["ns"] == 0, "{cut:#}");
    must_equal(&still, &list(&frozen(&cut)?, Depth::Copy)?)?;
    counted(&frozen(&cut)?.join("data/log"))?;
    client.tell(&house, client.resume)?;

    client.tell(&house, client.stop)?;
    eventually("it ends", || !target.is_alive());
    let Found::Stopped(stopped) = house.find(&client.named())? else {
        anyhow::bail!("it does not run any more")
    };
    ensure!(stopped.layers.lowers.iter().all(|lower| lower.is_dir()), "{:?}", stopped.layers);
    let image = stopped.image.as_ref().context("no image")?;
    ensure!(image.name == IMAGE && stopped.config == target.config, "{stopped:?}");
    let lies = list(&stopped.layers.upper, Depth::Copy)?;
    let cut = house.commit("web", "stopped")?;
    ensure!(cut["gate"] == "none" && cut["pause_time"]["ns"] == 0 && cut["tracker"] == "none", "{cut:#}");
    must_equal(&lies, &list(&frozen(&cut)?, Depth::Copy)?)?;
    must_equal(&lies, &list(&stopped.layers.upper, Depth::Copy)?)?;
    stopped.still(&house.places())?;

    // Started meanwhile, and even if it has ended again: what was copied is void.
    client.tell(&house, client.again)?;
    ensure!(matches!(stopped.still(&house.places()), Err(Error::Changed { .. })), "it runs");
    let again = house.running("web")?;
    ensure!(
        again.init != target.init && again.overlay.upper_identity == target.overlay.upper_identity,
        "{again:?}"
    );
    client.tell(&house, client.stop)?;
    eventually("it ends again", || !again.is_alive());
    ensure!(matches!(stopped.still(&house.places()), Err(Error::Changed { .. })), "it ran");

    client.tell(&house, client.remove)?;
    let gone = find(&client.named().parse()?, &house.places());
    ensure!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    Ok(())
}

#[test]
fn a_docker_container_running_paused_stopped() -> Result<()> {
    lives(&DOCKER, Cgroups::AsHost)
}

#[test]
fn a_docker_container_with_version_2_alone() -> Result<()> {
    lives(&DOCKER, Cgroups::V2Only)
}

/// The same where the layers are snapshots of docker's containerd, which alone says where those of a stopped one are.
#[test]
fn a_container_of_docker_with_the_containerd_image_store_running_paused_stopped() -> Result<()> {
    lives(&DOCKER_STORE, Cgroups::AsHost)
}

#[test]
fn a_podman_container_running_paused_stopped() -> Result<()> {
    lives(&PODMAN, Cgroups::AsHost)
}

#[test]
fn a_podman_container_with_version_2_alone() -> Result<()> {
    lives(&PODMAN, Cgroups::V2Only)
}

#[test]
fn a_containerd_container_running_paused_stopped() -> Result<()> {
    lives(&CONTAINERD, Cgroups::AsHost)
}

#[test]
fn a_containerd_container_with_version_2_alone() -> Result<()> {
    lives(&CONTAINERD, Cgroups::V2Only)
}
