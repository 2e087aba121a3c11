//! G1 over two trees. Writers in the container take the steps of each round to its layer and to the volume by turns, and tell each other how far
//! they are (`snapshot_tests::causal`): a volume that was captured one step before or behind the layer breaks their order. That the judge
//! sees it is shown by trees that are put together from two cuts.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::CommitOptions;
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::model::options::{GateChoice, TrackerChoice};
use snapshot_engine::model::reference::ContainerRef;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::Session;
use snapshot_engine::pipeline::{CutRequest, Engine, Stages as _};
use snapshot_tests::bench;
use snapshot_tests::causal::{self, Roots};

use crate::{Scene, VOLUME, clear};

const LAYER: &str = "srv/causal";
const IN_VOLUME: &str = "srv/pool/causal";
const WRITERS: usize = 3;

impl Scene {
    fn begin(&mut self) -> Result<()> {
        self.worker.ask(&format!("causal /{LAYER}:/{IN_VOLUME} {WRITERS}")).map(drop)
    }

    fn session(&self, choice: GateChoice) -> Result<Session> {
        let policy = bench::policy(choice);
        let options = CommitOptions::default().gate(choice).with_paths(vec![VOLUME.into()]);
        Ok(Session::open(self.demo.target()?, &options, &self.host("engine"), policy, 0, &Quiet)?)
    }
}

/// Cuts by every gate, each frozen and judged.
fn trees(kind: &str, wanted: u32) -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let mut scene = Scene::new(kind)?;
    if bench::tracker_if_allowed(&[&scene.demo.target()?])?.is_none() {
        return Ok(());
    }
    scene.begin()?;
    let live = Roots::two(&scene.demo.upper().join(LAYER), &scene.host("volume/causal"));
    let frozen = scene.host("frozen");
    let choices = [GateChoice::Fence, GateChoice::Freezer, GateChoice::None, GateChoice::Auto];
    let (mut made, mut used, mut refused, mut windows) = (0, Vec::new(), Vec::new(), Vec::new());
    let wanted = bench::share(wanted).max(4);
    for turn in 0..wanted * 3 {
        let choice = choices[turn as usize % 4];
        let mut session = scene.session(choice)?;
        std::thread::sleep(Duration::from_millis(u64::from(turn % 7)));
        let before = causal::newest(&live, WRITERS);
        // A busy container has no moment for gate none, or no fence that drains: said, and nothing wrong is made.
        let cut = match session.cut(&Quiet) {
            Ok(cut) => cut,
            Err(e) => {
                refused.push(format!("{choice}: {e}"));
                continue;
            }
        };
        let after = causal::newest(&live, WRITERS);
        session.freeze(&frozen, &Quiet)?;
        let rounds = causal::judge(&Roots::two(&frozen.join(LAYER), &frozen.join(IN_VOLUME)), WRITERS);
        let rounds = rounds.map_err(anyhow::Error::msg).with_context(|| format!("{kind}: {cut:?}"))?;
        // Whatever was complete before the cut is there, and nothing that began after it.
        let in_time = rounds.iter().zip(&before).all(|(cut, before)| cut + 1 >= *before)
            && rounds.iter().zip(&after).all(|(cut, after)| cut <= after);
        ensure!(in_time, "{before:?} before, {after:?} after, {rounds:?} in the tree");
        ensure!(cut.misses == 0, "the tracker missed changes: {cut:?}");
        used.push(cut.pause.gate);
        windows.push((cut.pause.pause(), cut.pause.gate));
        clear(&frozen)?;
        made += 1;
        let enough =
            made >= wanted && [Gate::Fence, Gate::Freezer, Gate::None].iter().all(|g| used.contains(g));
        if enough {
            break;
        }
    }
    windows.sort_by_key(|(window, _)| *window);
    println!("{kind}: {made} trees over two roots; windows: {windows:?}; without a cut: {refused:?}");
    for gate in [Gate::Fence, Gate::Freezer, Gate::None] {
        ensure!(used.contains(&gate), "no cut by {gate:?}: {used:?}, {refused:?}");
    }
    Ok(())
}

#[test]
fn g1_layer_and_volume_are_of_one_instant_on_ext4() -> Result<()> {
    trees("ext4", 40)
}

#[test]
fn g1_layer_and_volume_are_of_one_instant_on_xfs() -> Result<()> {
    trees("xfs", 24)
}

#[test]
fn g1_layer_and_volume_are_of_one_instant_on_btrfs() -> Result<()> {
    trees("btrfs", 16)
}

/// The judge is sharp: a layer of one cut and a volume of another are found out, whichever is the older. Between two cuts every writer
/// completes rounds: two cuts in one rest of theirs ([`causal`]) are the same instant to them, and no judge could tell them apart.
#[test]
fn trees_of_two_instants_are_found_out() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let mut scene = Scene::new("ext4")?;
    scene.begin()?;
    let mut session = scene.session(GateChoice::Auto)?;
    let mut cuts = Vec::new();
    let live = Roots::two(&scene.demo.upper().join(LAYER), &scene.host("volume/causal"));
    for n in 0..4 {
        session.cut(&Quiet)?;
        let cut = causal::newest(&live, WRITERS);
        let to = scene.host(&format!("cut-{n}"));
        session.replica(&to)?;
        cuts.push(to);
        let behind = || causal::newest(&live, WRITERS).iter().zip(&cut).any(|(now, cut)| *now < cut + 3);
        bench::eventually("every writer completes rounds", || !behind());
    }
    for (n, layer) in cuts.iter().enumerate() {
        for (m, volume) in cuts.iter().enumerate() {
            let verdict = causal::judge(&Roots::two(&layer.join(LAYER), &volume.join(IN_VOLUME)), WRITERS);
            ensure!(verdict.is_ok() == (n == m), "the layer of cut {n}, the volume of cut {m}: {verdict:?}");
        }
    }
    Ok(())
}

