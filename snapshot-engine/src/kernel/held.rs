//! A note of the freezer that is about to be used: the last resort when the engine and its watchdog are killed together.
//!
//! ```text
//!   <directory>/held    'F' or '-'          frozen by us, or not; one byte, written before the freeze and after the thaw
//!                       <control file>      absolute
//!                       <inode number>      of its cgroup, which names it as long as the machine runs
//!                       <what thaws>
//! ```
//!
//! Whoever clears away after a killed engine ([`thaw_left`]) thaws what its note says is frozen. Both the engine and the watchdog
//! write '-' once they have thawed, so that a container its owner pauses later is not taken for ours. The note need not outlive a crash
//! of the machine: no cgroup does.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::turn::Turn;

const NAME: &str = "held";
const FROZEN: &[u8; 1] = b"F";
/// What the watchdog writes, too.
pub(super) const THAWED: &[u8; 1] = b"-";

/// The note of one freezer; removed on drop.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    file: File,
}

impl Note {
    /// Writes one, not frozen, into a directory. `control` is the freezer's file, `thaw` what thaws when written to it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(directory: &Path, control: &Path, thaw: &[u8]) -> io::Result<Note> {
        let ino = cgroup(control)?;
        let path = directory.join(NAME);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&path)?;
        let mut text = THAWED.to_vec();
        text.extend_from_slice(control.as_os_str().as_encoded_bytes());
        text.extend_from_slice(format!("\n{ino}\n").as_bytes());
        text.extend_from_slice(thaw);
        file.write_all(&text)?;
        Ok(Note { path, file })
    }

    /// Says whether the container is about to be frozen, or thawed again. In place: no room is needed for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, frozen: bool) -> io::Result<()> {
        self.file.write_all_at(if frozen { FROZEN } else { THAWED }, 0)
    }
}

impl AsFd for Note {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // What is left goes with its directory.
        let _ = fs::remove_file(&self.path);
    }
}

fn cgroup(control: &Path) -> io::Result<u64> {
    Ok(fs::metadata(control.parent().unwrap_or(Path::new("/")))?.ino())
}

/// Thaws the container that a killed engine's note in this directory says it left frozen, and returns its cgroup. `None`: there is no such
/// note, or the container is gone.
///
/// # Errors
/// When the note cannot be read, or the kernel refuses the thaw; `WouldBlock` while another engine is at that freezer.
pub fn thaw_left(directory: &Path) -> io::Result<Option<PathBuf>> {
    let path = directory.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(rest) = text.strip_prefix(FROZEN) else { return Ok(None) };
    let mut lines = rest.splitn(3, |b| *b == b'\n');
    let (Some(control), Some(ino), Some(thaw)) = (lines.next(), lines.next(), lines.next()) else {
        // Half written: nothing was frozen yet.
        return Ok(None);
    };
    let control = Path::new(OsStr::from_bytes(control));
    let Some(group) = control.parent() else { return Ok(None) };
    if fs::metadata(group).ok().map(|m| m.ino().to_string().into_bytes()).as_deref() != Some(ino) {
        return Ok(None);
    }
    let Some(_turn) = Turn::attempt(group)? else { return Err(io::ErrorKind::WouldBlock.into()) };
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(control)?.write_all(thaw)?;
    OpenOptions::new().write(true).open(&path)?.write_all_at(THAWED, 0)?;
    Ok(Some(group.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_frozen_is_thawed_once_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("group");
        fs::create_dir(&group).unwrap();
        let control = group.join("cgroup.freeze");
        fs::write(&control, "1").unwrap();
        let state = || fs::read_to_string(&control).unwrap();
        assert_eq!(thaw_left(dir.path()).unwrap(), None);
        let note = Note::write(dir.path(), &control, b"0").unwrap();
        assert_eq!((thaw_left(dir.path()).unwrap(), state()), (None, "1".into()));
        note.set(true).unwrap();
        note.set(false).unwrap();
        assert_eq!((thaw_left(dir.path()).unwrap(), state()), (None, "1".into()));
        note.set(true).unwrap();
        // Killed: the note stays. While another engine is at this freezer, its state is that one's.
        std::mem::forget(note);
        let turn = Turn::attempt(&group).unwrap();
        assert_eq!(thaw_left(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(state(), "1");
        drop(turn);
        assert_eq!((thaw_left(dir.path()).unwrap(), state()), (Some(group.clone()), "0".into()));
        // Paused by its owner since.
        fs::write(&control, "1").unwrap();
        assert_eq!((thaw_left(dir.path()).unwrap(), state()), (None, "1".into()));
        // Another cgroup of the same name.
        let note = Note::write(dir.path(), &control, b"0").unwrap();
        note.set(true).unwrap();
        fs::rename(&group, dir.path().join("old")).unwrap();
        fs::create_dir(&group).unwrap();
        fs::write(&control, "1").unwrap();
        assert_eq!((thaw_left(dir.path()).unwrap(), state()), (None, "1".into()));
        drop(note);
        assert!(!dir.path().join(NAME).exists());
    }
}
