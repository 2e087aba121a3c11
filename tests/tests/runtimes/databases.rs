//! Databases in the containers of the matrix, while they are written to, and after they have come back.
//!
//! ```text
//!   room A                                            registry        room B
//!   SQLite, Redis, PostgreSQL, ──commit, gate auto──►  image  ──►  run by the image's own command, or as it says: each recovers
//!   six clients and pgbench                                           │
//!          │                                                          ▼
//!          └── what was begun and acknowledged when ═══ one instant must explain ═══ what they have, by their own word, after their own checks
//! ```
//!
//! Both formats are committed under the same load. Where a runtime cannot run a directory, runc does in its room, which it has below it.

use std::fs;
use std::io::Write as _;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use snapshot_benches::peers::{Cgroups, image};
use snapshot_engine::freeze::reader::now;
use snapshot_engine::model::nanos::Nanos;
use snapshot_tests::database::journal::{History, Load, explain};
use snapshot_tests::database::together::{self, Together};
use snapshot_tests::everything::make;
use snapshot_tests::inside::Inside;
use snapshot_tests::registry::{Registry, Security};

use super::kinds::{CONTAINERD, CRUN_ROW, DOCKER, Image, Kind, PODMAN, Process, RUNC};
use super::support::{House, absent, shell};

const INSIDE: &str = env!("CARGO_BIN_EXE_inside");
const IMAGE: &str = "localhost/snapshot-databases:latest";
/// How long the clients are at work before a cut.
const WHILE: Duration = Duration::from_millis(500);

/// A snapshot in the registry.
struct Taken {
    format: &'static str,
    /// Its name there.
    image: String,
    done: Value,
    /// What the clients had done when it was there.
    history: History,
    /// Around the command, and so around the cut.
    window: [Nanos; 2],
}

impl Taken {
    /// One instant explains what the databases have.
    fn must_explain(&self, present: &[u64]) -> Result<()> {
        Ok(explain(&self.history, present, self.window[0], self.window[1])?)
    }
}

/// The image, in the runtime's store if it has one.
fn image(kind: &Kind, house: &House) -> Result<Image> {
    let root = image::root(&make(&house.place.0, "databases")?)?;
    together::add_to(&root)?;
    let archive = house.place.0.join("databases.tar");
    image::pack(&root, IMAGE, &json!({ "User": together::USER }), &archive)?;
    (kind.load)(house, &archive)?;
    fs::remove_file(archive)?;
    Ok(Image { name: IMAGE, root })
}

/// Commits the container as it is written to.
fn take(
    kind: &Kind,
    house: &House,
    registry: &Registry,
    load: &mut Load,
    format: &'static str,
) -> Result<Taken> {
    std::thread::sleep(WHILE);
    let image = format!("databases/{}:{format}", kind.name);
    let from = Nanos(now());
    let done = house.push(&format!("{}://origin", kind.name), registry, &image, format, "auto")?;
    let window = [from, Nanos(now())];
    load.check()?;
    Ok(Taken { format, image, done, history: load.history(), window })
}

/// The databases of a container that was made of a snapshot. How many transactions they have of each client.
fn must_have_recovered(house: &House, name: &str, taken: &Taken) -> Result<Vec<u64>> {
    let inside = Inside::as_it_is(INSIDE, house.init_of(name)?)?;
    let present = Together::new(inside)?.audit()?;
    taken.must_explain(&present)?;
    ensure!(!present.contains(&0), "{present:?}");
    Ok(present)
}

/// One database that had only what it had in an earlier snapshot would be found out, whichever it is.
fn must_be_sharp(early: &[u64], late: &[u64], taken: &Taken) -> Result<()> {
    for at in (0..late.len()).step_by(together::CLIENTS) {
        let its = at..at + together::CLIENTS;
        let mut mixed = late.to_vec();
        mixed[its.clone()].copy_from_slice(&early[its.clone()]);
        ensure!(taken.must_explain(&mixed).is_err(), "nobody sees that {its:?} of {late:?} are of {early:?}");
    }
    Ok(())
}

/// The image in the other room by the runtime's own way, with nothing but what the image says.
fn oci(kind: &Kind, house: &House, registry: &Registry, taken: &Taken) -> Result<(Vec<u64>, String)> {
    let how = (kind.oci)(house, registry, &taken.image, &[])?;
    Ok((must_have_recovered(house, "copy", taken)?, how.to_owned()))
}

