//! The first stage: from a name to a [`Target`].
//!
//! ```text
//! reference -> resolvers { pid, demo, runc, crun } -> candidates -> one init -> /proc -> Target { cgroup, overlay, config }
//! ```
//!
//! A resolver only finds the init process; everything else is read from the kernel, which is the same for every runtime and
//! cannot be stale.

pub mod cgroup;
pub mod config;
pub mod error;
mod locate;
pub mod mountinfo;
mod options;
pub mod overlay;
pub mod process;
pub mod resolver;
pub mod tasks;

pub use cgroup::{Cgroup, Freezer};
pub use config::Config;
pub use error::Error;
pub use overlay::Overlay;
pub use resolver::{Candidate, Resolver, Roots};
pub use tasks::{Task, tasks};

use crate::model::pid::Pid;

/// A running container that a snapshot can be taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What the user called it.
    pub reference: String,
    /// Its name at its runtime, or its id there; `None` when it was given by process number.
    pub name: Option<String>,
    /// Its init, or the process that was named.
    pub init: Pid,
    /// Start time of the init in clock ticks since boot: with it the number identifies the process.
    pub start: u64,
    /// Its control groups.
    pub cgroup: Cgroup,
    /// Inode number of its mount namespace (`/proc/PID/ns/mnt`).
    pub mount_namespace: u64,
    /// Its root.
    pub overlay: Overlay,
    /// How it was started.
    pub config: Config,
}

impl Target {
    /// The target whose init is this process.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of_process(init: Pid) -> Result<Target, Error> {
        let reference = init.to_string();
        let candidate = Candidate {
            runtime: "pid",
            id: reference.clone(),
            name: None,
            init,
            start: None,
            state: process::dir(init),
            config: None,
            exact: true,
        };
        build(&reference, candidate)
    }

    /// Whether the init still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::is_alive(self.init, Some(self.start))
    }
}

/// The target that a name, an id, a unique prefix of an id (3 characters or more), `1234` or `pid:1234` means, at
/// the runtimes' usual places.
///
/// # Errors
/// See [`Error`].
pub fn resolve(reference: &str) -> Result<Target, Error> {
    resolve_in(reference, &Roots::default())
}

/// As [`resolve`], with the runtimes' state elsewhere (`--runc-root`).
///
/// # Errors
/// See [`Error`].
pub fn resolve_in(reference: &str, roots: &Roots) -> Result<Target, Error> {
    let resolvers = resolver::all(roots);
    let mut candidates = Vec::new();
    for resolver in &resolvers {
        candidates.extend(resolver.find(reference)?);
    }
    match choose(reference, candidates)? {
        Some(candidate) => build(reference, candidate),
        None => {
            let looked = resolvers.iter().flat_map(|r| r.places()).collect();
            Err(Error::NotFound { reference: reference.to_owned(), looked })
        }
    }
}

/// The one candidate that is meant: an exact match before prefixes, and the living before the dead.
fn choose(reference: &str, mut candidates: Vec<Candidate>) -> Result<Option<Candidate>, Error> {
    let number = reference.parse::<u32>().is_ok();
    // A bare number is a process and may be a prefix of an id as well: then only the user knows.
    if !number && candidates.iter().any(|c| c.exact) {
        candidates.retain(|c| c.exact);
    }
    if candidates.iter().any(is_alive) {
        candidates.retain(is_alive);
    }
    // The same container may be seen by two resolvers. The one that knows more goes first.
    candidates.sort_by_key(|c| (c.init, c.config.is_none()));
    candidates.dedup_by_key(|c| (c.init, (c.init.0 == 0).then(|| c.id.clone())));
    if candidates.len() > 1 {
        let candidates = candidates.iter().map(|c| format!("{}:{} ({})", c.runtime, c.id, c.init)).collect();
        return Err(Error::Ambiguous { reference: reference.to_owned(), candidates });
    }
    Ok(candidates.pop())
}

fn is_alive(candidate: &Candidate) -> bool {
    process::is_alive(candidate.init, candidate.start)
}

fn build(reference: &str, candidate: Candidate) -> Result<Target, Error> {
    let init = candidate.init;
    let dead = || Error::NotRunning { reference: reference.to_owned(), init, state: candidate.state.clone() };
    let start = match process::stat(init) {
        Ok(stat) if stat.alive() && candidate.start.is_none_or(|s| s == stat.start) => stat.start,
        _ => return Err(dead()),
    };
    let namespace = process::dir(init).join("ns/mnt");
    let read = || {
        Ok(Target {
            reference: reference.to_owned(),
            name: (candidate.runtime != "pid")
                .then(|| candidate.name.clone().unwrap_or_else(|| candidate.id.clone())),
            init,
            start,
            cgroup: Cgroup::of(init)?,
            mount_namespace: process::namespace(init, "mnt").map_err(|e| Error::io(&namespace, e))?,
            overlay: Overlay::of(init)?,
            config: candidate.config.clone().unwrap_or_else(|| Config::from_process(init)),
        })
    };
    let target = read();
    // Whatever was read of a number that changed hands meanwhile is worth nothing, and so is the error it gave.
    if process::is_alive(init, Some(start)) { target } else { Err(dead()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, init: Pid, exact: bool) -> Candidate {
        Candidate {
            runtime: "runc",
            id: id.to_owned(),
            name: None,
            init,
            start: None,
            state: "/state".into(),
            config: None,
            exact,
        }
    }

    #[test]
    fn exact_beats_prefix_and_alive_beats_dead() {
        let own = Pid::own();
        let dead = Pid(u32::MAX);
        let chosen = choose("abc", vec![candidate("abcd", own, false), candidate("abc", Pid(1), true)]);
        assert_eq!(chosen.unwrap().unwrap().id, "abc");
        let chosen = choose("abc", vec![candidate("abcd", dead, false), candidate("abce", own, false)]);
        assert_eq!(chosen.unwrap().unwrap().id, "abce");
        let chosen = choose("abc", vec![candidate("abcd", Pid(1), false), candidate("abce", own, false)]);
        assert!(matches!(chosen, Err(Error::Ambiguous { candidates, .. }) if candidates.len() == 2));
        let chosen = choose("123", vec![candidate("123", Pid(1), true), candidate("123e", own, false)]);
        assert!(matches!(chosen, Err(Error::Ambiguous { .. })));
        assert_eq!(choose("abc", Vec::new()).unwrap(), None);
    }

    #[test]
    fn a_dead_init_is_said_to_be_dead() {
        let error = build("x", candidate("x", Pid(u32::MAX), true)).unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }));
        let mut reused = candidate("x", Pid::own(), true);
        reused.start = Some(1);
        assert!(matches!(build("x", reused), Err(Error::NotRunning { .. })));
    }

    #[test]
    fn unknown_names_where_it_looked() {
        let error = resolve("no-such-container").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFound { .. }));
        assert!(text.contains("/proc") && text.contains("/run/runc") && text.contains("/run/crun"), "{text}");
    }

    #[test]
    fn a_process_of_the_host_is_no_container() {
        // On the host its root is no overlay; in a container that has none of its own upper it is still an error or a target, never a panic.
        let _ = Target::of_process(Pid::own());
    }
}
