//! Through whose eyes a runtime's answers are to be read.
//!
//! A daemon in a container of its own (docker in docker, a Kubernetes node made by `kind`, a test) numbers processes and names
//! paths as its own namespaces have them. What it says is translated here, once, into what the engine can use.
//!
//! ```text
//!   pid 118  of a daemon in PID namespace N    the process whose NSpid line has 118 at N's depth, and which is in N or a child of one in N
//!   /var/..  of a daemon in mount namespace M  /proc/DAEMON/root/var/..
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::process;
use super::stopped::identity;
use crate::model::pid::Pid;

/// The namespaces of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Vantage {
    /// A process in another PID namespace than the engine's, and that namespace.
    numbers: Option<(Pid, u64)>,
    /// A process in another mount namespace.
    paths: Option<Pid>,
}

impl Vantage {
    /// That of a process; the engine's own where it is the same, and where `of` is `None` or cannot be looked at.
    pub(super) fn of(of: Option<Pid>) -> Vantage {
        let Some(of) = of else { return Vantage::default() };
        let other = |kind| {
            let theirs = process::namespace(of, kind).ok()?;
            (theirs != process::namespace(Pid::own(), kind).ok()?).then_some(theirs)
        };
        Vantage { numbers: other("pid").map(|namespace| (of, namespace)), paths: other("mnt").map(|_| of) }
    }

    /// The process that has this number there; `None` if there is none, and for 0.
    pub(super) fn process(self, number: u32) -> Option<Pid> {
        let Some((witness, namespace)) = self.numbers else { return (number != 0).then_some(Pid(number)) };
        let depth = numbers(witness)?.len().checked_sub(1)?;
        let inside = |pid| process::namespace(pid, "pid").is_ok_and(|n| n == namespace);
        process::all().ok()?.into_iter().find(|pid| {
            // The init of a nested namespace is the child of somebody in ours: its runtime's monitor, or who adopted it.
            numbers(*pid).is_some_and(|all| all.get(depth) == Some(&number))
                && (inside(*pid) || process::stat(*pid).is_ok_and(|stat| inside(stat.parent)))
        })
    }

    /// A path of theirs as the engine can open it; the same path where both see the same thing there, which outlives the daemon.
    pub(super) fn path(self, path: &Path) -> PathBuf {
        let Some(witness) = self.paths else { return path.to_owned() };
        let theirs = process::root(witness).join(path.strip_prefix("/").unwrap_or(path));
        match (identity(path), identity(&theirs)) {
            (Ok(ours), Ok(same)) if ours == same => path.to_owned(),
            _ => theirs,
        }
    }
}

/// The process's number in each PID namespace that it is in, the engine's first (proc_pid_status(5)).
fn numbers(pid: Pid) -> Option<Vec<u32>> {
    let status = fs::read_to_string(process::dir(pid).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_eyes_change_nothing() {
        let own = Vantage::of(Some(Pid::own()));
        assert_eq!(own, Vantage::of(None));
        assert_eq!((own.process(7), own.process(0)), (Some(Pid(7)), None));
        assert_eq!(own.path(Path::new("/run/x")), Path::new("/run/x"));
        assert_eq!(numbers(Pid::own()).unwrap()[0], Pid::own().0);
    }

    #[test]
    fn another_namespace_is_looked_into() {
        let other = Vantage { numbers: Some((Pid::own(), 1)), paths: Some(Pid(7)) };
        assert_eq!(other.process(Pid::own().0), None, "nobody is in the namespace 1");
        assert_eq!(other.path(Path::new("/no/such")), Path::new("/proc/7/root/no/such"));
        let mirrored = Vantage { numbers: None, paths: Some(Pid::own()) };
        assert_eq!(
            mirrored.path(Path::new("/etc")),
            Path::new("/etc"),
            "the same directory by the same name"
        );
    }
}
