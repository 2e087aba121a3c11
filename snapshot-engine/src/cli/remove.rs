//! `remove`.

use serde_json::json;
use snapshot_engine::store::Store;

use super::args::OneSnapshot;
use super::out::Out;
use super::{Result, status};

pub(super) fn run(args: &OneSnapshot, out: &Out) -> Result {
    let id = status::existing(&args.place, &args.id)?.find(&args.id)?;
    Store::open(&args.place.work_dir)?.remove(id)?;
    out.result(&format!("Removed {id}\n"), &json!({ "removed": id }))
}
