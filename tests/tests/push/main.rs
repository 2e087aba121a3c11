//! From a container into a real registry (distribution) and out of it again by skopeo: without and with credentials and TLS, cut off in the middle, and
//! not there at all; with certificates that both sides show (`mutual`), and with everything on the way that may go wrong (`faults`). Needs root.

mod faults;
mod mutual;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snapshot_tests::engine::{self, Ended, Started};
use snapshot_tests::registry::{PASSWORD, Registry, Security, USER, Wire, base64};
use snapshot_tests::root_or_skip;

use support::{Lab, must_be_whole};

#[test]
fn an_image_goes_into_a_registry_and_comes_out_the_same() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-open", 8 << 20)?;
    let registry = Registry::start(Security::Open)?;
    let host = registry.host();
    let first = lab
        .commit(&format!("{host}/team/web:1"), &["--wait", "--target-insecure"])?
        .must_succeed()?
        .json()?;
    ensure!(
        first["state"] == "completed" && first["delivery"]["digest"] == first["image"]["manifest"],
        "{first:#}"
    );
    let of = |result: &Value, name: &str| result["delivery"][name].as_u64().unwrap_or(0);
    ensure!(of(&first, "sent") >= 3 && of(&first, "present") == 0 && of(&first, "retries") == 0, "{first:#}");
    must_be_whole(&lab, &registry, "team/web:1", &first["delivery"]["digest"])?;

    // The same lowers, in another repository: the registry takes them from the first.
    let second = lab.commit(&format!("docker://{host}/team/other:1"), &["--wait", "--target-insecure"])?;
    let second = second.must_succeed()?.json()?;
    ensure!(of(&second, "mounted") >= 1, "{second:#}");
    ensure!(of(&second, "sent_bytes") < of(&first, "sent_bytes"), "{second:#}");
    must_be_whole(&lab, &registry, "team/other:1", &second["delivery"]["digest"])?;
    // And in the same: they are there.
    let third = lab
        .commit(&format!("{host}/team/web:2"), &["--wait", "--target-insecure"])?
        .must_succeed()?
        .json()?;
    ensure!(of(&third, "present") >= 1 && of(&third, "mounted") == 0, "{third:#}");

    // Nothing of it stays but what the record needs.
    for entry in fs::read_dir(lab.path("work/snapshot-engine/snapshots"))? {
        let snapshot = entry?.path();
        ensure!(!snapshot.join("layout").exists() && !snapshot.join("push.json").exists(), "{snapshot:?}");
    }
    // It has no TLS, and nobody said that this is well.
    let refused = lab.commit(&format!("{host}/team/web:3"), &["--wait"])?;
    refused.must_fail(5, &["TLS", "--target-insecure"])?;
    lab.end()
}

