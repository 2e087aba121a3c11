//! Everything that may go wrong between the engine and a registry: the command ends with the network's exit code and says what to do, nothing is lost, and `resume`
//! delivers when the fault is gone. What each fault does to single requests is tested beside the code (`snapshot-engine/src/deliver/registry/tests.rs`).

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snapshot_tests::engine::{self, Ended, Started};
use snapshot_tests::registry::{Fault, Faulty, PASSWORD, Registry, Security, Then, USER, Wire};
use snapshot_tests::root_or_skip;

use super::support::{Lab, must_be_whole};

/// Nobody verifies this registry, and more than one chunk of a push is sent to it.
const PLAIN: [&str; 4] = ["--wait", "--target-insecure", "--compressor", "none"];

/// A lasting fault of these requests.
const fn always(method: &'static str, part: &'static str, then: Then) -> Fault {
    Fault { method, part, skip: 0, times: u32::MAX, then }
}

/// A snapshot whose push has failed by the network's fault, and is kept.
fn kept(lab: &Lab, ended: &Ended, says: &[&str]) -> Result<String> {
    ended.must_fail(5, says)?;
    ended.must_fail(5, &["resume"])?;
    let snapshots = engine::list(std::path::Path::new(&lab.work()))?;
    let failed: Vec<&Value> = snapshots.iter().filter(|s| s["state"] == "failed").collect();
    ensure!(failed.len() == 1 && failed[0]["failure"]["class"] == "network", "{snapshots:#?}");
    Ok(failed[0]["snapshot_id"].as_str().context("no id")?.to_owned())
}

/// Goes on with it. The image was built once, and is whole at the registry.
fn goes_on(lab: &Lab, registry: &Registry, id: &str, name: &str) -> Result<Value> {
    let done = lab.run(&["resume", id, "--wait"], &[])?.must_succeed()?.json()?;
    ensure!(done["state"] == "completed", "{done:#}");
    let built = done["timings"].as_array().into_iter().flatten().filter(|t| t["stage"] == "chunk").count();
    ensure!(built == 1, "the image was built again: {done:#}");
    must_be_whole(lab, registry, name, &done["delivery"]["digest"])?;
    Ok(done)
}

#[test]
fn errors_that_pass_are_waited_out_and_a_registry_that_says_how_long_is_obeyed() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-passing", 12 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let way = Faulty::to(registry.local())?;
    let once = |method, part, skip, then| Fault { method, part, skip, times: 1, then };
    way.set(&[
        once("POST", "uploads", 0, Then::Answer(429, "retry-after: 2")),
        once("HEAD", "blobs", 1, Then::Answer(503, "")),
        once("PATCH", "uploads", 0, Then::Break(3 << 20)),
        once("PATCH", "uploads", 1, Then::Answer(500, "")),
        once("PUT", "manifests", 0, Then::Answer(502, "")),
    ]);
    let began = Instant::now();
    let done = lab.commit(&format!("{}/team/web:1", way.host()), &PLAIN)?.must_succeed()?.json()?;
    ensure!(began.elapsed() > Duration::from_secs(2), "it was to be left alone: {:?}", began.elapsed());
    ensure!(done["delivery"]["retries"].as_u64() >= Some(5), "{done:#}");
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;
    lab.end()
}

#[test]
fn errors_that_last_cost_the_push_and_resume_delivers_when_they_are_gone() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-lasting", 2 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let way = Faulty::to(registry.local())?;
    let later = "try again later";
    for (name, fault, says) in [
        ("busy", always("POST", "uploads", Then::Answer(429, "retry-after: 0")), ["answers 429", later]),
        ("broken", always("PATCH", "uploads", Then::Answer(500, "")), ["answers 500", later]),
        ("full", always("PATCH", "uploads", Then::Answer(507, "")), ["answers 507", later]),
        ("dropped", always("PATCH", "uploads", Then::Break(1 << 20)), ["cannot be reached", "tries"]),
        ("named", always("PUT", "manifests", Then::Answer(500, "")), ["the manifest", later]),
        (
            "denied",
            always("PUT", "manifests", Then::Answer(403, "")),
            ["without credentials", "docker login"],
        ),
    ] {
        // A repository for each, and none to take blobs from.
        let repository = format!("team/{name}");
        way.set(&[fault]);
        let ended = lab.commit(&format!("{}/{repository}:1", way.host()), &PLAIN)?;
        let id = kept(&lab, &ended, &says).with_context(|| name.to_owned())?;
        way.set(&[]);
        goes_on(&lab, &registry, &id, &format!("{repository}:1")).with_context(|| name.to_owned())?;
        lab.run(&["remove", &id], &[])?.must_succeed()?;
    }
    lab.end()
}

