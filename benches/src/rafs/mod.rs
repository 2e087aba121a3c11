//! `cargo xtask bench rafs`: how fast a tree becomes a RAFS image, against `nydus-image create` and against what the machine can do at best.
//!
//! ```text
//! tree x compressor:  nydus-image | ours | ours with 1 worker | with 2 | nydus-image | ...      page cache warm, a process each, in turns
//! tree, none:         the limit and SHA-256 alone beside them
//! tree x compressor:  a second image with 1 % changed | a whole one | ...      the same way (`incremental`)
//! ```
//!
//! Where the CPU time of an uncompressed image goes (`perf record`, 1.4 GiB): half is the blob's SHA-256, by the processor's own instructions; it is the
//! blob's name and has no parallel form, so nothing is faster than it (`SHA-256 alone`). A seventh is BLAKE3, a fifth the copies out of the page cache and into it.
//! What is compressed is bound by the compressor, which is the same one in both: with two processors half of nydus-image's time, since that uses one.
//!
//! Times are from the start of the process to its end, medians over the turns; a ratio is the median of what each turn gives. The blob is not synced to disk, by neither.

pub mod builders;
mod incremental;
pub mod trees;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use snapshot_engine::kernel::signals;
use snapshot_tests::judges;

use crate::figures::Figures;
use builders::{Builder, Cost};
use trees::Tree;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Turns of each pair.
    pub turns: usize,
    /// Only trees whose name contains one of these; all if empty.
    pub trees: Vec<String>,
    /// Only these compressors; all if empty.
    pub compressors: Vec<String>,
    /// Where trees and images go while it runs: some 10 GiB.
    pub place: PathBuf,
}

const COMPRESSORS: [&str; 3] = ["none", "lz4_block", "zstd"];

/// Measures, and prints as it goes.
///
/// # Errors
/// When a tree cannot be made, a builder fails, or a signal came.
pub fn run(options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    let nydus = judges::find("nydus-image");
    if nydus.is_none() {
        println!(
            "nydus-image is not here: cargo install nydus-rs --version 2.2.0 --locked, and set NYDUS_BIN"
        );
    }
    fs::create_dir_all(&options.place)
        .with_context(|| format!("cannot create {}", options.place.display()))?;
    let place = tempfile::Builder::new().prefix("bench-rafs-").tempdir_in(&options.place)?;
    let chosen =
        |list: &[String], name: &str| list.is_empty() || list.iter().any(|part| name.contains(part.as_str()));
    let mut memory = Vec::new();
    for tree in trees::ALL.iter().filter(|tree| chosen(&options.trees, tree.name)) {
        let source = place.path().join("tree");
        tree.make(&source)?;
        rustix::fs::sync();
        for compressor in COMPRESSORS.iter().filter(|name| chosen(&options.compressors, name)) {
            // Who is compared runs beside whom: the machine may be faster a minute later.
            let mut all: Vec<Builder> = nydus.clone().map(Builder::Nydus).into_iter().collect();
            all.push(Builder::Ours { workers: 0 });
            if *compressor == "none" {
                all.extend([Builder::Limit, Builder::Name]);
            }
            all.extend([Builder::Ours { workers: 1 }, Builder::Ours { workers: 2 }]);
            let costs = measure(&all, &source, place.path(), compressor, options.turns)?;
            report(&mut figures, tree, compressor, &all, &costs);
            let of = |wanted: &Builder| all.iter().position(|builder| builder == wanted).map(|at| &costs[at]);
            let Some(ours) = of(&Builder::Ours { workers: 0 }) else { continue };
            memory.extend(ours.iter().map(|cost| cost.peak));
            let name = |what: &str| format!("{}, {compressor}: {what}", tree.name);
            let theirs = nydus.clone().and_then(|program| of(&Builder::Nydus(program)));
            if let Some(theirs) = theirs {
                let wanted = if tree.small { "<= 0.50" } else { "<= 0.45" };
                figures.ratio(&name("wall time / nydus-image's"), wall(ours, theirs), wanted);
                let cpu = ratio(ours, theirs, |cost| cost.cpu.as_secs_f64());
                figures.ratio(&name("CPU time / nydus-image's"), cpu, "none");
            }
            if let (Some(one), Some(two)) =
                (of(&Builder::Ours { workers: 1 }), of(&Builder::Ours { workers: 2 }))
            {
                figures.ratio(&name("speed with 2 workers / with 1"), wall(one, two), ">= 1.8");
            }
            if let (Some(limit), Some(sha)) = (of(&Builder::Limit), of(&Builder::Name)) {
                if let Some(theirs) = theirs {
                    figures.ratio(&name("SHA-256 alone / nydus-image's"), wall(sha, theirs), "none");
                }
                figures.ratio(&name("SHA-256 alone / a bare copy's and BLAKE3's"), wall(sha, limit), "none");
                figures.ratio(&name("speed / a bare copy's and BLAKE3's"), wall(limit, ours), ">= 0.6");
            }
            if ["mixed", "small"].iter().any(|part| tree.name.contains(part)) {
                again(&mut figures, tree, compressor, &source, place.path(), options.turns)?;
            }
        }
        fs::remove_dir_all(&source)?;
    }
    let most = memory.into_iter().max().unwrap_or(0);
    figures.ratio("largest resident memory / 256 MiB", most as f64 / f64::from(256 << 20), "<= 1");
    Ok(figures)
}

