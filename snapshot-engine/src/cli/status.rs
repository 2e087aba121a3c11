//! `status`.

use std::fmt::Write;

use snapshot_engine::SnapshotStatus;
use snapshot_engine::store::{self, Store};

use super::Result;
use super::args::{OneSnapshot, Place};
use super::out::{Out, printable};

pub(super) fn run(args: &OneSnapshot, out: &Out) -> Result {
    let store = existing(&args.place, &args.id)?;
    let status = store.status(store.find(&args.id)?)?;
    out.result(&text(&status), &status)
}

/// The store, which must be there if a snapshot is asked for.
pub(super) fn existing(place: &Place, id: &str) -> Result<Store> {
    match Store::open_existing(&place.work_dir)? {
        Some(store) => Ok(store),
        None => Err(store::Error::Unknown { given: id.to_owned() }.into()),
    }
}

fn text(status: &SnapshotStatus) -> String {
    let record = &status.record;
    let id = status.snapshot_id;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Snapshot ID: {id}");
    let _ = writeln!(text, "  State: {} ({:.0}%)", status.word(), status.progress * 100.0);
    if let Some(pid) = status.pid {
        let _ = writeln!(text, "  Process: {pid}");
    }
    let _ = writeln!(text, "  Container: {}", printable(&record.container.to_string()));
    let _ = writeln!(text, "  Target: {}", printable(&record.target.to_string()));
    let _ = writeln!(text, "  Pause Time: {} (gate: {})", record.cut.pause.window, record.cut.pause.gate);
    if let Some(tracker) = record.cut.tracker {
        let _ = writeln!(text, "  Tracker: {tracker}");
    }
    let _ = writeln!(text, "  Old Upper Dir: {}", printable(&record.cut.old_upper_dir.to_string_lossy()));
    let _ = writeln!(text, "  New Upper Dir: {}", printable(&record.cut.new_upper_dir.to_string_lossy()));
    if let Some(image) = &record.image {
        let _ = writeln!(text, "  Manifest: {}", image.manifest);
    }
    if let Some(delivery) = &record.delivery {
        let _ = writeln!(text, "  Delivered: {delivery}");
    }
    if let Some(failure) = &status.failure {
        let _ = writeln!(text, "  Error: {}", printable(&failure.message));
        if let Some(remedy) = &failure.remedy {
            let _ = writeln!(text, "  Help: {}", printable(remedy));
        }
    }
    if status.interrupted || status.failure.is_some() {
        let _ = writeln!(text, "Finish it with: snapshot-engine resume {id}");
    }
    text
}
