//! Starting and stopping demos.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::init::{ARGUMENT, Message};
use super::state::{self, State};
use super::{Demo, Error, StartOptions, layers};
use crate::container::cgroup::{Hierarchies, members};
use crate::container::process;
use crate::kernel::removal::remove_tree;
use crate::model::pid::Pid;

/// How long processes may take to die: one may be writing back a file on a slow disk.
const DEATH: Duration = Duration::from_secs(20);

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let fine = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(fine) {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Io { path, source }
}

/// Starts a demo and returns once all its jobs have been forked and its upperdir seeded. On an error nothing of it is left.
///
/// # Errors
/// See [`Error`].
pub fn start(options: &StartOptions) -> Result<Demo, Error> {
    let name = &options.name;
    check_name(name)?;
    if !(1..=32).contains(&options.lowers) {
        return Err(Error::BadLowers(options.lowers));
    }
    fs::create_dir_all(state::STATE_ROOT).map_err(io(Path::new(state::STATE_ROOT)))?;
    let dir = state::dir(name);
    // Whoever makes the directory owns the name.
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists(name.clone())),
        Err(e) => return Err(io(&dir)(e)),
    }
    let demo = prepare(options).and_then(|state| launch(options, state));
    if demo.is_err() {
        // The first error is the one worth telling.
        let _ = stop(name);
    }
    demo
}

fn prepare(options: &StartOptions) -> Result<State, Error> {
    let name = &options.name;
    fs::create_dir_all(&options.layers_root).map_err(io(&options.layers_root))?;
    let root = options.layers_root.canonicalize().map_err(io(&options.layers_root))?;
    let layers = root.join(name);
    let hierarchies = Hierarchies::find().map_err(io(Path::new("/proc/self/mountinfo")))?;
    let cgroup = |place: Option<(PathBuf, PathBuf)>| {
        place.map(|(p, _)| p.join(format!("snapshot-engine-demo-{name}")))
    };
    let state = State {
        name: name.clone(),
        init: None,
        start: None,
        layers: layers.clone(),
        lowers: options.lowers + u32::from(options.top.is_some()),
        redirect_dir: options.redirect_dir,
        cgroup_v2: cgroup(hierarchies.v2),
        freezer_v1: cgroup(hierarchies.freezer_v1),
        ticks_fd: None,
        seed: options.seed,
        workload: options.workload.clone(),
        cpus: options.cpus.clone(),
    };
    // Not ours: it must not be in the state, whose layers `stop` removes.
    DirBuilder::new().mode(0o700).create(&layers).map_err(io(&layers))?;
    // Written before anything else is made, so that `stop` finds all of it even if we are killed now.
    state::write(&state).map_err(io(&state::file(name)))?;
    layers::create(&layers, options.lowers).map_err(io(&layers))?;
    if let Some(top) = &options.top {
        fs::rename(top, layers.join(format!("lower{}", state.lowers))).map_err(io(top))?;
    }
    for cgroup in state.cgroup_v2.iter().chain(&state.freezer_v1) {
        match fs::create_dir(cgroup) {
            // Left by a demo whose state was lost; an empty cgroup is as good as a new one.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(io(cgroup))?,
        }
    }
    Ok(state)
}

fn launch(options: &StartOptions, mut state: State) -> Result<Demo, Error> {
    let name = &options.name;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => env::current_exe().map_err(io(Path::new("/proc/self/exe")))?,
    };
    let log_path = state::dir(name).join("log");
    let log = File::create(&log_path).map_err(io(&log_path))?;
    let mut child = Command::new(&program)
        .args([ARGUMENT, name])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io(&program))?;
    let told = child.stdout.take().map(listen);
    // Stage 1 ends as soon as it has forked, or has failed.
    child.wait().map_err(io(&program))?;
    match told {
        Some(Ok((init, fd))) => {
            state.init = Some(init);
            state.start = process::stat(init).ok().map(|s| s.start);
            state.ticks_fd = Some(fd);
        }
        Some(Err(why)) if !why.is_empty() => return Err(Error::NotStarted { name: name.clone(), why }),
        _ => {
            let why = fs::read_to_string(&log_path).unwrap_or_default();
            let why = if why.is_empty() { "its init ended without a word".to_owned() } else { why };
            return Err(Error::NotStarted { name: name.clone(), why });
        }
    }
    state::write(&state).map_err(io(&state::file(name)))?;
    Ok(Demo::from_state(state))
}