#[test]
fn only_who_may_pushes_to_a_guarded_registry_and_no_secret_is_seen() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-guarded", 2 << 20)?;
    let registry = Registry::start(Security::Guarded)?;
    let target = format!("{}/team/web:1", registry.host());
    let authority = registry.authority().display().to_string();
    let trusting = ["--wait", "--tls-ca", &authority];
    lab.commit(&target, &["--wait"])?.must_fail(5, &["certificate", "--tls-ca"])?;
    lab.commit(&target, &trusting)?.must_fail(5, &["without credentials", "docker login"])?;
    let with_input = |mut command: Command, input: &str| -> Result<Ended> {
        let file = lab.path("input");
        fs::write(&file, input)?;
        command.stdin(fs::File::open(&file)?);
        let ended = Started::new(&mut command)?.end();
        fs::remove_file(file)?;
        ended
    };
    let words = ["commit", lab.demo.name(), &target, "--max-pause", "50ms"];
    let who = [&trusting[..], &["--username", USER, "--password-stdin"]].concat();
    with_input(lab.command(&words, &who), "wrong\n")?
        .must_fail(5, &["refuses these credentials", "--password-stdin"])?;
    let done = with_input(lab.command(&words, &who), &format!("{PASSWORD}\n"))?.must_succeed()?.json()?;
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;

    // A snapshot that could not be delivered goes on with what it lacked; where it was told of the authority it need not be again.
    let failed = engine::list(Path::new(&lab.work()))?;
    let failed = failed
        .iter()
        .find(|s| s["record"]["options"]["access"]["tls_ca"].is_string() && s["state"] == "failed");
    let id = failed.and_then(|s| s["snapshot_id"].as_str()).context("none failed")?.to_owned();
    // By the configuration of docker.
    fs::create_dir(lab.path("home/.docker"))?;
    let auth = base64(&format!("{USER}:{PASSWORD}"));
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host());
    fs::write(lab.path("home/.docker/config.json"), config)?;
    lab.run(&["resume", &id, "--wait"], &[])?.must_succeed()?;
    // And by a helper.
    let bin = lab.path("bin");
    fs::create_dir(&bin)?;
    let helper = bin.join("docker-credential-test");
    let answer = format!(r#"{{"ServerURL":"x","Username":"{USER}","Secret":"{PASSWORD}"}}"#);
    fs::write(&helper, format!("#!/bin/sh\n[ \"$(cat)\" = \"{}\" ] && echo '{answer}'\n", registry.host()))?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(lab.path("home/.docker/config.json"), r#"{"credsStore":"test"}"#)?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let mut command = lab.command(&words, &trusting);
    Started::new(command.env("PATH", path))?.end()?.must_succeed()?;
    fs::remove_dir_all(lab.path("home/.docker"))?;

    // In the background: who we are is neither in its arguments nor in its environment, and nowhere on disk.
    let slow = Wire::to(registry.local(), 256 << 10)?;
    let target = format!("{}/team/slow:1", slow.host());
    let words = ["commit", lab.demo.name(), &target, "--max-pause", "50ms", "--tls-ca", &authority];
    let mut command = lab.command(&words, &[]);
    command.env("SNAPSHOT_ENGINE_USERNAME", USER).env("SNAPSHOT_ENGINE_PASSWORD", PASSWORD);
    let begun = Started::new(&mut command)?.end()?.must_succeed()?.json()?;
    let id = begun["snapshot_id"].as_str().context("no id")?;
    let mut seen = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if !arguments.windows(id.len()).any(|part| part == id.as_bytes()) {
            continue;
        }
        let all = [arguments, fs::read(process.path().join("environ")).unwrap_or_default()].concat();
        ensure!(!holds(&all, PASSWORD), "{process:?} shows the password");
        seen += 1;
    }
    ensure!(seen == 1, "{seen} background processes");
    slow.set_rate(0);
    let status = engine::until_completed(Path::new(&lab.work()), id)?;
    ensure!(status["record"]["delivery"]["sent"].as_u64() > Some(0), "{status:#}");
    let found = Command::new("grep").args(["-rlF", "-e", PASSWORD, "-e", &auth, &lab.work()]).output()?;
    ensure!(found.stdout.is_empty(), "the password is in {}", String::from_utf8_lossy(&found.stdout));
    lab.end()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn a_push_that_is_killed_goes_on_and_sends_nothing_twice_that_has_arrived() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-killed", 48 << 20)?;
    let registry = Registry::start(Security::Open)?;
    for signal in ["TERM", "KILL"] {
        let wire = Wire::to(registry.local(), 16 << 20)?;
        // A repository for each, and not one to take blobs from.
        let target = format!("{}/team/{}:1", wire.host(), signal.to_lowercase());
        let words = ["commit", lab.demo.name(), &target, "--max-pause", "50ms", "--wait"];
        let more = ["--target-insecure", "--compressor", "none"];
        let mut push = Started::new(&mut lab.command(&words, &more))?;
        let began = Instant::now();
        while wire.passed() < 20 << 20 {
            ensure!(
                push.runs()? && began.elapsed() < engine::PATIENCE,
                "{} bytes: {:#?}",
                wire.passed(),
                push.end()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = Command::new("kill").args(["-s", signal, &push.pid().to_string()]).status()?;
        ensure!(status.success());
        let ended = push.end()?;
        ensure!(ended.code == if signal == "TERM" { Some(143) } else { None }, "{ended:#?}");
        let snapshot = lab.only()?;
        ensure!(snapshot["interrupted"] == true, "{snapshot:#}");
        let id = snapshot["snapshot_id"].as_str().context("no id")?;
        let before = wire.passed();
        wire.set_rate(0);
        let done = lab.run(&["resume", id, "--wait"], &[])?.must_succeed()?.json()?;
        let again = wire.passed() - before;
        let total = registry_bytes(&done)?;
        println!("{signal}: {before} bytes before it, {again} after, of {total}; {}", done["delivery"]);
        // The image was not built again, and what is there stays there.
        let built =
            done["timings"].as_array().into_iter().flatten().filter(|t| t["stage"] == "chunk").count();
        ensure!(built == 1, "{done:#}");
        let kept = done["delivery"]["continued_bytes"].as_u64().unwrap_or(0);
        // What arrived whole is not sent again; what was in the wire when it was counted is no part of it.
        let slack = 4 << 20;
        ensure!(again <= total - kept + slack, "{again} bytes were sent after {before}");
        ensure!(done["delivery"]["present"].as_u64() > Some(0), "small blobs had arrived: {done:#}");
        // A chunk may end after SIGTERM; half a chunk is an error to this registry, which then forgets the blob.
        ensure!(signal != "TERM" || kept >= 8 << 20, "only {kept} bytes were kept: {done:#}");
        must_be_whole(
            &lab,
            &registry,
            &format!("team/{}:1", signal.to_lowercase()),
            &done["delivery"]["digest"],
        )?;
        lab.run(&["remove", id], &[])?.must_succeed()?;
    }
    lab.end()
}

/// Bytes of all blobs of an image.
fn registry_bytes(result: &Value) -> Result<u64> {
    let of = |name: &str| result["delivery"][name].as_u64().with_context(|| format!("{result:#}"));
    Ok(of("sent_bytes")? + of("continued_bytes")?)
}

#[test]
fn a_registry_that_is_down_or_hangs_costs_the_push_and_not_the_snapshot() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-down", 2 << 20)?;
    let mut registry = Registry::start(Security::Open)?;
    registry.stop();
    let target = format!("{}/team/web:1", registry.host());
    let insecure = ["--wait", "--target-insecure", "--target-timeout", "1s"];
    lab.commit(&target, &insecure)?.must_fail(5, &["cannot be reached", "resume"])?;
    let failed = lab.only()?;
    ensure!(failed["state"] == "failed" && failed["failure"]["class"] == "network", "{failed:#}");
    let id = failed["snapshot_id"].as_str().context("no id")?.to_owned();

    registry.resume()?;
    let pid = registry.pid().context("it does not run")?.to_string();
    let signal = |name: &str| -> Result<()> {
        ensure!(Command::new("kill").args(["-s", name, &pid]).stdout(Stdio::null()).status()?.success());
        Ok(())
    };
    signal("STOP")?;
    let began = Instant::now();
    let hung = lab.run(&["resume", &id, "--wait"], &[]);
    signal("CONT")?;
    hung?.must_fail(5, &["did not answer", "--target-timeout"])?;
    ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());

    let done = lab.run(&["resume", &id, "--wait"], &[])?.must_succeed()?.json()?;
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;
    lab.end()
}

