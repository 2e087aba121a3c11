//! Programs of the host inside a container: its cgroup, its mounts, its System V IPC, its overlay for all that they write.
//!
//! ```text
//!   host's /usr /etc ...  ──open_tree──►  the container's mount namespace, read-only, over its own directories of these names
//!   inside CGROUPS INIT UID GID PROGRAM .. enters all, becomes that user, and executes PROGRAM
//! ```
//!
//! A demo container has no user space that could run a database. Only the programs come from the host: every byte they keep goes through the overlay.
//! A container of a real runtime has programs of its own ([`Inside::as_it_is`]).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use snapshot_engine::container::cgroup::Cgroup;
use snapshot_engine::model::pid;

use crate::bench::Running;
use crate::database::lmdb;

/// What programs need of the host; where one is a link, what it leads to.
const HOST: [&str; 5] = ["/usr", "/etc", "/bin", "/lib", "/lib64"];

/// Where programs are looked for.
const PATH: &str = "/usr/bin:/bin";

/// A user by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// Root.
    pub const ROOT: User = User { uid: 0, gid: 0 };

    /// A user of the host by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<User> {
        let found = User::all()?.into_iter().find(|(its, _)| its == name);
        found.map(|(_, user)| user).with_context(|| format!("no user {name}"))
    }

    /// The name that the host has for it.
    ///
    /// # Errors
    /// When it has none.
    pub fn name(self) -> Result<String> {
        let found = User::all()?.into_iter().find(|(_, user)| *user == self);
        found.map(|(name, _)| name).with_context(|| format!("no name for {self:?}"))
    }

    /// Name, password, and numbers (passwd(5)).
    fn all() -> Result<Vec<(String, User)>> {
        let table = fs::read_to_string("/etc/passwd")?;
        let user = |line: &str| {
            let mut fields = line.split(':');
            let (name, _) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name.to_owned(), User { uid, gid }))
        };
        Ok(table.lines().filter_map(user).collect())
    }

    /// A command on this machine as that user, in an empty environment.
    pub fn command<A: AsRef<OsStr>>(self, program: &str, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(program);
        // As the directory that we are in may be closed to that user.
        command.args(args).uid(self.uid).gid(self.gid).current_dir("/");
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
        command
    }
}

/// The way into a container.
#[derive(Debug, Clone)]
pub struct Inside {
    program: PathBuf,
    /// Directories of hierarchies, as in a PATH.
    cgroups: OsString,
    init: u32,
}

impl Inside {
    /// Lends a container the host's programs. `program` is the binary `inside`.
    ///
    /// # Errors
    /// When they cannot be mounted there.
    pub fn new(program: &str, container: &Running) -> Result<Inside> {
        let init = container.0.init().context("the container is dead")?.0;
        let inside = Inside { program: program.into(), cgroups: container.cgroup()?.into(), init };
        for dir in lent() {
            // Through the overlay, as every mount point needs a directory.
            fs::create_dir_all(inside.root().join(dir.strip_prefix("/")?))?;
        }
        // Numbers from Documentation/admin-guide/devices.txt.
        let random = inside.root().join("dev/urandom");
        rustix::fs::mknodat(
            CWD,
            random,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(1, 9),
        )?;
        let output = Command::new(program).args(["lend", &init.to_string()]).output()?;
        ensure!(output.status.success(), "lend: {}", String::from_utf8_lossy(&output.stderr));
        Ok(inside)
    }

    /// The way into the container of this init, which is lent nothing: as a runtime's `exec` goes, but that what runs there is numbered by the host.
    ///
    /// # Errors
    /// When the init is gone, or has no cgroup of its own.
    pub fn as_it_is(program: &str, init: pid::Pid) -> Result<Inside> {
        let Cgroup { v2, freezer_v1, .. } = Cgroup::of(init)?;
        let cgroups: Vec<PathBuf> = v2.into_iter().chain(freezer_v1).collect();
        ensure!(!cgroups.is_empty(), "the container has no cgroup of its own");
        Ok(Inside { program: program.into(), cgroups: std::env::join_paths(cgroups)?, init: init.0 })
    }

    /// The container's root as the host reaches it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// A command that will run in there, in an empty environment.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        user: User,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").arg(&self.cgroups);
        command.args([self.init, user.uid, user.gid].map(|n| n.to_string())).arg(program).args(args);
        command
    }
}

fn lent() -> impl Iterator<Item = &'static Path> {
    HOST.iter().map(Path::new).filter(|dir| dir.is_dir())
}

/// The `main` of the binary `inside`.
///
/// # Errors
/// When it cannot enter the container, or not execute the program.
pub fn main() -> Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let text = |n: usize| args.get(n).and_then(|a| a.to_str()).context("too few arguments");
    if text(0)? == "lend" {
        return lend(text(1)?.parse()?);
    }
    let user = User { uid: text(2)?.parse()?, gid: text(3)?.parse()? };
    for cgroup in std::env::split_paths(text(0)?) {
        fs::write(cgroup.join("cgroup.procs"), "0")?;
    }
    enter(text(1)?.parse()?)?;
    let (program, rest) = (text(4)?, args.get(5..).unwrap_or_default());
    if program == lmdb::CLIENT {
        return lmdb::serve(rest);
    }
    let error = Command::new(program).args(rest).uid(user.uid).gid(user.gid).exec();
    Err(error).context(program.to_owned())
}

/// A process of one thread only may do this; its root and its working directory become the container's.
fn enter(init: i32) -> Result<()> {
    let init = pidfd_open(Pid::from_raw(init).context("no process")?, PidfdFlags::empty())?;
    let kinds = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    Ok(move_into_thread_name_spaces(init.as_fd(), kinds)?)
}

fn lend(init: i32) -> Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let trees = lent().map(|dir| Ok((dir, open_tree(CWD, dir, flags)?))).collect::<Result<Vec<_>>>()?;
    enter(init)?;
    for (dir, tree) in trees {
        move_mount(tree, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("{}", dir.display()))?;
        mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}
