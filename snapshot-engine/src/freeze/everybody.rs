//! Whether everybody in and below a version 2 cgroup is frozen.
//!
//! The kernel's word is `frozen 1` in `cgroup.events`, and for a cgroup that has tasks of its own *and* cgroups below it that word may be wrong:
//! it is given when the last own task is frozen, whatever those below do (`cgroup_update_frozen`, kernel/cgroup/freezer.c), and also when the last
//! cgroup below is, whatever the own tasks do (`cgroup_propagate_frozen`). Such cgroups exist wherever no controller forbids them: a container that
//! makes cgroups of its own in a hybrid hierarchy is one. Then each task of such a cgroup is asked itself:
//!
//! ```text
//!   nr_descendants 0           the kernel's word is good                                 one small read more
//!   a cgroup without children  its own word is good: it counts its own tasks
//!   a cgroup with children     each of its tasks sleeps, is stopped, or is dead
//! ```
//!
//! A task that sleeps interruptibly (`S`, and off its core: `wchan` names a place) after `cgroup.freeze` was written is in the freezer: the write has
//! woken every such sleeper (`cgroup_freeze_task`), and nobody with that signal pending can fall asleep so elsewhere. One in an uninterruptible sleep
//! (`D`) is not, and is waited for. (A parent in vfork(2) is in that state too: it is waited for as well, and the attempt fails if its child is frozen first.)
//!
//! This allocates, within the window: only for containers with cgroups of their own below them, for which there is no other way to know.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// The number after `nr_descendants` in the text of a `cgroup.stat`.
pub(super) fn descendants(text: &[u8]) -> Option<u64> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"nr_descendants "))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// See the head of this file. `dir` has been told to freeze.
///
/// # Errors
/// When a file cannot be read although the cgroup or the task is there.
pub(super) fn frozen(dir: &Path) -> io::Result<bool> {
    let mut below = Vec::new();
    for entry in present(fs::read_dir(dir))?.into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below.push(entry.path());
        }
    }
    if below.is_empty() {
        // Removed meanwhile: nobody is in it.
        let events = present(fs::read_to_string(dir.join("cgroup.events")))?;
        return Ok(events.is_none_or(|text| text.lines().any(|line| line == "frozen 1")));
    }
    for tid in present(fs::read_to_string(dir.join("cgroup.threads")))?.unwrap_or_default().lines() {
        if !stands(Path::new("/proc").join(tid).as_path())? {
            return Ok(false);
        }
    }
    for dir in below {
        if !frozen(&dir)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a task that was told to freeze is in the freezer, stopped, or dead.
fn stands(task: &Path) -> io::Result<bool> {
    let Some(stat) = present(fs::read_to_string(task.join("stat")))? else { return Ok(true) };
    let Some(place) = present(fs::read_to_string(task.join("wchan")))? else { return Ok(true) };
    Ok(at_rest(&stat, &place))
}

/// The same from `/proc/TID/stat` and `/proc/TID/wchan` (proc_pid_stat(5): the state follows the name in brackets).
fn at_rest(stat: &str, place: &str) -> bool {
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    match state {
        Some('Z' | 'X') => true,
        Some('S' | 'T' | 't') => !matches!(place.trim(), "" | "0"),
        _ => false,
    }
}

/// What was read, or nothing if it is not there any more.
fn present<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        // ENODEV: the cgroup was removed while its file was open; ESRCH: so was the task.
        Err(e)
            if [Errno::NOENT, Errno::NODEV, Errno::SRCH]
                .iter()
                .any(|gone| e.raw_os_error() == Some(gone.raw_os_error())) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_at_rest() {
        assert!(at_rest("7 (a) b) S 1 7", "get_signal"));
        assert!(at_rest("7 (a) T 1 7", "do_signal_stop"));
        assert!(at_rest("7 (a) Z 1 7", "0"));
        // On its core, on its way to sleep; computing; in the middle of a write.
        assert!(!at_rest("7 (a) S 1 7", "0"));
        assert!(!at_rest("7 (S ) R 1 7", "0"));
        assert!(!at_rest("7 (a) D 1 7", "btrfs_dio_write"));
        assert!(!at_rest("", "get_signal"));
    }

    #[test]
    fn cgroups_below_are_counted() {
        assert_eq!(descendants(b"nr_descendants 12\nnr_dying_descendants 3\n"), Some(12));
        assert_eq!(descendants(b"nr_dying_descendants 3\n"), None);
    }
}