#[test]
fn a_token_that_expires_within_a_push_is_replaced_and_one_that_is_refused_is_told() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-token", 12 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let way = Faulty::to(registry.local())?;
    way.guard(4);
    let as_user = |words: &[&str], password: &str| -> Result<Ended> {
        let mut command = lab.command(words, &[]);
        command.env("SNAPSHOT_ENGINE_USERNAME", USER).env("SNAPSHOT_ENGINE_PASSWORD", password);
        Started::new(&mut command)?.end()
    };
    let target = format!("{}/team/web:1", way.host());
    let words = [&["commit", lab.demo.name(), &target, "--max-pause", "50ms"][..], &PLAIN].concat();
    let refused = as_user(&words, "wrong")?;
    let id = kept(&lab, &refused, &["refuses these credentials", "--password-stdin"])?;
    ensure!(way.tokens() == 0 && !refused.stderr.contains("wrong"), "{refused:?}");

    let done = as_user(&["resume", &id, "--wait"], PASSWORD)?.must_succeed()?.json()?;
    ensure!(way.tokens() >= 3, "{} tokens for {done:#}", way.tokens());
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;
    lab.end()
}

/// The registry's own disk.
struct Disk<'a>(&'a std::path::Path);

impl Disk<'_> {
    fn mount(&self, options: &str) -> Result<()> {
        std::fs::create_dir_all(self.0)?;
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0).status()?;
        ensure!(done.success(), "mount {options}");
        Ok(())
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_registry_whose_disk_is_full_gets_the_image_when_it_has_room() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-full", 12 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let data = registry.data();
    let disk = Disk(&data);
    disk.mount("size=6m")?;
    let ended = lab.commit(&format!("{}/team/web:1", registry.host()), &PLAIN)?;
    let id = kept(&lab, &ended, &["answers 500", "try again later"])?;
    disk.mount("remount,size=64m")?;
    goes_on(&lab, &registry, &id, "team/web:1")?;
    drop(disk);
    lab.end()
}

#[test]
fn a_registry_that_dies_within_a_push_gets_the_rest_when_it_is_back() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-dies", 24 << 20)?;
    let mut registry = Registry::start(Security::Open)?;
    let wire = Wire::to(registry.local(), 8 << 20)?;
    let target = format!("{}/team/web:1", wire.host());
    let words = ["commit", lab.demo.name(), &target, "--max-pause", "50ms", "--target-timeout", "1s"];
    let mut push = Started::new(&mut lab.command(&words, &PLAIN))?;
    let began = Instant::now();
    while wire.passed() < 12 << 20 {
        ensure!(push.runs()? && began.elapsed() < engine::PATIENCE, "{}: {:#?}", wire.passed(), push.end());
        std::thread::sleep(Duration::from_millis(2));
    }
    registry.stop();
    let id = kept(&lab, &push.end()?, &["cannot be reached"])?;
    registry.resume()?;
    wire.set_rate(0);
    let before = wire.passed();
    goes_on(&lab, &registry, &id, "team/web:1")?;
    ensure!(wire.passed() > before, "nothing was left to send");
    lab.end()
}

/// Slower than the time limit of a request alone would allow: bytes have a time of their own.
#[test]
fn a_slow_registry_is_waited_for() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-slow", 4 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let wire = Wire::to(registry.local(), 1 << 20)?;
    let target = format!("{}/team/web:1", wire.host());
    let began = Instant::now();
    let more = [&PLAIN[..], &["--target-timeout", "1s"]].concat();
    let done = lab.commit(&target, &more)?.must_succeed()?.json()?;
    ensure!(began.elapsed() > Duration::from_secs(3), "that was not slow: {:?}", began.elapsed());
    ensure!(done["delivery"]["retries"] == 0, "{done:#}");
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;
    lab.end()
}
