//! A room: a mount namespace and a PID namespace that hold a whole runtime, daemons, shims and containers, and nothing else.
//!
//! ```text
//!   the harness ---- pipe ----> holder, PID 1 of the room         reads until the pipe ends, thaws who is frozen, and exits
//!       |                         '- shims, monitors, inits ...   killed by the kernel when their PID 1 exits
//!       '-- a thread that has entered --> daemons, clients        the same
//!
//!   /run /dev/shm            empty, in memory: sockets, locks, state that runtimes keep at fixed places
//!   /etc /opt /var/cache /var/lib/containers   as the host has them; what is written stays in memory
//!   /proc                    of the room
//!   /sys/fs/cgroup           the host's, or version 2 alone
//!   everything else          the host's; the runtime's data lie in the room's own directory there
//! ```
//!
//! However the harness ends, the pipe ends with it: no daemon, container or mount outlives it. Only directories and cgroups do if it was
//! killed. Their names have its process id, and the next room that is opened removes them.
//!
//! Clients are run by a thread that has entered, not through another program (`nsenter`), whose own start would be in the measured time.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use snapshot_engine::demo;
use snapshot_engine::kernel::process::new_namespaces;
use snapshot_engine::kernel::removal::remove_tree;

use super::group::{self, Group};
use super::limited::{self, LIMIT};

/// The only program that the room itself needs: the static build, which also is the containers' user space.
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// How long a daemon may take until it answers.
const START: Duration = Duration::from_secs(30);

/// What the holder does. Its argument is the room's cgroup of the version 1 freezer, whose frozen tasks do not die before they are thawed.
/// Its second one is what [`Cgroups::commands`] gives. `wait` also reaps the orphans whose parent it becomes.
const HOLDER: &str = r#"set -e
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t tmpfs -o mode=755 tmpfs /run
$b mount -t tmpfs tmpfs /dev/shm
eval "$2"
for d in /etc /opt /var/cache /var/lib/containers; do
    [ -d $d ] || continue
    $b mkdir -p /run/private$d/upper /run/private$d/work
    $b mount -t overlay -o lowerdir=$d,upperdir=/run/private$d/upper,workdir=/run/private$d/work overlay $d
done
exec 3<&0
(
    $b cat <&3 >/dev/null
    for f in $1/freezer.state $1/*/freezer.state $1/*/*/freezer.state; do
        if [ -f $f ]; then echo THAWED >$f; fi
    done
) &
echo ready
wait $!
"#;

/// What there is at `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// As the host has it.
    AsHost,
    /// Version 2 alone, as on a machine that has no version 1. A controller that the host has in a version 1 hierarchy is in no other; what version 2 can do
    /// without controllers, freezing and killing among it, is there.
    V2Only,
}

impl Cgroups {
    /// Shell commands that make it so in a mount namespace of one's own.
    #[must_use]
    pub fn commands(self) -> &'static str {
        match self {
            Cgroups::AsHost => ":",
            // All that lies below goes with it.
            Cgroups::V2Only => {
                "/bin/busybox umount -l /sys/fs/cgroup && /bin/busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            }
        }
    }
}

/// See the head of this file. Everything of it is gone on drop.
#[derive(Debug)]
pub(super) struct Room {
    holder: Child,
    /// Its mount and PID namespaces; `None` once it is being closed.
    doors: Option<(OwnedFd, OwnedFd)>,
    daemons: Mutex<Vec<Child>>,
    group: Group,
    dir: PathBuf,
    containers: AtomicU32,
}

