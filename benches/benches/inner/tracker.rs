//! What the tracker costs whoever makes system calls, and what it takes of memory.

use std::fs;
use std::path::Path;

use anyhow::Result;
use snapshot_benches::figures::Figures;
use snapshot_engine::demo::Workload;
use snapshot_engine::model::options::GateChoice;
use snapshot_tests::bench::{Disk, Running};

use super::inside::{Caller, KINDS};
use super::window::session;

/// Times the tracker is attached and detached.
const TURNS: usize = 6;
/// Measurements in each.
const EACH: usize = 3;

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    for fs in ["ext4", "xfs"] {
        let disk = Disk::new(fs)?;
        let program = std::env::current_exe()?;
        let demo = Running::start(&program.to_string_lossy(), &disk, Workload::idle())?;
        let callers = [
            ("inside", Caller::start(Some(&demo), Path::new("/srv/calls"))?),
            ("outside", Caller::start(None, &disk.path().join("calls"))?),
        ];
        let mut times = callers.map(|(place, caller)| (place, caller, [const { Vec::new() }; 8]));
        for turn in 0..TURNS * 2 {
            let tracked = turn % 2 == 1;
            let session = if tracked { Some(session(&disk, &demo, GateChoice::Fence, false)?) } else { None };
            for _ in 0..EACH {
                for (_, caller, samples) in &mut times {
                    for (kind, ns) in caller.times()?.into_iter().enumerate() {
                        samples[kind * 2 + usize::from(tracked)].push(ns);
                    }
                }
            }
            drop(session);
        }
        for (place, _, samples) in times {
            let mut samples = samples.into_iter();
            for kind in KINDS {
                let mut median = |what: &str| {
                    let name = format!("{fs}, {place}: {kind}, {what}");
                    figures.add(&name, "ns", samples.next().unwrap_or_default())
                };
                let (untracked, tracked) = (median("untracked"), median("tracked"));
                let name = format!("{fs}, {place}: {kind}, throughput while tracked");
                figures.ratio(&name, untracked / tracked, ">= 0.97");
                if place == "outside" && kind == KINDS[0] {
                    // What everybody on the machine pays for a call that changes nothing, as long as somebody is tracked.
                    figures.add(
                        &format!("{fs}: tracking adds to a system call of others"),
                        "ns",
                        vec![tracked - untracked],
                    );
                }
            }
        }
        memory(figures, fs, &disk, &demo)?;
    }
    Ok(())
}

fn memory(figures: &mut Figures, fs: &str, disk: &Disk, demo: &Running) -> Result<()> {
    let before = resident()?;
    let session = session(disk, demo, GateChoice::Fence, false)?;
    figures.add(&format!("{fs}: resident memory of a session"), "MiB", vec![(resident()? - before) / 1024.0]);
    let mut maps = 0.0;
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        if text.contains("map_type:") {
            maps += field(&text, "memlock:");
        }
    }
    figures.add(&format!("{fs}: BPF maps of a session"), "MiB", vec![maps / f64::from(1 << 20)]);
    drop(session);
    Ok(())
}

/// KiB this process has in memory.
fn resident() -> Result<f64> {
    Ok(field(&fs::read_to_string("/proc/self/status")?, "VmRSS:"))
}

fn field(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|v| v.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
