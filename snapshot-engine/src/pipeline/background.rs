//! The process that finishes an image after the command has returned.
//!
//! ```text
//!   command                                  background process
//!   holds the snapshot's lock
//!   spawns itself: __background ID     --->  setsid; takes over the lock, which came as descriptor 0
//!   says who we are at the registry    --->  reads it to its end: descriptor 1 is a socket
//!   waits for one line on the same     <---  "ready"
//!   returns                                  makes the image; writes to background.log
//! ```
//!
//! The lock is never free in between, so nobody can take the snapshot for interrupted, and no sweep comes between. If the child dies before it is ready, the
//! command says so with what the child had to say; the snapshot stays and can be resumed.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::progress::{Quiet, UntilSignal};
use super::{Stages, commit};
use crate::model::access::Login;
use crate::model::fault::Fault;
use crate::store::{Claimed, SnapshotId, Store};

/// The variable that a password may come in. It is not in the environment of the background process.
pub const PASSWORD: &str = "SNAPSHOT_ENGINE_PASSWORD";

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
pub fn launch(claimed: Claimed, login: Option<&Login>) -> Result<u32, super::Error> {
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
    let (ours, theirs) = UnixStream::pair().map_err(spawn)?;
    // /proc/self/exe is this program even if its file has been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .arg0("snapshot-engine")
        .arg(COMMAND)
        .arg("--work-dir")
        .arg(claimed.store().work_dir())
        .arg(id.to_string())
        .stdin(Stdio::from(claimed.share_lock()?))
        .stdout(OwnedFd::from(theirs))
        .stderr(log)
        .env_remove(PASSWORD)
        .current_dir("/")
        .spawn()
        .map_err(spawn)?;
    // A child that is dead by now is found to be so below.
    let _ = serde_json::to_writer(&ours, &login);
    let _ = ours.shutdown(Shutdown::Write);
    let mut line = String::new();
    let _ = BufReader::new(&ours).read_line(&mut line);
    if line.trim() == READY {
        return Ok(child.id());
    }
    let status = child.wait().map_err(spawn)?.to_string();
    Err(Error::Died { id, status, log: path }.into())
}

/// In the background process: who we are at the registry, as [`launch`] has been told. To be called before [`run`].
///
/// # Errors
/// When what came is not understood.
pub fn login() -> io::Result<Option<Login>> {
    let socket = io::stdout().as_fd().try_clone_to_owned()?;
    // Started by hand, there is nobody who could say.
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode).is_socket() {
        return Ok(None);
    }
    let mut text = String::new();
    UnixStream::from(socket).read_to_string(&mut text)?;
    // The error's own text could quote the password.
    serde_json::from_str(&text).map_err(|_| io::ErrorKind::InvalidData.into())
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
