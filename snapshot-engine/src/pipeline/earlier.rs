//! Which earlier snapshot an image is built on: chosen once, so that a try that was killed is repeated with the same bytes.
//!
//! ```text
//!   snapshots/ID/settled          by the cut: which files can be recognised
//!   snapshots/ID/image/memory     by a finished image: what it knows of its files
//!   snapshots/ID/image/earlier    a hard link to the chosen snapshot's `memory`; empty if there is none
//! ```
//!
//! A link stays what it is when the other snapshot is removed, and it comes to be in one step.

use std::io;
use std::path::Path;

use crate::image::earlier::Incremental;
use crate::store::{Record, State, Store};

/// Where the cut leaves what it says of its files, in the snapshot's directory.
pub(super) const SETTLED: &str = "settled";
const MEMORY: &str = "memory";

/// What the image of `record`, whose directory is `snapshot`, is to be built on. That there is nothing is no error: everything is read then.
pub(super) fn choose(record: &Record, snapshot: &Path) -> Incremental {
    let image = snapshot.join("image");
    let chosen = Incremental {
        settled: snapshot.join(SETTLED),
        earlier: image.join("earlier"),
        memory: image.join(MEMORY),
    };
    if let Err(error) = link(record, snapshot, &chosen.earlier) {
        tracing::warn!(%error, "no earlier image is looked for: everything is read");
    }
    chosen
}

fn link(record: &Record, snapshot: &Path, to: &Path) -> io::Result<()> {
    if to.try_exists()? {
        return Ok(());
    }
    std::fs::create_dir_all(to.parent().unwrap_or(snapshot))?;
    if !record.options.full {
        for memory in candidates(record) {
            match std::fs::hard_link(&memory, to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
    }
    std::fs::File::create_new(to).map(drop)
}

/// The memories of earlier snapshots of the same upperdir, made with the same options, the newest first. Whether one of them is of any use
/// is for `image` to say.
fn candidates(record: &Record) -> impl Iterator<Item = std::path::PathBuf> {
    let store = Store::open_existing(&record.options.work_dir).ok().flatten();
    let listed = store.and_then(|store| store.list().ok()).unwrap_or_default();
    let format = record.options.rafs().ok();
    let (own, upper) = (record.snapshot_id, record.cut.new_upper_dir.clone());
    listed
        .into_iter()
        .rev()
        .filter(move |status| {
            status.snapshot_id < own
                && status.state == State::Completed
                && status.record.cut.new_upper_dir == upper
                && status.record.options.rafs().ok() == format
        })
        .map(|status| status.directory.join("image").join(MEMORY))
}