#[test]
fn archives_and_directories_are_what_others_read() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-files", 2 << 20)?;
    for (kind, name) in [("oci-archive", "image.tar:v1"), ("oci-archive", "untagged.tar"), ("dir", "image")] {
        let target = format!("{kind}:{}", lab.path(name).display());
        let done = lab.commit(&target, &["--wait"])?.must_succeed()?.json()?;
        let layout = lab.path("copied");
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            &target,
            &format!("oci:{}:back", layout.display()),
        ]);
        snapshot_tests::registry::skopeo(&mut copy)?;
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        ensure!(index["manifests"][0]["digest"] == done["delivery"]["digest"], "{index:#} {done:#}");
        engine::run(["image", "check", &format!("oci:{}:back", layout.display())])?.must_succeed()?;
        fs::remove_dir_all(layout)?;
        // Refused before anything is done, unless it may be replaced.
        let snapshots = engine::list(Path::new(&lab.work()))?.len();
        lab.commit(&target, &["--wait"])?.must_fail(1, &["exists", "--overwrite"])?;
        ensure!(engine::list(Path::new(&lab.work()))?.len() == snapshots);
        lab.commit(&target, &["--wait", "--overwrite"])?.must_succeed()?;
    }
    lab.commit("docker-daemon:web:1", &["--wait"])?.must_fail(2, &["Nydus"])?;
    lab.end()
}