impl Room {
    /// Makes a room with a directory of its own below `place`.
    ///
    /// # Errors
    /// When root or a program is missing, or the place is not suitable.
    pub(super) fn open(place: &Path, purpose: &str, cgroups: Cgroups) -> Result<Room> {
        ensure!(rustix::process::geteuid().is_root(), "root is needed");
        ensure!(Path::new(BUSYBOX).is_file(), "{BUSYBOX} is needed (package: busybox-static)");
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
        let place = place.canonicalize()?;
        let text = place.to_str().context("the place must be UTF-8")?;
        let covered = ["/run", "/dev/shm", "/etc", "/opt", "/var/cache", "/var/lib/containers", "/proc"];
        ensure!(!covered.iter().any(|dir| place.starts_with(dir)), "{text} is hidden from the runtimes");
        // Overlay's options separate by these, and not every runtime escapes them.
        ensure!(
            !text.contains([',', ':', '\\', '"', ' ']),
            "{text} must not have any of , : \\ \" or a blank"
        );
        // A dynamic one names its loader near the start of the file (PT_INTERP, elf(5)).
        let head = fs::read(BUSYBOX)?;
        let dynamic = head[..head.len().min(4096)].windows(4).any(|bytes| bytes == b"/ld-");
        ensure!(!dynamic, "{BUSYBOX} is not the static build (package: busybox-static)");
        sweep(&place);
        let group = Group::new(purpose);
        let dir = place.join(group.name());
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let freezer = group.freezer();
        let (mut holder, said) = match on_thread(|| hold(&freezer, cgroups)) {
            Ok(held) => held,
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                return Err(error.context("making private namespaces"));
            }
        };
        let doors = doors(&mut holder, &said);
        let mut room = Room {
            holder,
            doors: None,
            daemons: Mutex::default(),
            group,
            dir,
            containers: AtomicU32::new(0),
        };
        // Only now, so that a room that did not open is closed as any other.
        room.doors = Some(doors?);
        Ok(room)
    }

    /// Its directory, on the file system of the place.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name for one more container, and the path of its own cgroup in every hierarchy, without the leading slash.
    pub(super) fn next(&self) -> (String, String) {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        (format!("{}-{number}", self.group.name()), format!("{}/{number}", self.group.name()))
    }

    /// A program as the room's user: nothing of the harness' environment reaches it, and neither does a `^C` at its terminal.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(super::which(program).unwrap_or_else(|| program.into()));
        command
            .env_clear()
            .env("PATH", super::PATH)
            .env("HOME", &self.dir)
            .env("TMPDIR", &self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    /// Calls `f` on a thread that is in the room: what it starts is in there, too.
    pub(super) fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let (mounts, pids) = self.doors.as_ref().context("the room is closed")?;
        on_thread(|| {
            // A thread that shares its working directory with others cannot change its mounts (setns(2)).
            new_namespaces(UnshareFlags::FS)?;
            move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
            move_into_link_name_space(pids.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            f()
        })
    }

    /// Runs a program to its end and gives its standard output, trimmed.
    ///
    /// # Errors
    /// When it cannot be started or fails; with what it said.
    pub(super) fn run(&self, command: &mut Command) -> Result<String> {
        let output = limited::guarded(LIMIT, |guard| self.inside(|| Ok(guard.output(command)?)));
        let output = output.with_context(|| format!("`{}`", shown(command)))?;
        succeeded(command, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a daemon and waits until `probe` succeeds.
    ///
    /// # Errors
    /// When it ends, or does not answer in time; with the end of its log.
    pub(super) fn daemon(&self, command: &mut Command, probe: impl Fn() -> Command) -> Result<()> {
        let log_path = self.dir.join("daemon.log");
        let log = fs::File::create(&log_path)?;
        command.stdout(log.try_clone()?).stderr(log);
        let daemon = self.inside(|| Ok(command.spawn()?)).with_context(|| shown(command))?;
        let mut daemons = self.daemons.lock().map_err(|_| anyhow!("a thread died with the daemons"))?;
        daemons.push(daemon);
        let deadline = Instant::now() + START;
        loop {
            let answer = self.run(&mut probe());
            let Err(error) = answer else { return Ok(()) };
            let ended = daemons.last_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(5)..].join("\n");
                let how = ended.map_or("does not answer".to_owned(), |status| format!("ended: {status}"));
                return Err(error.context(format!("{} {how}\n{tail}", shown(command))));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The holder does the same, unless it was killed.
        self.group.thaw();
        // A namespace lives as long as a descriptor of it.
        self.doors = None;
        drop(self.holder.stdin.take());
        // The kernel kills all that is in the room, and the holder ends when they are reaped, those of ours by us.
        let daemons = self.daemons.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        for child in daemons.iter_mut().chain([&mut self.holder]) {
            let _ = child.wait();
        }
        if let Err(error) = group::end(self.group.name()) {
            eprintln!("left behind: {error:#}");
        }
        if let Err(error) = remove_tree(&self.dir) {
            eprintln!("left behind: {}: {error}", self.dir.display());
        }
    }
}

/// Fails unless the program ended well.
pub(super) fn succeeded(command: &Command, output: &Output) -> Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}`: {}: {}", shown(command), output.status, said.trim());
    }
    Ok(())
}

/// As it is written in messages.
pub(super) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    // A script is long and says nothing to whoever reads the error.
    let short = words.map(|word| word.to_string_lossy().lines().next().unwrap_or_default().to_owned());
    short.collect::<Vec<_>>().join(" ")
}

/// Leaves the namespaces of the harness and starts the holder in new ones. Returns what it said first.
fn hold(freezer: &Path, cgroups: Cgroups) -> Result<(Child, String)> {
    new_namespaces(UnshareFlags::NEWNS | UnshareFlags::NEWPID)?;
    // Mounts of the room must not come back; those that the host takes away must not be kept busy here.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)?;
    let mut holder = Command::new(BUSYBOX)
        .args(["sh", "-c", HOLDER, "holder"])
        .arg(freezer)
        .arg(cgroups.commands())
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {BUSYBOX}"))?;
    let mut said = String::new();
    if let Some(stdout) = holder.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    Ok((holder, said))
}

/// The holder's mount and PID namespaces, once it has said that they are furnished.
fn doors(holder: &mut Child, said: &str) -> Result<(OwnedFd, OwnedFd)> {
    ensure!(said == "ready\n", "the room's first process ended: {}", complaint(holder));
    let door = |kind| fs::File::open(format!("/proc/{}/ns/{kind}", holder.id())).map(OwnedFd::from);
    Ok((door("mnt")?, door("pid")?))
}

fn complaint(holder: &mut Child) -> String {
    let text = holder.stderr.take().map(std::io::read_to_string);
    text.and_then(Result::ok).unwrap_or_default().trim().to_owned()
}

/// Calls `f` on a thread of its own, whose namespaces nobody else sees.
fn on_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ended = std::thread::scope(|scope| scope.spawn(f).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Removes what a harness that was killed has left in this place and in the cgroups.
pub(super) fn sweep(place: &Path) {
    for old in demo::list().into_iter().flatten().filter(|old| group::is_dead(old.name())) {
        if let Err(error) = demo::stop(old.name()) {
            eprintln!("left behind by an earlier run: {error}");
        }
    }
    group::sweep();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(group::is_dead) {
            let _ = remove_tree(&entry.path());
        }
    }
}
