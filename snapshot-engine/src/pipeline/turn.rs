//! Waiting for our turn at a container's freezer.

use std::time::{Duration, Instant};

use super::Error;
use super::progress::{Progress, Stage};
use super::session::place;
use crate::container::Target;
use crate::kernel::turn::Turn;
use crate::model::fault::{Class, class_of_io, remedy_of_io};

/// Longer than any engine may hold a container: the largest budget is a minute.
const PATIENCE: Duration = Duration::from_secs(70);
const LOOK: Duration = Duration::from_millis(1);

/// Waits until no other engine is at the container's freezer. `None`: it has no cgroup of its own, so nobody can freeze it.
///
/// # Errors
/// When the other one does not let go, the cgroup is gone, or somebody wants us to stop.
pub(super) fn take(target: &Target, progress: &dyn Progress) -> Result<Option<Turn>, Error> {
    let Some(place) = place(target) else { return Ok(None) };
    let began = Instant::now();
    loop {
        let turn = Turn::attempt(place.path())
            .map_err(|e| Error::stage(Stage::Window, class_of_io(&e), remedy_of_io(&e), e))?;
        if turn.is_some() {
            return Ok(turn);
        }
        progress.check()?;
        if began.elapsed() > PATIENCE {
            let remedy = "wait for the other snapshot of this container, or end that engine";
            let why = "another engine holds the container's freezer";
            return Err(Error::stage(Stage::Window, Class::General, Some(remedy.to_owned()), why));
        }
        std::thread::sleep(LOOK);
    }
}