/// What each builder costs in each turn, one after the other.
fn measure(
    all: &[Builder],
    source: &Path,
    place: &Path,
    compressor: &str,
    turns: usize,
) -> Result<Vec<Vec<Cost>>> {
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); all.len()];
    for _ in 0..turns {
        for (builder, costs) in all.iter().zip(&mut costs) {
            if signals::caught().is_some() {
                anyhow::bail!("stopped by a signal");
            }
            trees::warm(source)?;
            let out = place.join("image");
            costs.push(builder.build(source, &out, compressor)?);
            fs::remove_dir_all(&out)?;
            rustix::fs::sync();
        }
    }
    Ok(costs)
}

/// A second image of a tree of which one file in a hundred has changed.
fn again(
    figures: &mut Figures,
    tree: &Tree,
    compressor: &str,
    source: &Path,
    place: &Path,
    turns: usize,
) -> Result<()> {
    let second = incremental::second(source, place, compressor)?;
    let all = [Builder::Image { earlier: None }, Builder::Image { earlier: Some(second.earlier.clone()) }];
    let costs = measure(&all, &second.frozen, place, compressor, turns)?;
    report(figures, tree, compressor, &all, &costs);
    let again = wall(&costs[1], &costs[0]);
    figures.ratio(&format!("{}, {compressor}: a second image / a whole one", tree.name), again, "<= 0.05");
    Ok(())
}

/// How much more one takes than another: the median over the turns, in each of which they ran side by side. The machine's speed changes from turn to turn by more than they
/// differ.
fn ratio(some: &[Cost], others: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut ratios: Vec<f64> = some.iter().zip(others).map(|(some, other)| of(some) / of(other)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wall(some: &[Cost], others: &[Cost]) -> f64 {
    ratio(some, others, |cost| cost.wall.as_secs_f64())
}

/// Takes down what the builders of one tree and compressor cost.
fn report(figures: &mut Figures, tree: &Tree, compressor: &str, all: &[Builder], costs: &[Vec<Cost>]) {
    for (builder, costs) in all.iter().zip(costs) {
        let name = format!("{}, {compressor}, {builder}", tree.name);
        figures.add(&name, "s", costs.iter().map(|cost| cost.wall.as_secs_f64()).collect());
        figures.add(&format!("{name}: CPU"), "s", costs.iter().map(|cost| cost.cpu.as_secs_f64()).collect());
        let peaks = costs.iter().map(|cost| cost.peak as f64 / f64::from(1 << 20)).collect();
        figures.add(&format!("{name}: memory"), "MiB", peaks);
        figures.add(
            &format!("{name}: image"),
            "MiB",
            costs.iter().map(|cost| cost.stored as f64 / f64::from(1 << 20)).collect(),
        );
    }
}