/// The init and the tickers' descriptor, or why not (empty: the pipe closed in silence).
fn listen(pipe: impl io::Read) -> Result<(Pid, i32), String> {
    let (mut init, mut ready) = (None, None);
    for line in BufReader::new(pipe).lines() {
        match Message::parse(&line.map_err(|e| e.to_string())?) {
            Some(Message::Init(pid)) => init = Some(pid),
            Some(Message::Ready(fd)) => ready = Some(fd),
            Some(Message::Failed(why)) => return Err(why),
            None => {}
        }
        if let (Some(init), Some(ready)) = (init, ready) {
            return Ok((init, ready));
        }
    }
    Err(String::new())
}

/// Ends a demo and removes everything of it: processes, cgroups, layers, state. A demo that is half made, dead or not there at all is no
/// error. On an error the state stays, and it may be tried again.
///
/// # Errors
/// [`Error::Undead`], and [`Error::Io`] when something cannot be removed.
pub fn stop(name: &str) -> Result<(), Error> {
    check_name(name)?;
    let dir = state::dir(name);
    match state::read(name) {
        Ok(state) => {
            kill(&state)?;
            for cgroup in state.cgroup_v2.iter().chain(&state.freezer_v1) {
                remove_cgroup(cgroup).map_err(io(cgroup))?;
            }
            // Of any depth: a container makes of it what it likes.
            remove_tree(&state.layers).map_err(io(&state.layers))?;
            // Only if they are empty: other demos may be there.
            let _ = state.layers.parent().filter(|p| *p == Path::new(super::LAYERS_ROOT)).map(fs::remove_dir);
        }
        // Nothing is made before the state is written.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io(&state::file(name))(e)),
    }
    gone(fs::remove_dir_all(&dir)).map_err(io(&dir))?;
    let _ = fs::remove_dir(state::STATE_ROOT);
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Kills until nobody is left. Tasks in a frozen v1 cgroup do not die, so it is thawed first.
fn kill(state: &State) -> Result<(), Error> {
    let cgroups: Vec<&PathBuf> = state.cgroup_v2.iter().chain(&state.freezer_v1).collect();
    let deadline = Instant::now() + DEATH;
    loop {
        if let Some(dir) = &state.freezer_v1 {
            // Gone, if it was never made.
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
        }
        if let Some(dir) = &state.cgroup_v2 {
            // Kernels before 5.14 have no such file; the signals below do it there.
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        let mut alive: Vec<Pid> = Vec::new();
        for cgroup in &cgroups {
            alive.extend(members(cgroup).map_err(io(cgroup))?);
        }
        alive.extend(state.init.filter(|init| process::is_alive(*init, state.start)));
        // A zombie keeps no resource, but a cgroup lists it until it is reaped, which is its parent's business.
        alive.retain(|pid| process::is_alive(*pid, None));
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Undead(state.name.clone()));
        }
        for pid in alive {
            if let Some(pid) = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw) {
                // It may have died meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Removes a cgroup. One stays busy for a moment after its last task has died.
fn remove_cgroup(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DEATH;
    loop {
        match gone(fs::remove_dir(dir)) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_directory() {
        for good in ["a", "demo-1", "0_x.y"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", "a b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_starter_waits_for_both_lines() {
        assert_eq!(listen(&b"ready 3\ninit 9\n"[..]), Ok((Pid(9), 3)));
        assert_eq!(listen(&b"init 9\nfailed no overlay\n"[..]), Err("no overlay".to_owned()));
        assert_eq!(listen(&b"init 9\n"[..]), Err(String::new()));
    }
}
