//! The layers of the image that a container was started from: the new image refers to them, and they are not sent again.
//!
//! ```text
//!   base/os:1 in the registry ─► pulled, run ─► commit to team/app:1 in the same ─► the base's layers by mount, ours sent ─► pulled and run elsewhere
//!                                          '─► commit to another one, or a layout ─► the very same layers, out of containerd's content store
//! ```

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snapshot_engine::container::process;
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::eventually;
use snapshot_tests::engine::{self, Ended};
use snapshot_tests::everything::make;
use snapshot_tests::registry::{Fault, Faulty, Registry, Security, Then, skopeo};
use snapshot_tests::unpacked::{OciImage, must_be_equal};

use super::support::{House, frozen, reference, root_of, shell, tree};

/// Bytes of the base that no compression makes fewer.
const LARGE: u64 = 8 << 20;

/// What the container does with its base: writes beside it, deletes from it, replaces in it.
const SCRIPT: &str =
    "echo kept >/kept; /bin/busybox rm /gone; echo new >/replaced; echo >/done; exec /bin/busybox sleep 1000";

/// What docker makes anew for every container, for what it mounts over it; other runtimes have the same where the first container was docker's.
const MADE_ANEW: [&str; 7] =
    [".dockerenv", "dev: mtime", "dev/console", "etc: mtime", "etc/host", "etc/mtab", "etc/resolv.conf"];

#[derive(Debug)]
struct Kind {
    /// The scheme of its containers.
    name: &'static str,
    peer: &'static str,
    pull: &'static str,
    run: fn(&House, &str, &str, &str) -> Result<String>,
}

const DOCKER: Kind = Kind {
    name: "docker",
    peer: "docker",
    pull: "docker pull --quiet",
    run: |house, image, name, script| house.docker_like_of(image, "docker", name, &[], &shell(script)),
};

const DOCKER_STORE: Kind = Kind { peer: "docker-store", ..DOCKER };

const PODMAN: Kind = Kind {
    name: "podman",
    peer: "podman",
    pull: "podman pull --quiet --tls-verify=false",
    run: |house, image, name, script| house.docker_like_of(image, "podman", name, &[], &shell(script)),
};

const CONTAINERD: Kind = Kind {
    name: "containerd",
    peer: "containerd",
    pull: "ctr images pull --plain-http",
    run: |house, image, name, script| house.ctr_of(image, name, &[], &shell(script)),
};

/// A runtime that runs a container of an image out of a registry.
struct Scene {
    kind: &'static Kind,
    house: House,
    registry: Registry,
    /// Digests of the base's layers, the lowest first.
    base: Vec<String>,
}

impl Scene {
    /// The container is `origin`.
    fn open(kind: &'static Kind) -> Result<Option<Scene>> {
        let Some(house) = House::open(kind.peer)? else { return Ok(None) };
        let registry = Registry::start(Security::Open)?;
        // The base is made of the first container, whose own image is in no registry.
        let root = process::root(house.init());
        let mut large = Vec::new();
        File::open("/dev/urandom")?.take(LARGE).read_to_end(&mut large)?;
        for (name, bytes) in [("large", &large[..]), ("gone", b"old"), ("replaced", b"old")] {
            fs::write(root.join(name), bytes)?;
        }
        let mut scene = Scene { kind, house, registry, base: Vec::new() };
        let host = scene.registry.host();
        // Not compressed by us: layers that are made again are not the same by chance.
        let layout = scene.house.place.0.join("base").display().to_string();
        let init = format!("pid:{}", scene.house.init());
        scene.commit_with(&init, &format!("oci:{layout}:t"), &["--compressor", "none"])?;
        scene.copy(&format!("oci:{layout}:t"), "base/os:1")?;
        scene.base = scene.layers("base/os:1")?;
        scene.start(&host, "origin")?;
        Ok(Some(scene))
    }

    /// Has the runtime pull the base and run it.
    fn start(&self, host: &str, name: &str) -> Result<()> {
        let image = format!("{host}/base/os:1");
        self.house.line(&format!("{} {image}", self.kind.pull))?;
        (self.kind.run)(&self.house, &image, name, SCRIPT)?;
        let done = process::root(self.house.init_of(name)?).join("done");
        eventually("it has written", || done.exists());
        Ok(())
    }

