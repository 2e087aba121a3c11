//! What is peculiar to docker with the containerd image store: docker names no layers, an image's id is the digest of its manifest, and what is stopped
//! can only be found through docker's containerd. The rest is tested where it is of docker without it (`life`, `listing`, `targets`).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snapshot_engine::container::Found;
use snapshot_tests::bench::eventually;
use snapshot_tests::engine;

use super::support::{House, IMAGE};

const PEER: &str = "docker-store";

/// Writes a word and goes on, or has ended by the time this returns.
fn container(house: &House, name: &str, goes_on: bool) -> Result<()> {
    let then = if goes_on { "; exec /bin/busybox sleep 1000" } else { "" };
    house.docker_like("docker", name, &[], &format!("echo {name} >/data/word{then}"))?;
    let wanted = if goes_on { "running" } else { "exited" };
    let state = format!("docker inspect --format {{{{.State.Status}}}} {name}");
    eventually("it is there", || house.line(&state).is_ok_and(|state| state == wanted));
    Ok(())
}

#[test]
fn docker_says_that_there_are_layers_and_its_containerd_which() -> Result<()> {
    let Some(house) = House::open(PEER)? else { return Ok(()) };
    // That it is this store and not the other.
    let driver = house.line("docker info --format {{.DriverStatus}}")?;
    ensure!(driver.contains("io.containerd.snapshotter.v1"), "{driver}");
    container(&house, "gone", false)?;
    let graph = house.line("docker inspect --format {{.GraphDriver.Data}} gone")?;
    ensure!(!graph.contains("UpperDir"), "{graph}");

    let Found::Stopped(stopped) = house.find("docker://gone")? else { anyhow::bail!("it runs") };
    let snapshot = stopped.snapshot.as_ref().context("no snapshot")?;
    ensure!(snapshot.namespace == "moby" && snapshot.snapshotter == "overlayfs", "{snapshot:?}");
    ensure!(snapshot.address.ends_with("run/docker/containerd/containerd.sock"), "{snapshot:?}");
    ensure!(fs::read_to_string(stopped.layers.upper.join("data/word"))? == "gone\n", "{stopped:?}");

    // Nobody who is asked is its containerd: what to do is said, and `ps` says it too. A running one needs nobody else.
    container(&house, "lives", true)?;
    let nowhere = house.place.0.join("nowhere.sock").display().to_string();
    let other = ["--containerd-address", &nowhere];
    let target = format!("oci:{}:t", house.place.0.join("images").display());
    let work = house.place.0.display().to_string();
    let commit = |name: &str| {
        let words = ["commit", name, &target, "--work-dir", &work, "--wait", "--max-pause", "100ms"];
        house.engine(&[&words[..], &other].concat())
    };
    commit("docker://gone")?
        .must_fail(3, &["docker does not say where its layers are", "--containerd-address"])?;
    let listed = house.engine(&[&["ps", "--all", "--output", "json"][..], &other].concat())?;
    let listed = listed.must_succeed()?.json()?;
    let row = listed["containers"].as_array().into_iter().flatten().find(|row| row["names"][0] == "gone");
    let refused = row.and_then(|row| row["refused"].as_str()).unwrap_or_default();
    ensure!(refused.contains("--containerd-address"), "{listed:#}");
    commit("docker://lives")?.must_succeed()?;
    Ok(())
}

/// Running and stopped, and of every format, the image has what the container wrote, and above what it was started from.
#[test]
fn images_of_every_format_have_all_of_the_container() -> Result<()> {
    let Some(house) = House::open(PEER)? else { return Ok(()) };
    container(&house, "lives", true)?;
    container(&house, "gone", false)?;
    let work = house.place.0.join("work").display().to_string();
    fs::create_dir(&work)?;
    for (name, format) in ["lives", "gone"].into_iter().flat_map(|n| ["nydus", "oci", "auto"].map(|f| (n, f)))
    {
        let image = format!("oci:{}:{name}-{format}", house.place.0.join("images").display());
        let words = ["commit", name, &image, "--format", format, "--work-dir", &work, "--wait"];
        let done = house.engine(&[&words[..], &["--max-pause", "100ms", "--output", "json"]].concat())?;
        let done = done.must_succeed()?.json()?;
        ensure!(done["state"] == "completed", "{done:#}");
        engine::run(["image", "check", &image])?.must_succeed()?;
        let tree = house.place.0.join(format!("{name}-{format}"));
        engine::run(["image", "unpack", &image, &tree.to_string_lossy()])?.must_succeed()?;
        ensure!(fs::read_to_string(tree.join("data/word"))? == format!("{name}\n"));
        ensure!(fs::read(tree.join("bin/busybox"))? == fs::read("/bin/busybox")?, "the base is missing");
    }
    Ok(())
}

/// An image's id is the digest of its manifest here: so the base is found in a layout that `docker save` wrote, and its layers are referred to.
#[test]
fn the_image_it_was_started_from_is_the_base_where_docker_saved_it() -> Result<()> {
    let Some(house) = House::open(PEER)? else { return Ok(()) };
    container(&house, "lives", true)?;
    let (archive, layout) = (house.place.0.join("saved.tar"), house.place.0.join("saved"));
    house.line(&format!("docker save --output {} {IMAGE}", archive.display()))?;
    fs::create_dir(&layout)?;
    house.line(&format!("tar -xf {} -C {}", archive.display(), layout.display()))?;
    let blob = |digest: &Value| -> Result<Value> {
        let hex = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).context("no digest")?;
        Ok(serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(hex))?)?)
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let mut base = blob(&index["manifests"][0]["digest"])?;
    if base["manifests"].is_array() {
        base = blob(&base["manifests"][0]["digest"])?;
    }
    let layers = base["layers"].as_array().context("no layers")?;

    let (target, work) = (format!("oci:{}:snap", layout.display()), house.place.0.display().to_string());
    let words = ["commit", "docker://lives", &target, "--format", "oci", "--work-dir", &work, "--wait"];
    let done = house.engine(&[&words[..], &["--max-pause", "100ms", "--output", "json"]].concat())?;
    let done = done.must_succeed()?.json()?;
    let made = blob(&done["image"]["manifest"])?;
    let all = made["layers"].as_array().context("no layers")?;
    ensure!(all.len() > layers.len(), "{made:#}");
    let same = all.iter().zip(layers).all(|(made, base)| made["digest"] == base["digest"]);
    ensure!(same, "the base's layers were made again: {made:#} from {base:#}");
    engine::run(["image", "check", &target])?.must_succeed()?;
    Ok(())
}
