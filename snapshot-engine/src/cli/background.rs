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
    // Taken before anything is said where it came from.
    let login = background::login().map_err(|e| Error::File("/dev/stdout".into(), e))?;
    Ok(background::run(&Engine { login, ..Engine::default() }, &store, id)?)
}