    /// Puts an image into the registry by skopeo.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
        command.args(["--dest-tls-verify=false", from, &format!("docker://{}/{to}", self.registry.host())]);
        skopeo(&mut command)
    }

    fn commit(&self, container: &str, target: &str) -> Result<Value> {
        self.commit_with(container, target, &[])
    }

    fn commit_with(&self, container: &str, target: &str, options: &[&str]) -> Result<Value> {
        let done = self.try_to_commit(container, target, options)?.must_succeed()?.json()?;
        ensure!(done["state"] == "completed", "{done:#}");
        Ok(done)
    }

    fn try_to_commit(&self, container: &str, target: &str, options: &[&str]) -> Result<Ended> {
        let work = self.work()?;
        let words = ["commit", container, target, "--format", "oci", "--work-dir", &work, "--wait"];
        let more = ["--target-insecure", "--max-pause", "500ms", "--output", "json"];
        self.house.engine(&[&words[..], &more, options].concat())
    }

    fn work(&self) -> Result<String> {
        let work = self.house.place.0.join("work");
        fs::create_dir_all(&work)?;
        Ok(work.display().to_string())
    }

    fn origin(&self) -> String {
        format!("{}://origin", self.kind.name)
    }

    fn pulled(&self, registry: &Registry, name: &str) -> Result<PathBuf> {
        let layout = self.house.place.0.join("pulled");
        let _ = fs::remove_dir_all(&layout);
        registry.pull(name, &format!("oci:{}:t", layout.display()))?;
        engine::run(["image", "check", &format!("{}:t", layout.display())])?.must_succeed()?;
        Ok(layout)
    }

    /// Digests of an image's layers.
    fn layers(&self, name: &str) -> Result<Vec<String>> {
        layers(&self.pulled(&self.registry, name)?, "t")
    }

    /// The image has the base's layers first, and its own on top.
    fn must_share(&self, layers: &[String]) -> Result<()> {
        let shared = layers.len() > self.base.len() && layers.starts_with(&self.base);
        ensure!(shared, "{layers:?} do not begin with {:?}", self.base);
        Ok(())
    }
}

fn layers(layout: &Path, tag: &str) -> Result<Vec<String>> {
    let manifest = OciImage::read(layout, tag)?.manifest;
    let layers = manifest["layers"].as_array().context("no layers")?;
    Ok(layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect())
}

fn figure(done: &Value, name: &str) -> u64 {
    done["delivery"][name].as_u64().unwrap_or_default()
}

/// A container's root without what is mounted on it, and the frozen upperdir over the lowers of another.
fn must_be_the_same(copy: Pid, house: &House, origin: &str, done: &Value) -> Result<()> {
    let target = house.running(origin)?;
    let reference = reference(&target, &frozen(done)?, &make(&house.place.0, "reference")?)?;
    let root = root_of(copy)?;
    let path = tree(&root);
    ensure!(fs::read_to_string(path.join("replaced"))? == "new\n" && !path.join("gone").exists());
    must_be_equal(&reference.0, &path, 10, &MADE_ANEW)
}

/// The whole way in one registry: the base's layers are mounted, and the image runs where nothing of the first runtime is known.
fn shares(kind: &'static Kind) -> Result<Option<Scene>> {
    let Some(scene) = Scene::open(kind)? else { return Ok(None) };
    let host = scene.registry.host();
    let done = scene.commit(&scene.origin(), &format!("{host}/team/app:1"))?;
    ensure!(figure(&done, "mounted") == scene.base.len() as u64, "{done:#}");
    ensure!(figure(&done, "sent_bytes") < LARGE / 8, "{done:#}");
    scene.must_share(&scene.layers("team/app:1")?)?;
    let Some(second) = House::open(kind.peer)? else { return Ok(None) };
    let image = format!("{host}/team/app:1");
    second.line(&format!("{} {image}", kind.pull))?;
    (kind.run)(&second, &image, "copy", "exec /bin/busybox sleep 1000")?;
    must_be_the_same(second.init_of("copy")?, &scene.house, &scene.origin(), &done)?;
    Ok(Some(scene))
}