/// The image mounted in the other room, and run there as it says.
fn nydus(kind: &Kind, house: &House, registry: &Registry, taken: &Taken) -> Result<(Vec<u64>, String)> {
    let dir = make(&house.place.0, "nydus")?;
    let layout = dir.join("layout");
    registry.pull(&taken.image, &format!("oci:{}:t", layout.display()))?;
    let process = Process::of_image(&layout, "t")?;
    let root = house.mount(&layout, "t", &dir)?;
    let (run, how) = match kind.rootfs {
        Some(run) => (run, kind.nydus.to_owned()),
        None => (
            RUNC.rootfs.context("no way")?,
            format!("recovered by runc on `image mount --rw`: {}", kind.nydus),
        ),
    };
    run(house, &root, &process)?;
    Ok((must_have_recovered(house, "copy-nydus", taken)?, how))
}

/// One line of the table, to whoever runs the tests.
fn tell(kind: &Kind, taken: &Taken, result: &Result<(Vec<u64>, String)>) {
    static HEAD: Once = Once::new();
    let mut out = std::io::stdout();
    HEAD.call_once(|| {
        let _ = writeln!(out, "\n| runtime | format | SQLite, Redis, PostgreSQL | |\n|---|---|---|---|");
    });
    let pause = taken.done["pause_time"]["human"].as_str().unwrap_or_default();
    let gate = taken.done["gate"].as_str().unwrap_or_default();
    let (state, how) = match result {
        Ok((present, how)) => {
            let present: u64 = present.iter().sum();
            (format!("recovered with {present} transactions, cut by the {gate} in {pause}"), how.as_str())
        }
        Err(_) => ("FAILED".to_owned(), ""),
    };
    let _ = writeln!(out, "| {} | {} | {state} | {how} |", kind.name, taken.format);
}

/// The container at work, and its snapshots in both formats. It is gone on return.
fn origin(kind: &Kind, registry: &Registry) -> Result<Option<[Taken; 2]>> {
    let Some(house) = House::open_with(kind.peer, Cgroups::AsHost)? else { return Ok(None) };
    if kind.name == "crun" && house.line("crun --version").is_err() {
        return absent("crun").map(|()| None);
    }
    let image = image(kind, &house)?;
    let script = together::script()?;
    let process = Process { user: together::USER.to_owned(), ..Process::of_root(&shell(&script)) };
    (kind.start)(&house, &image, &process)?;
    let mut databases = Together::new(Inside::as_it_is(INSIDE, house.init_of("origin")?)?)?;
    let mut load = databases.load()?;
    let mut take = |format| take(kind, &house, registry, &mut load, format);
    let all = [take("oci")?, take("nydus")?];
    // Whoever was held goes on: each ends its transaction.
    load.stop()?;
    Ok(Some(all))
}

fn recovers(kind: &Kind) -> Result<()> {
    let registry = Registry::start(Security::Open)?;
    let Some([plain, packed]) = origin(kind, &registry)? else { return Ok(()) };
    let Some(house) = House::open_with(kind.peer, Cgroups::AsHost)? else { return Ok(()) };
    let mut failures = Vec::new();
    let results = [oci(kind, &house, &registry, &plain), nydus(kind, &house, &registry, &packed)];
    for (taken, result) in [&plain, &packed].into_iter().zip(&results) {
        tell(kind, taken, result);
        if let Err(error) = result {
            failures.push(format!("{} {}: {error:#}", kind.name, taken.format));
        }
    }
    if let [Ok((early, _)), Ok((late, _))] = &results {
        must_be_sharp(early, late, &packed)?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn databases_at_docker() -> Result<()> {
    recovers(&DOCKER)
}

#[test]
fn databases_at_podman() -> Result<()> {
    recovers(&PODMAN)
}

#[test]
fn databases_at_containerd() -> Result<()> {
    recovers(&CONTAINERD)
}

#[test]
fn databases_at_runc() -> Result<()> {
    recovers(&RUNC)
}

#[test]
fn databases_at_crun() -> Result<()> {
    recovers(&CRUN_ROW)
}
