//! What `/proc/PID` says of one process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mount};
use crate::model::ids::{IdMap, Ids};
use crate::model::pid::Pid;

/// `/proc/PID`.
#[must_use]
pub fn dir(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// The process's root directory, as a path that leads into its mount namespace.
#[must_use]
pub fn root(pid: Pid) -> PathBuf {
    dir(pid).join("root")
}

/// State letter, parent and start time (in clock ticks since boot) from `/proc/PID/stat`. With the start time a
/// process number identifies a process.
///
/// # Errors
/// When there is no such process.
pub fn stat(pid: Pid) -> io::Result<Stat> {
    let text = fs::read(dir(pid).join("stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc/PID/stat"))
}

/// A few fields of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `Z` ...
    pub state: u8,
    /// The parent; 0 outside the engine's PID namespace.
    pub parent: Pid,
    /// Clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Whether it runs or can: a zombie has left its namespaces.
    #[must_use]
    pub fn alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The command name is the process's own choice and may hold `) Z 1`: only the last parenthesis counts.
    let close = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&text[close + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = Pid(fields.next()?.parse().ok()?);
    // state is field 3, starttime field 22 (proc_pid_stat(5)).
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start })
}

/// Whether the process is alive and, if a start time is known, still the same one.
#[must_use]
pub fn is_alive(pid: Pid, start: Option<u64>) -> bool {
    pid.0 != 0 && stat(pid).is_ok_and(|s| s.alive() && start.is_none_or(|t| t == s.start))
}

/// The inode number of one of the process's namespaces (`mnt`, `pid`, `cgroup` ...).
///
/// # Errors
/// When the process is gone or the engine may not look.
pub fn namespace(pid: Pid, kind: &str) -> io::Result<u64> {
    let link = fs::read_link(dir(pid).join("ns").join(kind))?;
    link.to_str()
        .and_then(|s| s.split_once(":[")?.1.strip_suffix(']')?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed namespace link"))
}

/// How the process sees owners: the map of its user namespace.
///
/// # Errors
/// When the process is gone or the engine may not look.
pub fn ids(pid: Pid) -> io::Result<Ids> {
    let read = |name| {
        let text = fs::read_to_string(dir(pid).join(name))?;
        IdMap::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed map of ids"))
    };
    Ok(Ids { users: read("uid_map")?, groups: read("gid_map")? })
}

/// The process's mount table.
///
/// # Errors
/// When the process is gone or the engine may not look.
pub fn mounts(pid: Pid) -> io::Result<Vec<Mount>> {
    Ok(mountinfo::parse(&fs::read(dir(pid).join("mountinfo"))?))
}

/// Every process there is now.
///
/// # Errors
/// When /proc cannot be listed.
pub fn all() -> io::Result<Vec<Pid>> {
    numbers(Path::new("/proc"))
}

/// Every thread of a process, by its number.
///
/// # Errors
/// When the process is gone.
pub fn threads(pid: Pid) -> io::Result<Vec<Pid>> {
    numbers(&dir(pid).join("task"))
}

fn numbers(dir: &Path) -> io::Result<Vec<Pid>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
            all.push(Pid(pid));
        }
    }
    Ok(all)
}

/// Whether an error only says that the process went away while it was looked at.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_does_not_confuse() {
        let text = b"7 (a) Z 1 (b) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 100 5";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), (b'S', Pid(3), 4242));
        assert_eq!(parse_stat(b"7 (x"), None);
    }

    #[test]
    fn reads_its_own() {
        let own = Pid::own();
        assert!(stat(own).unwrap().alive());
        assert!(threads(own).unwrap().contains(&own));
        assert!(all().unwrap().contains(&own));
        assert!(namespace(own, "mnt").unwrap() > 0);
        assert!(!is_alive(Pid(0), None));
    }
}
