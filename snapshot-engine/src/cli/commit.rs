//! `seamless-commit` and `commit`.

use std::fmt::Write;
use std::time::Instant;

use snapshot_engine::SnapshotResult;
use snapshot_engine::kernel::signals;
use snapshot_engine::pipeline::commit::{self, CommitRequest};
use snapshot_engine::pipeline::progress::UntilSignal;
use snapshot_engine::pipeline::{Engine, background};

use super::args::Wanted;
use super::out::{Out, printable};
use super::progress::Bar;
use super::reach::daemons;
use super::{Error, Result};

pub(super) const COMPLETED: &str = "Background processing completed successfully.\n";

pub(super) fn run(wanted: Wanted, out: &Out, quiet: bool) -> Result {
    let began = Instant::now();
    signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
    let bar = Bar::new(!quiet && !out.is_json());
    let progress = UntilSignal(&bar);
    let Wanted { container, target, wait, mut options, runtimes, reach } = wanted;
    let engine = Engine { places: runtimes.places(), login: reach.login()? };
    options.access = daemons(options.access, &target, &engine.places);
    let request = CommitRequest { container, target, options };
    let mut claimed = commit::cut(&engine, request, &progress)?;
    bar.clear();
    let result = SnapshotResult::new(claimed.record(), began.elapsed());
    if wait {
        out.text(&text(&result))?;
        let record = commit::finish(&engine, &mut claimed, &progress)?;
        drop(bar);
        out.result(COMPLETED, &SnapshotResult::new(&record, began.elapsed()))
    } else {
        background::launch(claimed, engine.login.as_ref())?;
        out.result(&text(&result), &result)
    }
}

/// The result for people. Tests and scripts rely on its exact form.
pub(super) fn text(result: &SnapshotResult) -> String {
    let mut text = String::from("Seamless snapshot created successfully:\n");
    let id = result.snapshot_id;
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  Snapshot ID: {id}");
    let _ = writeln!(
        text,
        "  Pause Time: {} (gate: {}, attempts: {}, longest stop of a task: {})",
        result.pause_time.human, result.gate, result.attempts, result.longest_stop.human
    );
    let _ = writeln!(text, "  Old Upper Dir: {}", printable(&result.old_upper_dir.to_string_lossy()));
    let _ = writeln!(text, "  New Upper Dir: {}", printable(&result.new_upper_dir.to_string_lossy()));
    for path in &result.with_paths {
        let _ = writeln!(text, "  With Path: {}", printable(&path.to_string_lossy()));
    }
    let _ = writeln!(text, "Background commit processing started for snapshot: {id}");
    text
}