/// Without a tracker the container stands still while both are copied.
#[test]
fn without_a_tracker_it_is_one_instant_as_well() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let mut scene = Scene::new("ext4")?;
    scene.begin()?;
    let directory = scene.host("still");
    fs::create_dir(&directory)?;
    let options = CommitOptions::default()
        .tracker(TrackerChoice::None)
        .max_pause("10s".parse::<snapshot_engine::model::nanos::Nanos>()?)
        .with_paths(vec![VOLUME.into()]);
    let id = "snapshot-1752857512540089368".parse()?;
    let container = ContainerRef::Name(scene.demo.0.name().into());
    let request = CutRequest { id, directory, container, options };
    Engine::default().cut(&request, &Quiet)?;
    let frozen = request.frozen();
    let roots = Roots::two(&frozen.join(LAYER), &frozen.join(IN_VOLUME));
    causal::judge(&roots, WRITERS).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// T4: a file of the volume that is mapped takes the freezer, and the stores are in the cut.
#[test]
fn t4_stores_through_mappings_of_the_volume_are_in_the_cut() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    for kind in ["ext4", "xfs"] {
        let mut scene = Scene::new(kind)?;
        let mut session = scene.session(GateChoice::Auto)?;
        session.cut(&Quiet)?;
        // 64 KiB: the words lie on two pages.
        let file = "/srv/pool/map";
        scene.worker.ask(&format!("map {file} 8192"))?;
        scene.worker.ask(&format!("storing {file}"))?;
        for n in 0..bench::share(8) {
            let cut = session.cut(&Quiet)?;
            ensure!(cut.pause.gate == Gate::Freezer, "{cut:?}");
            let to = scene.host(&format!("cut-{n}"));
            session.replica(&to)?;
            let bytes = fs::read(to.join("srv/pool/map"))?;
            let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes);
            let (first, last) = (word(0)?, word(bytes.len() - 8)?);
            ensure!(first > 0 && (first == last || first == last + 1), "{first} and {last}");
        }
        scene.worker.ask("stored")?;
    }
    Ok(())
}

/// Another container that has the volume too is not held: what it writes voids an attempt instead.
#[test]
fn who_writes_the_volume_from_elsewhere_is_seen() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let scene = Scene::new("ext4")?;
    let (a, b) = (scene.host("volume/a"), scene.host("volume/b"));
    fs::write(&a, 0u64.to_le_bytes())?;
    fs::write(&b, 0u64.to_le_bytes())?;
    let mut session = scene.session(GateChoice::Auto)?;
    let stop = AtomicBool::new(false);
    let write = || -> Result<()> {
        let (a, b) = (File::options().write(true).open(&a)?, File::options().write(true).open(&b)?);
        for n in 1u64.. {
            if stop.load(SeqCst) {
                break;
            }
            a.write_all_at(&n.to_le_bytes(), 0)?;
            b.write_all_at(&n.to_le_bytes(), 0)?;
            std::thread::sleep(Duration::from_micros(n % 50 * 40));
        }
        Ok(())
    };
    let judge = |session: &mut Session| -> Result<()> {
        let mut newest = 0;
        for n in 0..bench::share(20) {
            session.cut(&Quiet)?;
            let to = scene.host(&format!("cut-{n}"));
            session.replica(&to)?;
            let read = |name: &str| -> Result<u64> {
                Ok(u64::from_le_bytes(fs::read(to.join("srv/pool").join(name))?.as_slice().try_into()?))
            };
            let (a, b) = (read("a")?, read("b")?);
            ensure!(a >= newest && (a == b || a == b + 1), "{a} and {b} after {newest}");
            newest = a;
        }
        ensure!(newest > 0, "nothing of the writer's is there");
        Ok(())
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(write);
        let verdict = judge(&mut session);
        stop.store(true, SeqCst);
        let written = writer.join().unwrap_or_else(|_| anyhow::bail!("the writer panicked"));
        verdict.and(written)
    })
}

/// The engine holds neither the container's mount nor its directory.
#[test]
fn the_container_can_unmount_its_volume_meanwhile() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let scene = Scene::new("ext4")?;
    fs::write(scene.host("volume/kept"), "kept")?;
    let mut session = scene.session(GateChoice::Auto)?;
    snapshot_tests::volume::leave(scene.init()?, VOLUME)?;
    session.cut(&Quiet)?;
    let frozen = scene.host("frozen");
    session.freeze(&frozen, &Quiet)?;
    ensure!(fs::read(frozen.join("srv/pool/kept"))? == b"kept");
    Ok(())
}
