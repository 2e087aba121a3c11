//! `stats`.

use serde_json::json;
use snapshot_engine::store::{Store, pauses};
use snapshot_engine::telemetry::PauseHistogram;

use super::Result;
use super::args::Place;
use super::out::Out;

pub(super) fn run(args: &Place, out: &Out) -> Result {
    let histogram = match Store::open_existing(&args.work_dir)? {
        Some(store) => pauses::load(&store)?,
        None => PauseHistogram::default(),
    };
    out.result(&histogram.table(), &json!({ "gates": histogram.figures(), "values": histogram }))
}
