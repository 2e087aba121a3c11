//! Images given to runtimes: `containerd:` and `docker-daemon:`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use snapshot_engine::container::process;
use snapshot_engine::deliver::{DeliverError, Replace, Request, deliver};
use snapshot_engine::model::access::{Access, Delivery};
use snapshot_engine::model::progress::Quiet;
use snapshot_tests::engine;
use snapshot_tests::registry::skopeo;

use super::support::{House, IMAGE};

#[test]
fn containerd_takes_an_image_and_keeps_all_of_it() -> Result<()> {
    let Some(house) = House::open("containerd")? else { return Ok(()) };
    let (pid, work) = (format!("pid:{}", house.init()), house.place.0.join("work").display().to_string());
    let name = "localhost/team/web:1";
    let commit = || -> Result<serde_json::Value> {
        let target = format!("containerd:snapshots/{name}");
        std::fs::create_dir_all(&work)?;
        let words = ["commit", &pid, &target, "--work-dir", &work, "--wait", "--max-pause", "100ms"];
        house.engine(&[&words[..], &["--output", "json"]].concat())?.must_succeed()?.json()
    };
    let first = commit()?;
    ensure!(first["delivery"]["present"] == 0, "{first:#}");
    let digest = first["delivery"]["digest"].as_str().unwrap_or_default();
    let listed = house.line("ctr --namespace snapshots images ls")?;
    ensure!(listed.contains(name) && listed.contains(digest), "{listed}");
    // What nothing refers to goes now.
    house.line("ctr --namespace snapshots leases create --id collect")?;
    house.line("ctr --namespace snapshots leases delete --sync collect")?;
    ensure!(house.line("ctr --namespace snapshots leases ls --quiet")?.is_empty());
    let archive = house.place.0.join("image.tar").display().to_string();
    house.line(&format!("ctr --namespace snapshots images export {archive} {name}"))?;
    let layout = house.place.0.join("layout");
    std::fs::create_dir(&layout)?;
    house.line(&format!("tar -xf {archive} -C {}", layout.display()))?;
    engine::run(["image", "check", &layout.display().to_string()])?.must_succeed()?;
    // Another one under the same name: what is there is not sent again.
    let second = commit()?;
    ensure!(second["delivery"]["present"].as_u64() > Some(0), "{second:#}");
    let other = second["delivery"]["digest"].as_str().unwrap_or_default();
    ensure!(other == digest || !house.line("ctr --namespace snapshots images ls")?.contains(digest));
    Ok(())
}

fn give(house: &House, layout: &Path, name: &str) -> Result<Delivery, DeliverError> {
    let socket = process::root(house.witness).join("run/docker.sock");
    let access = Access { docker: vec![socket], ..Access::default() };
    let target = format!("docker-daemon:{name}").parse().unwrap_or_else(|e| panic!("{e}"));
    let request = Request {
        layout,
        tag: "t",
        target: &target,
        access: &access,
        login: None,
        replace: Replace::No,
        near: &[],
        origin: None,
        journal: house.place.0.join("push.json"),
    };
    deliver(&request, &Quiet)
}

#[test]
fn docker_takes_an_image_with_layers_of_every_compression_and_runs_it() -> Result<()> {
    takes_every_compression("docker")
}

#[test]
fn docker_with_the_containerd_image_store_takes_one_too_and_runs_it() -> Result<()> {
    takes_every_compression("docker-store")
}

