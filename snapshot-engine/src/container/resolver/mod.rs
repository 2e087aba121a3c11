//! The runtimes a container may belong to: one file each, and `wire`, by which daemons are asked.

use std::path::{Path, PathBuf};

use super::candidate::Candidate;
use super::choose::{choose, merged};
use super::error::Error;
use super::places::{Places, subdirectories};
use super::vantage::Vantage;
use crate::model::reference::{ContainerRef, Runtime};

mod containerd;
mod cri;
mod crun;
mod demo;
mod docker;
mod pid;
mod runc;
mod storage;
mod wire;

/// Which containers are wanted of a runtime.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Every one.
    All,
    /// Those whose id or name this is, or whose id starts with it.
    Named(&'a str),
}

impl Wanted<'_> {
    /// Whether a container fits, and if so whether it is named exactly. A prefix has at least three characters.
    #[must_use]
    pub fn fits(self, id: &str, names: &[String]) -> Option<bool> {
        match self {
            Wanted::All => Some(true),
            Wanted::Named(name) if id == name || names.iter().any(|known| known == name) => Some(true),
            Wanted::Named(name) => (name.len() >= 3 && id.starts_with(name)).then_some(false),
        }
    }
}

/// One runtime's knowledge of containers.
pub trait Resolver: Send + Sync {
    /// Whose.
    fn runtime(&self) -> Runtime;

    /// The containers that are wanted. Those whose init is dead are listed too: that they are stale is an answer.
    ///
    /// # Errors
    /// When the runtime is there but its state cannot be read, or it does not answer in time.
    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error>;

    /// The places it looks at, for the message that nothing was found.
    fn places(&self) -> Vec<String>;
}

/// All resolvers. Each socket has one of its own: they are asked at once.
fn all(places: &Places) -> Vec<Box<dyn Resolver>> {
    let vantage = Vantage::of(places.within);
    let mut all: Vec<Box<dyn Resolver>> = vec![
        Box::new(pid::ByPid),
        Box::new(demo::Demo),
        Box::new(runc::Runc { roots: places.runc.clone(), vantage }),
        Box::new(crun::Crun { roots: places.crun.clone(), vantage }),
    ];
    for (runtime, sockets) in [(Runtime::Docker, &places.docker), (Runtime::Podman, &places.podman)] {
        for socket in sockets {
            let containerd = places.containerd.clone();
            all.push(Box::new(docker::Docker { runtime, socket: socket.clone(), containerd }));
        }
    }
    for storage in &places.storage {
        all.push(Box::new(storage::OnDisk { storage: storage.clone(), vantage }));
    }
    for socket in &places.cri {
        all.push(Box::new(cri::Cri { socket: socket.clone() }));
    }
    for socket in &places.containerd {
        all.push(Box::new(containerd::Containerd { socket: socket.clone() }));
    }
    all
}

/// What all runtimes said.
#[derive(Debug, Default)]
pub struct Answers {
    /// The containers, each once.
    pub candidates: Vec<Candidate>,
    /// Why some could not be asked.
    pub unanswered: Vec<Error>,
}

/// Asks all at once; it takes as long as the slowest, and no daemon is waited for longer than its deadline.
fn ask(resolvers: &[Box<dyn Resolver>], wanted: Wanted<'_>) -> Answers {
    let said: Vec<Result<Vec<Candidate>, Error>> = std::thread::scope(|scope| {
        let asked: Vec<_> = resolvers.iter().map(|resolver| scope.spawn(|| resolver.find(wanted))).collect();
        let panicked = |panic| std::panic::resume_unwind(panic);
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let mut answers = Answers::default();
    for answer in said {
        match answer {
            Ok(found) => answers.candidates.extend(found),
            Err(error) => answers.unanswered.push(error),
        }
    }
    answers
}

/// Every container in these places, each once, whoever knows it.
#[must_use]
pub fn list(places: &Places) -> Answers {
    let mut answers = ask(&all(places), Wanted::All);
    answers.candidates = merged(answers.candidates);
    answers
}

/// The one container that a reference means.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Ambiguous`]; for one runtime, why it cannot be asked.
pub(super) fn one(reference: &ContainerRef, places: &Places) -> Result<Candidate, Error> {
    let mut resolvers = all(places);
    let name = match reference {
        ContainerRef::Name(name) => name.clone(),
        ContainerRef::At { runtime, name } => {
            resolvers.retain(|r| r.runtime() == *runtime);
            name.clone()
        }
        ContainerRef::Pid(pid) => {
            resolvers.retain(|r| r.runtime() == Runtime::Pid);
            pid.to_string()
        }
    };
    let Answers { candidates, mut unanswered } = ask(&resolvers, Wanted::Named(&name));
    if let Some(candidate) = choose(&name, candidates)? {
        for error in &unanswered {
            tracing::warn!("{error}");
        }
        return Ok(candidate);
    }
    let denied = unanswered.iter().position(|e| matches!(e, Error::Permission { .. }));
    let only = matches!(reference, ContainerRef::At { .. }) && !unanswered.is_empty();
    match denied.or(only.then_some(0)) {
        Some(at) => Err(unanswered.swap_remove(at)),
        None => Err(Error::NotFound {
            reference: reference.to_string(),
            looked: places_of(&resolvers),
            unanswered: unanswered.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// Every place that is looked at, once: containerd answers two resolvers at one socket.
fn places_of(resolvers: &[Box<dyn Resolver>]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for place in resolvers.iter().flat_map(|r| r.places()) {
        if !all.contains(&place) {
            all.push(place);
        }
    }
    all
}

/// The containers of a state root that are wanted: id, state file, exact.
fn matching(root: &Path, file: &str, wanted: Wanted<'_>) -> Vec<(String, PathBuf, bool)> {
    let fitting = |dir: PathBuf| {
        let id = dir.file_name()?.to_str()?.to_owned();
        let state = dir.join(file);
        let exact = wanted.fits(&id, &[])?;
        state.exists().then_some((id, state, exact))
    };
    subdirectories(root).into_iter().filter_map(fitting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_and_ids_fit_and_prefixes_of_three_of_ids() {
        let names = ["web".to_owned()];
        let fits = |text| Wanted::Named(text).fits("abcdef", &names);
        assert_eq!((fits("abcdef"), fits("web"), fits("abc")), (Some(true), Some(true), Some(false)));
        assert_eq!((fits("ab"), fits("we"), fits("webx"), fits("bcd")), (None, None, None, None));
        assert_eq!(Wanted::All.fits("x", &[]), Some(true));
    }
}
