//! Where a process of writers stands.
//!
//! ```text
//!   host ── outside: /proc/INIT/root/torture
//!    └─ container: cgroup, mount and PID namespace
//!         ├─ inside, chroot: its mount namespace, its cgroup
//!         ├─ bind: a mount namespace of its own, the overlay by another mount of it
//!         ├─ nested: mount, PID, user, cgroup, IPC and UTS namespaces of its own, in a cgroup below the container's
//!         └─ born: processes that do a few operations and end, one after another
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use snapshot_engine::kernel::process::{Fork, fork, new_namespaces};
use snapshot_engine::model::pid::Pid;

use super::op::HOME;

/// The directory that another mount of the container's tree lies on.
pub const BIND: &str = "bind";
/// The cgroup below the container's.
const BELOW: &str = "below";

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Post {
    /// In the container.
    Inside,
    /// There, with another root directory.
    Chroot,
    /// There, in a mount namespace of its own, working through a bind mount of the container's root.
    Bind,
    /// There, in namespaces of its own, the user's among them, and in a cgroup below the container's.
    Nested,
    /// There; each process ends after a few operations.
    Born,
    /// Outside, working through `/proc/PID/root`.
    Outside,
}

impl Post {
    /// All of them, with their words.
    pub const ALL: [(Post, &'static str); 6] = [
        (Post::Inside, "inside"),
        (Post::Chroot, "chroot"),
        (Post::Bind, "bind"),
        (Post::Nested, "nested"),
        (Post::Born, "born"),
        (Post::Outside, "outside"),
    ];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        Post::ALL.iter().find(|(post, _)| *post == self).map_or("", |(_, word)| word)
    }

    /// The posts of these names.
    ///
    /// # Errors
    /// When there is none of a name.
    pub fn named(words: &str) -> Result<Vec<Post>> {
        let find = |word: &str| {
            let found = Post::ALL.iter().find(|(_, name)| *name == word);
            found.map(|(post, _)| *post).with_context(|| {
                format!("{word:?} is no post; there are: {}", Post::ALL.map(|(_, word)| word).join(", "))
            })
        };
        words.split(',').filter(|word| !word.is_empty()).map(find).collect()
    }

    /// Whether a gate can hold it.
    #[must_use]
    pub fn is_held(self) -> bool {
        self != Post::Outside
    }

    /// Goes there, from a process of one thread that has nothing but the host's namespaces. What returns is perhaps a child of it. Returns where
    /// it finds [`HOME`].
    ///
    /// # Errors
    /// As the calls.
    pub fn take(self, cgroup: &Path, init: u32) -> Result<String> {
        if self == Post::Outside {
            return Ok(format!("/proc/{init}/root/{HOME}"));
        }
        let of_init = |what: &str| File::open(format!("/proc/{init}/ns/{what}"));
        let (mounts, processes) = (of_init("mnt")?, of_init("pid")?);
        let cgroup = if self == Post::Nested { below(cgroup)? } else { cgroup.to_owned() };
        fs::write(cgroup.join("cgroup.procs"), "0").context("enter the cgroup")?;
        let enters = |namespace: &File, kind| move_into_link_name_space(namespace.as_fd(), Some(kind));
        let helper = if matches!(self, Post::Nested | Post::Born) {
            enters(&processes, LinkNameSpaceType::ProcessID)?;
            go_on_in_a_child()?;
            // While the host's /proc is to be seen.
            if self == Post::Nested { Some(Mapper::start()?) } else { None }
        } else {
            None
        };
        // A process of one thread only may do this, and its root becomes the container's.
        enters(&mounts, LinkNameSpaceType::Mount)?;
        match self {
            Post::Chroot => {
                rustix::process::chroot(format!("/{HOME}"))?;
                rustix::process::chdir("/")?;
                return Ok(String::new());
            }
            Post::Bind => {
                new_namespaces(UnshareFlags::NEWNS)?;
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
                mount_bind("/", format!("/{BIND}"))?;
                return Ok(format!("/{BIND}/{HOME}"));
            }
            _ => {}
        }
        if let Some(helper) = helper {
            let all = [
                UnshareFlags::NEWUSER,
                UnshareFlags::NEWPID,
                UnshareFlags::NEWNS,
                UnshareFlags::NEWCGROUP,
                UnshareFlags::NEWIPC,
                UnshareFlags::NEWUTS,
            ];
            new_namespaces(all.into_iter().collect()).context("leave the namespaces")?;
            helper.map()?;
            go_on_in_a_child()?;
        }
        Ok(format!("/{HOME}"))
    }
}

/// A cgroup below the container's.
fn below(cgroup: &Path) -> io::Result<std::path::PathBuf> {
    let below = cgroup.join(BELOW);
    match fs::create_dir(&below) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(below),
    }
}

/// Removes what [`below`] has made, once the last task has left it.
///
/// # Errors
/// When tasks stay in it.
pub fn clean(cgroup: &Path) -> io::Result<()> {
    let mut patience = 500;
    loop {
        match fs::remove_dir(cgroup.join(BELOW)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if patience == 0 => return Err(e),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Ok(()) => return Ok(()),
        }
        patience -= 1;
    }
}

/// Waits for a child; whether it ended well.
///
/// # Errors
/// As `waitpid(2)`.
pub fn wait(child: Pid) -> Result<bool> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.0)?);
    let ended = waitpid(pid, WaitOptions::empty())?;
    Ok(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)))
}

/// Returns in a child, which dies with its parent; the parent ends as the child does.
fn go_on_in_a_child() -> Result<()> {
    match fork()? {
        Fork::Parent(child) => {
            let well = wait(child).unwrap_or(false);
            std::process::exit(i32::from(!well));
        }
        Fork::Child => Ok(set_parent_process_death_signal(Some(Signal::KILL))?),
    }
}

/// A child that stays in the user namespace its parent leaves, and maps all users and groups into the new one: only it may.
struct Mapper {
    child: Pid,
    go: File,
}

impl Mapper {
    fn start() -> Result<Mapper> {
        let parent = fs::read_link("/proc/self")?;
        let (waits, go) = rustix::pipe::pipe()?;
        match fork()? {
            Fork::Parent(child) => Ok(Mapper { child, go: File::from(go) }),
            Fork::Child => {
                drop(go);
                let map = || -> io::Result<()> {
                    rustix::io::read(&waits, &mut [0u8; 1])?;
                    for map in ["uid_map", "gid_map"] {
                        fs::write(Path::new("/proc").join(&parent).join(map), "0 0 4294967295")?;
                    }
                    Ok(())
                };
                std::process::exit(i32::from(map().is_err()));
            }
        }
    }

    fn map(self) -> Result<()> {
        rustix::io::write(&self.go, b"!")?;
        anyhow::ensure!(wait(self.child)?, "the users cannot be mapped");
        Ok(())
    }
}