fn takes_every_compression(peer: &'static str) -> Result<()> {
    let Some(house) = House::open(peer)? else { return Ok(()) };
    // By docker's own client: a skopeo of its age does not speak with every docker.
    let archive = house.place.0.join("saved.tar").display().to_string();
    house.run(&["docker", "save", "--output", &archive, IMAGE])?;
    for format in ["gzip", "zstd"] {
        let layout = house.place.0.join(format);
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-compress-format",
            format,
            "--dest-compress",
        ]);
        copy.args([format!("docker-archive:{archive}"), format!("oci:{}:t", layout.display())]);
        skopeo(&mut copy)?;
        let name = format!("team/{format}:1");
        let done = give(&house, &layout, &name)?;
        let id = house.line(&format!("docker image inspect --format {{{{.Id}}}} {name}"))?;
        ensure!(id == done.digest, "{id} and {done:?}");
        let parent = format!("--cgroup-parent={}", house.cgroup(format)?);
        let said = house.run(&[
            "docker",
            "run",
            "--rm",
            "--network=none",
            &parent,
            &name,
            "/bin/busybox",
            "echo",
            "hello",
        ])?;
        ensure!(said.ends_with("hello"), "{said}");
    }
    // What docker cannot use it is not given.
    let made = house.commit(&format!("pid:{}", house.init()), "t")?;
    ensure!(made["state"] == "completed", "{made:#}");
    let refused = give(&house, &house.place.0.join("images"), "team/nydus:1");
    ensure!(matches!(refused, Err(DeliverError::NydusForDocker { .. })), "{refused:?}");
    Ok(())
}

/// The whole way: what a running container has written, to its layer and to a volume, in an image that the same daemon was given and runs.
#[test]
fn docker_runs_what_was_committed_to_it() -> Result<()> {
    runs_what_was_committed("docker")
}

#[test]
fn docker_with_the_containerd_image_store_runs_what_was_committed_to_it() -> Result<()> {
    runs_what_was_committed("docker-store")
}

fn runs_what_was_committed(peer: &'static str) -> Result<()> {
    let Some(house) = House::open(peer)? else { return Ok(()) };
    let script = "echo kept >/kept; echo volume >/data/word; exec /bin/busybox sleep 600";
    house.docker_like(
        "docker",
        "origin",
        &["--env=A=b", "--label=tier=test", "--volume=data:/data"],
        script,
    )?;
    let work = house.place.0.join("work");
    std::fs::create_dir_all(&work)?;
    let work = work.display().to_string();
    let words =
        ["commit", "docker://origin", "docker-daemon:team/copy:1", "--format", "oci", "--change", "ENV C=d"];
    let more =
        ["--with-path", "/data", "--work-dir", &work, "--wait", "--max-pause", "100ms", "--output", "json"];
    let done = house.engine(&[&words[..], &more].concat())?.must_succeed()?.json()?;
    ensure!(done["state"] == "completed", "{done:#}");
    let copy = format!("--cgroup-parent={}", house.cgroup("copy")?);
    let run = ["docker", "run", "--rm", "--network=none", &copy, "team/copy:1", "/bin/busybox", "sh", "-c"];
    let said = house.run(&[&run[..], &["/bin/busybox cat /kept /data/word; echo $A $C"]].concat())?;
    ensure!(said == "kept\nvolume\nb d", "{said}");
    ensure!(house.line("docker image inspect --format {{.Config.Labels.tier}} team/copy:1")? == "test");
    house.line("docker rm --force origin")?;
    Ok(())
}

/// The same with containerd.
#[test]
fn containerd_runs_what_was_committed_to_it() -> Result<()> {
    let Some(house) = House::open("containerd")? else { return Ok(()) };
    let (pid, work) = (format!("pid:{}", house.init()), house.place.0.join("work"));
    std::fs::create_dir_all(&work)?;
    let work = work.display().to_string();
    std::fs::write(process::root(house.init()).join("kept"), "kept")?;
    let (name, target) = ("localhost/team/copy:1", "containerd:snapshots/localhost/team/copy:1");
    let words = ["commit", &pid, target, "--format", "oci", "--work-dir", &work, "--wait"];
    house.engine(&[&words[..], &["--max-pause", "100ms"]].concat())?.must_succeed()?;
    let cgroup = house.cgroup("copy")?;
    let run = format!("ctr --namespace snapshots run --rm --null-io --cgroup {cgroup} {name} copy");
    // Exits with another code, and so with an error, if it is not there.
    house.line(&format!("{run} /bin/busybox grep -q kept /kept"))?;
    Ok(())
}
