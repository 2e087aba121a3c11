//! A process of ours inside any container, without a program inside it.
//!
//! ```text
//! engine ── exec itself: __bench-inmate JOB INIT ENGINE CGROUP.. ──► dies with the engine (PDEATHSIG), joins the cgroups, the mount
//!   ▲                                                                 namespace and the root of INIT, says "ready", does its job
//!   └───────────── shared memory (the child's standard input) ───────┘
//! ```
//!
//! All cgroups, of both versions: whatever freezes the container freezes it too, whoever does it. The mount namespace, because the tracker knows
//! members by that as well. Executed before the root is changed, so that everything is loaded; not a bare fork, because the engine has threads.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;

use super::Error;
use super::{load, ticker};
use crate::container::{Target, cgroup, process};
use crate::kernel::words::Words;
use crate::model::pid::Pid;

/// The first argument that makes a program an inmate.
const ARGUMENT: &str = "__bench-inmate";
/// The nice value of a ticker: nine times the weight of an ordinary task. With more than that nobody else would get on a small machine.
const PRIORITY: i32 = -10;
/// How long one may take to die: it may be frozen by somebody.
const DEATH: Duration = Duration::from_secs(5);

/// What an inmate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// See [`ticker`].
    Tick,
    /// See [`load`].
    Write,
}

impl Job {
    fn word(self) -> &'static str {
        match self {
            Job::Tick => "tick",
            Job::Write => "write",
        }
    }
}

/// A process inside the container with the memory it shares with us. Killed on drop.
#[derive(Debug)]
pub(super) struct Inmate {
    child: Child,
    /// Shared.
    pub(super) words: Words,
}

impl Inmate {
    /// Starts one and waits until it is inside. `program`'s `main` calls [`run_if_asked`]; `None`: this program. To be called on a thread
    /// that lives as long as the inmate shall: the kernel kills it when that thread ends.
    ///
    /// # Errors
    /// [`Error::NotInside`] with what it said.
    pub(super) fn start(
        program: Option<&Path>,
        target: &Target,
        job: Job,
        len: usize,
    ) -> Result<Inmate, Error> {
        let file = process::dir(target.init).join("cgroup");
        // It would be frozen on its way in.
        if target.cgroup.is_frozen().map_err(Error::io("ask the freezer of", &file))? {
            return Err(Error::Paused);
        }
        let here = Path::new("/proc/self/exe");
        let program =
            program.map_or_else(|| env::current_exe().map_err(Error::io("find", here)), |p| Ok(p.into()))?;
        let memory = memory(len).map_err(Error::io("make shared memory for", &program))?;
        let words = Words::map(&memory, len).map_err(Error::io("map the memory of", &program))?;
        let cgroups = cgroup::all_of(target.init).map_err(Error::io("read", &file))?;
        let mut child = Command::new(&program)
            .args([ARGUMENT, job.word()])
            .args([target.init.to_string(), std::process::id().to_string()])
            .args(cgroups)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(memory))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The terminal's Ctrl-C is for the engine, which ends us.
            .process_group(0)
            .spawn()
            .map_err(Error::io("start", &program))?;
        let mut said = String::new();
        if let Some(pipe) = child.stdout.take() {
            // An error means silence, which is reported right below.
            let _ = BufReader::new(pipe).read_line(&mut said);
        }
        let inmate = Inmate { child, words };
        match said.trim_end() {
            "ready" => Ok(inmate),
            "" => Err(Error::NotInside { why: "it ended without a word".into() }),
            why => Err(Error::NotInside { why: why.into() }),
        }
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    pub(super) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let deadline = Instant::now() + DEATH;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                tracing::warn!(
                    pid = self.child.id(),
                    "the measuring process does not end: its cgroup seems to be frozen"
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn memory(len: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("bench-inmate", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, (len * 8) as u64)?;
    Ok(fd)
}

/// Every program that starts inmates calls this first thing in `main`: if it was executed to become one it does so and never
/// returns, otherwise nothing happens.
pub fn run_if_asked() {
    let mut args = env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(ARGUMENT)) {
        return;
    }
    let args: Vec<OsString> = args.collect();
    if let Err(e) = become_one(&args) {
        say(&e.to_string().replace('\n', " "));
    }
    std::process::exit(1);
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // An engine that is gone wants no message.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn become_one(args: &[OsString]) -> io::Result<()> {
    let text = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or_default();
    let number = |n: usize| text(n).parse::<u32>().map_err(io::Error::other);
    let job = [Job::Tick, Job::Write].into_iter().find(|j| j.word() == text(0));
    let job = job.ok_or_else(|| io::Error::other("no such job"))?;
    let (init, engine) = (Pid(number(1)?), number(2)?);
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that.
    if rustix::process::getppid().is_none_or(|p| p.as_raw_pid().unsigned_abs() != engine) {
        return Err(io::Error::other("the engine is gone"));
    }
    let words = Words::map(io::stdin().as_fd(), size(job))?;
    // Present from now on: a page fault would look like a stop.
    for word in words.as_slice() {
        word.store(0, std::sync::atomic::Ordering::Relaxed);
    }
    for dir in &args[3..] {
        join(Path::new(dir))?;
    }
    let dir = process::dir(init);
    let root = File::open(dir.join("root"))?;
    let namespace = File::open(dir.join("ns/mnt"))?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    // The default slack of 50 us would be measured as a gap.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let ready = || say("ready");
    match job {
        Job::Tick => {
            // A clock that does not run is no clock: on a busy machine it would mostly see others run. Best effort.
            let _ = rustix::process::setpriority_process(None, PRIORITY);
            ticker::run(words.as_slice(), ready)
        }
        Job::Write => load::run(words.as_slice(), ready),
    }
}

/// Words of shared memory of a job.
pub(super) fn size(job: Job) -> usize {
    match job {
        Job::Tick => ticker::WORDS,
        Job::Write => load::WORDS,
    }
}

fn join(dir: &Path) -> io::Result<()> {
    let file: PathBuf = dir.join("cgroup.procs");
    fs::write(&file, "0")
        .map_err(|e| io::Error::new(e.kind(), format!("cannot join {}: {e}", file.display())))
}
