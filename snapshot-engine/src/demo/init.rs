//! From a fresh process of the engine's program to the init of a container, without a program inside.
//!
//! ```text
//! starter -- exec --> stage 1: joins the cgroups, leaves the namespaces -- fork --> init (PID 1): overlay, pivot_root, /proc, /dev
//!                     tells the starter its child, ends                             seeds, forks the jobs, says "ready", reaps for ever
//! ```
//!
//! The program is executed before the root is changed and what runs afterwards is already loaded, so no program, loader or
//! library is needed in the container. This is a runtime for demonstrations and tests: its root keeps its capabilities, it is no sandbox.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::WaitOptions;
use rustix::thread::{CpuSet, UnshareFlags};

use super::state::{self, State};
use super::{jobs, layers, ticks};
use crate::kernel::process::{Fork, fork, new_namespaces};
use crate::model::pid::Pid;

/// The first argument that makes a program a demo's init.
pub(super) const ARGUMENT: &str = "__demo-init";

/// What the container's processes tell the starter, a line each.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The init, as the starter's PID namespace counts.
    Init(Pid),
    /// All jobs run; the init's descriptor of the tickers' memory.
    Ready(i32),
    /// It cannot be.
    Failed(String),
}

impl Message {
    pub(super) fn parse(line: &str) -> Option<Message> {
        let (kind, value) = line.split_once(' ')?;
        match kind {
            "init" => Some(Message::Init(Pid(value.parse().ok()?))),
            "ready" => Some(Message::Ready(value.parse().ok()?)),
            "failed" => Some(Message::Failed(value.to_owned())),
            _ => None,
        }
    }

    fn send(&self) {
        let line = match self {
            Message::Init(pid) => format!("init {pid}\n"),
            Message::Ready(fd) => format!("ready {fd}\n"),
            Message::Failed(why) => format!("failed {}\n", why.replace('\n', " ")),
        };
        // One write, shorter than PIPE_BUF, so lines of two processes do not mix. A starter that is gone wants no message.
        let mut out = io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

/// Every program that starts demos calls this first thing in `main`: if it was executed to become a demo's init it does so and never
/// returns, otherwise nothing happens.
pub fn init_if_asked() {
    let mut args = env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(ARGUMENT)) {
        return;
    }
    let name = args.next().and_then(|a| a.into_string().ok()).unwrap_or_default();
    let code = match stage1(&name) {
        Ok(()) => 0,
        Err(e) => {
            Message::Failed(e.to_string()).send();
            1
        }
    };
    std::process::exit(code);
}

/// Says what was being done when the kernel refused.
fn doing<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|e| {
        let e = e.into();
        io::Error::new(e.kind(), format!("{what}: {e}"))
    })
}

fn stage1(name: &str) -> io::Result<()> {
    let state = doing("read the demo's state", state::read(name))?;
    for cgroup in state.cgroup_v2.iter().chain(&state.freezer_v1) {
        doing("enter the cgroup", fs::write(cgroup.join("cgroup.procs"), "0"))?;
    }
    if !state.cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in state.cpus.iter().filter(|c| **c < CpuSet::MAX_CPU) {
            set.set(*cpu);
        }
        doing("choose processors", rustix::thread::sched_setaffinity(None, &set))?;
    }
    let memory = ticks::create(state.workload.tickers().len())?;
    let base = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // Without network namespaces in the kernel the demo does with the host's: it opens no socket.
    doing("make namespaces", new_namespaces(base | UnshareFlags::NEWNET).or_else(|_| new_namespaces(base)))?;
    match doing("fork the init", fork())? {
        Fork::Parent(init) => {
            Message::Init(init).send();
            Ok(())
        }
        Fork::Child => init(&state, &memory),
    }
}

fn init(state: &State, memory: &OwnedFd) -> io::Result<()> {
    enter_root(state)?;
    doing("set the host name", fs::write("/proc/sys/kernel/hostname", &state.name))?;
    doing("seed the upperdir", layers::seed(&state.seed))?;
    let tickers = state.workload.tickers().len();
    for process in jobs::processes(&state.workload.jobs) {
        if doing("fork a job", fork())? == Fork::Child {
            let error = jobs::run(process, memory, tickers).err().map(|e| e.to_string()).unwrap_or_default();
            // Standard error is the demo's log file in its state directory.
            eprintln!("{process:?} ended: {error}");
            std::process::exit(1);
        }
    }
    Message::Ready(memory.as_raw_fd()).send();
    loop {
        // A job that failed is reaped; the container lives on, as it would with any service manager.
        if rustix::process::wait(WaitOptions::empty()).is_err() {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn enter_root(state: &State) -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    doing("make mounts private", rustix::mount::mount_change("/", private))?;
    let merged = state.layers.join("merged");
    let options = layers::mount_options(&state.layers, state.lowers, state.redirect_dir)?;
    let none = MountFlags::empty();
    doing(
        "mount the overlay",
        rustix::mount::mount("overlay", &merged, "overlay", none, options.as_c_str()),
    )?;
    let hard = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    doing("mount /proc", rustix::mount::mount("proc", merged.join("proc"), "proc", hard, None))?;
    doing("mount /dev", devices(&merged.join("dev")))?;
    // pivot_root(".", ".") puts the old root over the new one, from where it is detached (pivot_root(2), NOTES).
    doing("enter the root", env::set_current_dir(&merged))?;
    doing("pivot_root", rustix::process::pivot_root(".", "."))?;
    doing("leave the old root", rustix::mount::unmount(".", UnmountFlags::DETACH))?;
    env::set_current_dir("/")
}

fn devices(dev: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", dev, "tmpfs", flags, c"size=64k,mode=755")?;
    // Numbers from Documentation/admin-guide/devices.txt.
    for (name, minor) in [("null", 3), ("zero", 5)] {
        let path = dev.join(name);
        let number = rustix::fs::makedev(1, minor);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, number)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood() {
        assert_eq!(Message::parse("init 12"), Some(Message::Init(Pid(12))));
        assert_eq!(Message::parse("ready 3"), Some(Message::Ready(3)));
        assert_eq!(Message::parse("failed a b"), Some(Message::Failed("a b".into())));
        assert_eq!(Message::parse("init x"), None);
    }

    #[test]
    fn an_ordinary_program_goes_on() {
        init_if_asked();
    }
}
