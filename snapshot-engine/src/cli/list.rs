//! `list`.

use std::fmt::Write;

use serde::Serialize;
use snapshot_engine::SnapshotStatus;
use snapshot_engine::store::Store;

use super::Result;
use super::args::Place;
use super::out::{Out, printable};

#[derive(Serialize)]
struct Listing {
    snapshots: Vec<SnapshotStatus>,
}

pub(super) fn run(args: &Place, out: &Out) -> Result {
    let snapshots = match Store::open_existing(&args.work_dir)? {
        Some(store) => store.list()?,
        None => Vec::new(),
    };
    out.result(&table(&snapshots), &Listing { snapshots: snapshots.clone() })
}

fn table(snapshots: &[SnapshotStatus]) -> String {
    let mut text = format!(
        "{:<28}  {:<11}  {:>4}  {:>8}  {:<7}  {:<20}  TARGET\n",
        "SNAPSHOT", "STATE", "DONE", "PAUSE", "GATE", "CONTAINER"
    );
    for s in snapshots {
        let pause = &s.record.cut.pause;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<28}  {:<11}  {:>3.0}%  {:>8}  {:<7}  {:<20}  {}",
            s.snapshot_id,
            s.word(),
            s.progress * 100.0,
            pause.window,
            pause.gate,
            printable(&s.record.container.to_string()),
            printable(&s.record.target.to_string()),
        );
    }
    text
}
