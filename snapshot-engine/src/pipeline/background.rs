//! The process that finishes an image after the command has returned.
//!
//! ```text
//!   command                                  background process
//!   holds the snapshot's lock
//!   spawns itself: __background ID     --->  setsid; takes over the lock, which came as descriptor 0
//!   waits for one line on a pipe       <---  "ready"
//!   returns                                  makes the image; writes to background.log
//! ```
//!
//! The lock is never free in between, so nobody can take the snapshot for interrupted, and no sweep comes between. If the child dies before it is ready, the
//! command says so with what the child had to say; the snapshot stays and can be resumed.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::progress::{Quiet, UntilSignal};
use super::{Stages, commit};
use crate::model::fault::Fault;
use crate::store::{Claimed, SnapshotId, Store};

/// The hidden command that [`launch`] calls this program with.
pub const COMMAND: &str = "__background";

const READY: &str = "ready";

/// What can go wrong with starting the background process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its log cannot be written.
    #[error("cannot open {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be started.
    #[error("cannot start the background process of {id}")]
    Spawn {
        /// The snapshot.
        id: SnapshotId,
        /// Why.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("the background process of {id} ended at once ({status}); {} says why", log.display())]
    Died {
        /// The snapshot.
        id: SnapshotId,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
    },
}

impl Fault for Error {
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Error::Log { source, .. } => return crate::model::fault::remedy_of_io(source),
            Error::Spawn { id, .. } | Error::Died { id, .. } => {
                format!("the snapshot is kept; finish it with `snapshot-engine resume {id} --wait`")
            }
        })
    }
}

/// Hands a snapshot to a background process of this very program, which must understand [`COMMAND`]. Returns its process id once it has taken over.
///
/// # Errors
/// When it cannot be started or ends at once. The snapshot is as it was, and no longer ours.
pub fn launch(claimed: Claimed) -> Result<u32, super::Error> {
    let id = claimed.record().snapshot_id;
    let path = claimed.log_file();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|source| Error::Log { path: path.clone(), source })?;
    let spawn = |source| Error::Spawn { id, source };
    // /proc/self/exe is this program even if its file has been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .arg0("snapshot-engine")
        .arg(COMMAND)
        .arg("--work-dir")
        .arg(claimed.store().work_dir())
        .arg(id.to_string())
        .stdin(Stdio::from(claimed.share_lock()?))
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(spawn)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(spawn)?;
    }
    if line.trim() == READY {
        return Ok(child.id());
    }
    let status = child.wait().map_err(spawn)?.to_string();
    Err(Error::Died { id, status, log: path }.into())
}

/// The background process: takes the snapshot over, says so, and finishes it.
///
/// # Errors
/// As [`Store::adopt`] and [`commit::finish`]; the record tells others.
pub fn run(stages: &dyn Stages, store: &Store, id: SnapshotId) -> Result<(), super::Error> {
    // Away from the terminal and its hang-ups. It fails only for the leader of a process group, who is away already.
    let _ = rustix::process::setsid();
    let mut claimed = store.adopt(id)?;
    let mut stdout = io::stdout();
    // Whoever started us may be gone; that is no reason to stop. Nothing is written to the pipe afterwards.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    commit::finish(stages, &mut claimed, &UntilSignal(&Quiet))?;
    Ok(())
}
