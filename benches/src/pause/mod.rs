//! `cargo xtask bench pause`: the whole matrix, on containers of the harness's own, with the peers on this machine in the same run.
//!
//! ```text
//!   plan       a star around a base container: upper, files, tasks, workload, file system      run     group by group
//!   rivals     the peers on this machine, on containers of their own
//!   slowdown   the container's own work, tracked and not; fio   what some of it is done by
//!   copying    from the command to the cut, against cp and rsync
//!   goals      what is to be reached, and was it?
//! ```

pub mod copying;
pub mod fio;
pub mod goals;
pub mod plan;
pub mod rivals;
pub mod run;
pub mod scene;
pub mod slowdown;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use snapshot_engine::bench::pause::blank;
use snapshot_engine::bench::report::{Missed, Report};
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::pipeline;
use snapshot_engine::pipeline::progress::{Progress as _, Quiet, UntilSignal};

use plan::Extent;
use scene::Disks;

/// What can be chosen about a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much.
    pub extent: Extent,
    /// Only groups of these axes; all if empty.
    pub only: Vec<String>,
    /// Where the disks go while it runs.
    pub place: PathBuf,
}

/// Whether an error says that a signal asked us to stop.
#[must_use]
pub fn stopped(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        matches!(e.downcast_ref(), Some(pipeline::Error::Interrupted { .. }))
            || e.downcast_ref().is_some_and(snapshot_engine::bench::Error::interrupted)
    })
}

/// Sparse disks of this size: 4 GiB and its shadow, with what else the group of the upper's sizes has.
const DISK: u64 = 24 << 30;

/// Measures everything. What cannot be measured is in [`Report::missed`]. On return, with an error too, nothing is left.
///
/// # Errors
/// A signal, or no place to work.
pub fn run(options: &Options, tell: &dyn Fn(&str)) -> Result<Report> {
    let until = UntilSignal(&Quiet);
    let began = Instant::now();
    let mut report = blank(format!(
        "cargo xtask bench pause{}",
        match options.extent {
            Extent::Quick => " --quick",
            Extent::Usual => "",
            Extent::Full => " --full",
        }
    ));
    std::fs::create_dir_all(&options.place)
        .with_context(|| format!("cannot create {}", options.place.display()))?;
    let mut disks = Disks::new(&options.place, DISK);
    let wanted = |axis: &str| options.only.is_empty() || options.only.iter().any(|o| o == axis);
    for group in plan::groups(options.extent, report.machine.cpus) {
        // A part by its name; a point of it, such as a workload, by its own.
        if wanted(group.axis) || group.points.iter().any(|point| wanted(&point.label)) {
            run::group(&group, &mut disks, &mut report, &until, tell)?;
        }
    }
    if wanted("peer") {
        rivals::measure(options.extent, &options.place, &mut report, &until, tell)?;
    }
    for kind in ["ext4", "xfs"] {
        if wanted("slowdown") {
            until.check()?;
            tell(&format!("slowdown: a writer and fio inside, tracked and not, on {kind}"));
            let made = slowdown::flat_out(options.extent, kind, &mut disks, &until);
            keep(made, &format!("slowdown on {kind}"), &mut report, |r, s| r.slowdowns.push(s))?;
            let made = slowdown::fio(options.extent, kind, &mut disks, &until);
            keep(made, &format!("slowdown of fio on {kind}"), &mut report, |r, s| r.slowdowns.extend(s))?;
        }
        if wanted("copy") {
            until.check()?;
            tell(&format!("copy: 1 GiB to the cut against cp and rsync, on {kind}"));
            let made = copying::measure(options.extent, kind, &mut disks, &until);
            keep(made, &format!("copy on {kind}"), &mut report, |r, c| r.copies.extend(c))?;
        }
    }
    let bare = base_read(&report, &mut disks);
    drop(disks);
    // Only if it is empty: it may be somebody's.
    let _ = std::fs::remove_dir(&options.place);
    report.goals = goals::judge(&report, bare);
    report.took = Nanos::from(began.elapsed()).into();
    Ok(report)
}

/// Takes a step's result in, or notes why there is none.
fn keep<T>(
    made: Result<T>,
    what: &str,
    report: &mut Report,
    take: impl FnOnce(&mut Report, T),
) -> Result<()> {
    match made {
        Ok(value) => take(report, value),
        Err(e) if stopped(&e) => return Err(e),
        Err(e) => report.missed.push(Missed { what: what.into(), why: format!("{e:#}") }),
    }
    Ok(())
}

/// What a bare read of the base container's median residual costs on the same file system.
fn base_read(report: &Report, disks: &mut Disks) -> Option<Nanos> {
    let base = goals::base_fence(report)?;
    let dir = disks.get("ext4").ok()?.join("bare");
    write_files(&dir, base.cuts.residual_inodes, base.cuts.residual_bytes).ok()?;
    run::bare_read(&dir, base.cuts.residual_inodes, base.cuts.residual_bytes).ok().map(Nanos::from)
}

fn write_files(dir: &Path, files: u64, bytes: u64) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for n in 0..files {
        std::fs::write(dir.join(n.to_string()), vec![1u8; usize::try_from(bytes / files)?])?;
    }
    Ok(())
}
