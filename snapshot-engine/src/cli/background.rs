//! The hidden command of the background process.

use snapshot_engine::kernel::signals;
use snapshot_engine::pipeline::{Engine, background};
use snapshot_engine::store::Store;

use super::args::OneSnapshot;
use super::{Error, Result, status};

pub(super) fn run(args: &OneSnapshot) -> Result {
    signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
    let store: Store = status::existing(&args.place, &args.id)?;
    let id = store.find(&args.id)?;
    Ok(background::run(&Engine::default(), &store, id)?)
}