#[test]
fn docker_sends_no_layer_of_the_base() -> Result<()> {
    let Some(scene) = shares(&DOCKER)? else { return Ok(()) };
    // The tag has moved: the digest that docker remembers counts.
    let host = scene.registry.host();
    scene.copy(&format!("docker://{host}/team/app:1"), "base/os:1")?;
    let done = scene.commit(&scene.origin(), &format!("{host}/team/moved:1"))?;
    ensure!(figure(&done, "sent_bytes") < LARGE / 8, "{done:#}");
    scene.must_share(&scene.layers("team/moved:1")?)?;
    // The base has gone from the registry: the image is whole all the same.
    fs::remove_dir_all(scene.registry.data().join("docker/registry/v2/repositories/base"))?;
    let done = scene.commit(&scene.origin(), &format!("{host}/team/alone:1"))?;
    let layers = scene.layers("team/alone:1")?;
    ensure!(!layers.iter().any(|layer| scene.base.contains(layer)), "{done:#}");
    ensure!(figure(&done, "sent_bytes") > LARGE, "{done:#}");
    Ok(())
}

#[test]
fn a_registry_that_mounts_nothing_gets_the_base_from_itself() -> Result<()> {
    let Some(scene) = Scene::open(&DOCKER)? else { return Ok(()) };
    let way = Faulty::to(scene.registry.local())?;
    scene.start(&way.host(), "refused")?;
    let unmounted = Fault { method: "POST", part: "mount=", skip: 0, times: 99, then: Then::WithoutQuery };
    way.set(&[unmounted]);
    let done = scene.commit("docker://refused", &format!("{}/team/app:1", way.host()))?;
    ensure!(figure(&done, "mounted") == 0 && figure(&done, "sent_bytes") > LARGE, "{done:#}");
    scene.must_share(&scene.layers("team/app:1")?)?;
    // Broken off within the base, it is gone on with.
    let fails = |part, skip| Fault { method: "PATCH", part, skip, times: 99, then: Then::Answer(500, "") };
    way.set(&[unmounted, fails("team/again", 1)]);
    let target = format!("{}/team/again:1", way.host());
    scene.try_to_commit("docker://refused", &target, &[])?.must_fail(5, &["answers 500", "resume"])?;
    way.set(&[unmounted]);
    let failed = engine::list(Path::new(&scene.work()?))?;
    let failed = failed.iter().find(|one| one["state"] == "failed").context("none has failed")?;
    let id = failed["snapshot_id"].as_str().context("no id")?;
    let done = engine::run(["resume", id, "--work-dir", &scene.work()?, "--wait", "--output", "json"])?;
    let done = done.must_succeed()?.json()?;
    ensure!(figure(&done, "continued_bytes") > 0 || figure(&done, "present") > 0, "{done:#}");
    scene.must_share(&scene.layers("team/again:1")?)
}

#[test]
fn podman_sends_no_layer_of_the_base() -> Result<()> {
    shares(&PODMAN).map(drop)
}

#[test]
fn docker_with_the_containerd_image_store_sends_no_layer_of_the_base() -> Result<()> {
    let Some(scene) = shares(&DOCKER_STORE)? else { return Ok(()) };
    has_the_layers_for_everybody(&scene)
}

#[test]
fn containerd_sends_no_layer_of_the_base_and_has_them_for_others() -> Result<()> {
    let Some(scene) = shares(&CONTAINERD)? else { return Ok(()) };
    has_the_layers_for_everybody(&scene)?;
    // As with `discard_unpacked_layers`: then they are made of the lower directories.
    for layer in &scene.base {
        scene.house.line(&format!("ctr content rm {layer}"))?;
    }
    fs::remove_dir_all(scene.house.place.0.join("work/snapshot-engine/layers"))?;
    let images = scene.house.place.0.join("alone");
    scene.commit(&scene.origin(), &format!("oci:{}:t", images.display()))?;
    engine::run(["image", "check", &format!("{}:t", images.display())])?.must_succeed()?;
    ensure!(!layers(&images, "t")?.iter().any(|layer| scene.base.contains(layer)));
    Ok(())
}

/// Into a layout, and into a registry that knows nothing of the base: the very same layers.
fn has_the_layers_for_everybody(scene: &Scene) -> Result<()> {
    let images = scene.house.place.0.join("images");
    scene.commit(&scene.origin(), &format!("oci:{}:t", images.display()))?;
    engine::run(["image", "check", &format!("{}:t", images.display())])?.must_succeed()?;
    scene.must_share(&layers(&images, "t")?)?;
    let other = Registry::start(Security::Open)?;
    let done = scene.commit(&scene.origin(), &format!("{}/team/app:1", other.host()))?;
    ensure!(figure(&done, "sent_bytes") > LARGE, "{done:#}");
    scene.must_share(&layers(&scene.pulled(&other, "team/app:1")?, "t")?)
}
