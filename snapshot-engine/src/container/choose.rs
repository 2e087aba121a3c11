//! Which of the containers that were found is meant.

use super::Error;
use super::candidate::Candidate;
use crate::model::reference::Runtime;

/// The same container seen by several runtimes becomes one: the one that knows most is asked, and what it does not say is taken from the others
/// (runc knows the start time of docker's init; storage knows where podman's layers are).
pub(super) fn merged(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by_key(|c| c.runtime);
    let mut all: Vec<Candidate> = Vec::new();
    for one in candidates {
        // The id of a process is a number of another kind; and a number that another runtime remembers may be stale.
        let same = |known: &&mut Candidate| match one.runtime {
            Runtime::Pid => known.init.is_some() && known.init == one.init,
            _ => known.id == one.id,
        };
        match all.iter_mut().find(same) {
            Some(known) => add(known, one),
            None => all.push(one),
        }
    }
    all
}

fn add(known: &mut Candidate, other: Candidate) {
    if known.init == other.init {
        known.start = known.start.or(other.start);
    } else if !known.is_alive() && other.is_alive() && known.init.is_none() {
        (known.init, known.start, known.state) = (other.init, other.start, other.state);
    }
    known.exact |= other.exact;
    known.config = known.config.take().or(other.config);
    known.image = known.image.take().or(other.image);
    known.layers = known.layers.take().or(other.layers);
    known.snapshot = known.snapshot.take().or(other.snapshot);
    if known.names.is_empty() {
        known.names = other.names;
    }
    for (key, value) in other.labels {
        known.labels.entry(key).or_insert(value);
    }
}

/// The one that is meant: an exact match before prefixes, the living before the dead of the same name, and whatever can be snapshotted before stale state.
pub(super) fn choose(reference: &str, candidates: Vec<Candidate>) -> Result<Option<Candidate>, Error> {
    let mut candidates = merged(candidates);
    let number = reference.parse::<u32>().is_ok();
    // A bare number is a process and may be a prefix of an id as well: then only the user knows.
    if !number && candidates.iter().any(|c| c.exact) {
        candidates.retain(|c| c.exact);
        // Kubernetes keeps the container that ended beside the one that took its place.
        if candidates.iter().any(Candidate::is_alive) {
            candidates.retain(Candidate::is_alive);
        }
    }
    let usable = |c: &Candidate| c.is_alive() || c.layers.is_some();
    if candidates.iter().any(usable) {
        candidates.retain(usable);
    }
    if candidates.len() > 1 {
        let candidates = candidates.iter().map(ToString::to_string).collect();
        return Err(Error::Ambiguous { reference: reference.to_owned(), candidates });
    }
    Ok(candidates.pop())
}

#[cfg(test)]
mod tests {
    use super::super::candidate::{Layers, State};
    use super::*;
    use crate::model::pid::Pid;

    fn candidate(id: &str, init: u32, exact: bool) -> Candidate {
        let new = Candidate::new(Runtime::Runc, id.to_owned(), "/state".into());
        Candidate { exact, ..new.with_init(Some(Pid(init)), None) }
    }

    fn own(id: &str, exact: bool) -> Candidate {
        candidate(id, std::process::id(), exact)
    }

    #[test]
    fn exact_beats_prefix_and_alive_beats_dead() {
        let chosen = choose("abc", vec![own("abcd", false), candidate("abc", 1, true)]);
        assert_eq!(chosen.unwrap().unwrap().id, "abc");
        let chosen = choose("abc", vec![candidate("abcd", u32::MAX, false), own("abce", false)]);
        assert_eq!(chosen.unwrap().unwrap().id, "abce");
        let chosen = choose("abc", vec![candidate("abcd", 1, false), own("abce", false)]);
        assert!(matches!(chosen, Err(Error::Ambiguous { candidates, .. }) if candidates.len() == 2));
        let chosen = choose("123", vec![candidate("123", 1, true), own("123e", false)]);
        assert!(matches!(chosen, Err(Error::Ambiguous { .. })));
        assert_eq!(choose("abc", Vec::new()).unwrap(), None);
    }

    #[test]
    fn a_stopped_container_with_layers_counts() {
        let stopped = |id: &str| Candidate {
            layers: Some(Layers::default()),
            ..Candidate::new(Runtime::Docker, id.to_owned(), "/s".into())
        };
        assert_eq!(choose("abc", vec![stopped("abcd")]).unwrap().unwrap().id, "abcd");
        let Err(Error::Ambiguous { candidates, .. }) =
            choose("abc", vec![stopped("abcd"), own("abce", false)])
        else {
            panic!("a running and a stopped container share the beginning of their ids")
        };
        assert_eq!(candidates[0], "docker://abcd (stopped)");
        assert!(candidates[1].starts_with("runc://abce (running, process "), "{candidates:?}");
    }

    #[test]
    fn one_container_at_two_runtimes_is_one_and_knows_what_both_know() {
        let docker = Candidate {
            runtime: Runtime::Docker,
            names: vec!["web".into()],
            state: State::Paused,
            ..own("abcd", true)
        };
        let start = crate::container::process::stat(Pid::own()).unwrap().start;
        let runc = Candidate { start: Some(start), ..own("abcd", false) };
        let chosen = choose("web", vec![runc, docker]).unwrap().unwrap();
        assert_eq!(
            (chosen.runtime, chosen.start, chosen.state),
            (Runtime::Docker, Some(start), State::Paused)
        );
        // By its process number, which has no name.
        let pid = Candidate { runtime: Runtime::Pid, ..own("77", true) };
        assert_eq!(choose("77", vec![pid, own("77ab", false)]).unwrap().unwrap().id, "77ab");
    }
}
