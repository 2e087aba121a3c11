//! `resume`.

use std::time::Instant;

use serde_json::json;
use snapshot_engine::kernel::signals;
use snapshot_engine::pipeline::progress::UntilSignal;
use snapshot_engine::pipeline::{Engine, background, commit};
use snapshot_engine::store::Store;
use snapshot_engine::{SnapshotResult, State};

use super::args::Resume;
use super::commit::COMPLETED;
use super::out::Out;
use super::progress::Bar;
use super::{Error, Result, status};

pub(super) fn run(args: &Resume, out: &Out, quiet: bool) -> Result {
    let began = Instant::now();
    let place = &args.one.place;
    let id = status::existing(place, &args.one.id)?.find(&args.one.id)?;
    let login = args.reach.login()?;
    let mut claimed = Store::open(&place.work_dir)?.claim(id)?;
    let known = &claimed.record().options.access;
    let access = args.reach.access(known.clone()).absolute().map_err(|e| Error::File(".".into(), e))?;
    if access != *known {
        claimed.update(|record| record.options.access = access)?;
    }
    if args.wait || claimed.record().state == State::Completed {
        signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
        let bar = Bar::new(!quiet && !out.is_json());
        let record =
            commit::finish(&Engine { login, ..Engine::default() }, &mut claimed, &UntilSignal(&bar))?;
        drop(bar);
        return out.result(COMPLETED, &SnapshotResult::new(&record, began.elapsed()));
    }
    let pid = background::launch(claimed, login.as_ref())?;
    let text = format!("Background commit processing started for snapshot: {id}\n");
    out.result(&text, &json!({ "snapshot_id": id, "state": State::Processing, "pid": pid }))
}
