//! `ps` at real runtimes, and what a runtime that hangs costs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use snapshot_engine::container::{Error, find};
use snapshot_tests::bench::eventually;
use snapshot_tests::host;

use super::support::{COUNTING, House, IMAGE};

const SLEEP: &str = "exec /bin/busybox sleep 1000";

fn docker(house: &House, name: &str, script: &str) -> Result<String> {
    house.docker_like("docker", name, &["--label", "team=blue"], script)
}

/// The row of a container in a listing.
fn row<'a>(listing: &'a Value, name: &str) -> Result<&'a Value> {
    let rows = listing["containers"].as_array().context("no containers")?;
    let named = |row: &&Value| row["names"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    rows.iter().find(named).with_context(|| format!("{name} is not listed: {listing:#}"))
}

#[test]
fn ps_says_what_a_snapshot_of_each_docker_container_would_be_like() -> Result<()> {
    says_of_each("docker")
}

#[test]
fn ps_says_the_same_of_docker_with_the_containerd_image_store() -> Result<()> {
    says_of_each("docker-store")
}

fn says_of_each(peer: &'static str) -> Result<()> {
    let Some(house) = House::open(peer)? else { return Ok(()) };
    docker(&house, "busy", COUNTING)?;
    docker(&house, "idle", SLEEP)?;
    docker(&house, "held", &format!("echo x >/data/held; {SLEEP}"))?;
    docker(&house, "done", "echo 0123456789 >/data/done")?;
    let target = house.running("busy")?;
    eventually("it writes", || {
        fs::metadata(target.overlay.upper.join("data/log")).is_ok_and(|m| m.len() > 100)
    });
    let held = house.running("held")?;
    eventually("it has written", || held.overlay.upper.join("data/held").exists());
    house.line("docker pause held")?;
    eventually("it ends", || {
        house.line("docker inspect --format {{.State.Status}} done").is_ok_and(|s| s == "exited")
    });

    let plain = house.engine(&["ps", "--output", "json"])?.must_succeed()?.json()?;
    ensure!(row(&plain, "done").is_err(), "one that does not run is listed without --all");
    let all = house.engine(&["ps", "--all", "--rate=500ms", "--output", "json"])?.must_succeed()?.json()?;
    let busy = row(&all, "busy")?;
    ensure!(busy["runtime"] == "docker" && busy["state"] == "running" && busy["image"] == IMAGE, "{busy:#}");
    ensure!(busy["labels"]["team"] == "blue" && busy["init"] == target.init.0, "{busy:#}");
    ensure!(busy["gate"]["gate"] == "fence" && busy["refused"].is_null(), "{busy:#}");
    // It appends to one small file, which is tracked in blocks of 64 KiB; each becomes dirty once in the half second.
    let rate = busy["dirty_rate"].as_u64().context("no rate")?;
    ensure!((1..4 << 20).contains(&rate) && busy["upper_bytes"].as_u64() > Some(100), "{busy:#}");
    let idle = row(&all, "idle")?;
    ensure!(idle["gate"]["gate"] == "none" && idle["dirty_rate"] == 0, "{idle:#}");
    let held = row(&all, "held")?;
    ensure!(
        held["state"] == "paused" && held["gate"]["gate"] == "none" && held["upper_bytes"] == 2,
        "{held:#}"
    );
    let done = row(&all, "done")?;
    ensure!(
        done["state"] == "stopped" && done["gate"]["gate"] == "none" && done["upper_bytes"] == 11,
        "{done:#}"
    );
    ensure!(done["init"].is_null() && done["dirty_rate"].is_null(), "{done:#}");
    // docker, containerd and runc all know it: it is listed once.
    let times = |listing: &Value| {
        listing["containers"].as_array().map(|rows| rows.iter().filter(|r| r["id"] == busy["id"]).count())
    };
    ensure!(times(&all) == Some(1), "{all:#}");

    let text = house.engine(&["ps", "--all"])?.must_succeed()?.stdout;
    ensure!(text.starts_with("RUNTIME") && text.contains("its owner has paused it"), "{text}");
    Ok(())
}

#[test]
fn ps_gives_the_reason_where_there_is_no_overlay() -> Result<()> {
    let Some(house) = House::open("containerd")? else { return Ok(()) };
    house.ctr("odd", &["--snapshotter", "native"], SLEEP)?;
    let listing = house.engine(&["ps", "--output", "json"])?.must_succeed()?.json()?;
    let odd = row(&listing, "odd")?;
    ensure!(odd["gate"].is_null(), "{odd:#}");
    ensure!(odd["refused"].as_str().is_some_and(|why| why.contains("not an overlay")), "{odd:#}");
    house.engine(&["commit", "odd", "oci:/nowhere/x:t"])?.must_fail(1, &["not an overlay"])
}

/// A process that is stopped by a signal until this is dropped.
struct Hung(rustix::process::Pid);

impl Hung {
    fn new(pid: u32) -> Result<Hung> {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("no process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Hung(pid))
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_daemon_that_hangs_costs_two_seconds_and_is_named() -> Result<()> {
    let Some(house) = House::open("docker")? else { return Ok(()) };
    let id = docker(&house, "web", SLEEP)?;
    let init = house.running("docker://web")?.init;
    let place = house.place.0.to_string_lossy().into_owned();
    let daemon = host::processes(&place).into_iter().find(|(_, line)| line.contains("dockerd --bridge"));
    let hung = Hung::new(daemon.context("no dockerd")?.0)?;

    let timed = |reference: &str| {
        let began = Instant::now();
        (house.find(reference), began.elapsed())
    };
    // Others know it by its id.
    let (found, took) = timed(&id);
    ensure!(took < Duration::from_secs(4), "{took:?}");
    ensure!(
        matches!(&found, Ok(snapshot_engine::container::Found::Running(t)) if t.init == init),
        "{found:?}"
    );
    let listed = house.engine(&["ps"])?.must_succeed()?;
    ensure!(
        listed.stdout.contains(&id[..12]) && listed.stderr.contains("did not answer within 2 s"),
        "{listed:?}"
    );
    // By its name only docker does, and asked alone it is the error.
    let unknown = find(&"web".parse()?, &house.places());
    ensure!(
        matches!(&unknown, Err(Error::NotFound { unanswered, .. }) if unanswered[0].contains("docker")),
        "{unknown:?}"
    );
    let asked = find(&"docker://web".parse()?, &house.places());
    ensure!(matches!(asked, Err(Error::Unanswered { .. })), "{asked:?}");

    drop(hung);
    eventually("it answers again", || house.running("docker://web").is_ok_and(|t| t.init == init));
    Ok(())
}
