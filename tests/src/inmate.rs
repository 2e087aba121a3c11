//! A process of the host in a container's cgroup: it belongs to the target, reaches the tree through the container's root, and has all programs of
//! the host.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::stat::Mode;
use snapshot_engine::demo::content::{PAGE, check_page, page};

use crate::bench::Running;

/// Files that `reuse` keeps, at most and but for the newest.
pub const KEPT: u64 = 8;

/// One of them; killed on drop.
#[derive(Debug)]
pub struct Inmate(Child);

impl Inmate {
    /// Starts the binary `inmate` with a job (see [`main`]) and waits until it has begun.
    ///
    /// # Errors
    /// When it does not begin.
    pub fn start(program: &str, container: &Running, job: &[impl AsRef<OsStr>]) -> Result<Inmate> {
        let mut command = Command::new(program);
        command.arg(container.cgroup()?).current_dir(container.root()?).args(job);
        Inmate::begin(&mut command)
    }

    /// Starts a shell script, in the container's root as working directory. It must say `ready` when it has begun.
    ///
    /// # Errors
    /// When it does not begin.
    pub fn sh(container: &Running, script: &str) -> Result<Inmate> {
        let script = format!("echo 0 > \"$0/cgroup.procs\"; {script}");
        let mut command = Command::new("sh");
        command.args(["-ec", &script]).arg(container.cgroup()?).current_dir(container.root()?);
        Inmate::begin(&mut command)
    }

    fn begin(command: &mut Command) -> Result<Inmate> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no pipe")?;
        let inmate = Inmate(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "{command:?} says {line:?}");
        Ok(inmate)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What it is doing: `R`, `S`, `D`, `T`, `t` ...
    ///
    /// # Errors
    /// When it is gone.
    pub fn state(&self) -> Result<u8> {
        Ok(snapshot_engine::container::process::stat(snapshot_engine::model::pid::Pid(self.pid()))?.state)
    }

    /// Ends it; false if it has ended by itself.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub fn end(mut self) -> Result<bool> {
        let running = self.0.try_wait()?.is_none();
        self.0.kill()?;
        self.0.wait()?;
        Ok(running)
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ready() -> Result<()> {
    println!("ready");
    Ok(std::io::stdout().flush()?)
}

/// The inmate's `main`: arguments CGROUP JOB..
///
/// # Errors
/// When it cannot enter the cgroup, or its job fails.
pub fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [cgroup, job @ ..] = &args[..] else { bail!("CGROUP JOB..") };
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0")?;
    match job {
        ["reuse", dir] => reuse(Path::new(dir)),
        // One small write after the other.
        ["write", file] => {
            let file = File::create(file)?;
            file.write_all_at(&page(0), 0)?;
            ready()?;
            for n in 1.. {
                file.write_all_at(&page(n), 0)?;
            }
            Ok(())
        }
        ["stat", path] => {
            ready()?;
            fs::metadata(path)?;
            Ok(())
        }
        ["create", path] => {
            ready()?;
            File::create(path)?;
            Ok(())
        }
        ["open-to-write", path] => {
            ready()?;
            OpenOptions::new().write(true).open(path)?;
            Ok(())
        }
        // The parent waits for a child that never executes anything: it is stuck in the opening of a FIFO.
        ["vfork", fifo] => {
            let mut actions = PosixSpawnFileActions::init()?;
            actions.add_open(7, *fifo, OFlag::O_RDONLY, Mode::empty())?;
            ready()?;
            let (arguments, environment): ([CString; 1], [CString; 0]) = ([c"true".to_owned()], []);
            posix_spawn(c"/bin/true", &actions, &PosixSpawnAttr::init()?, &arguments, &environment)?;
            Ok(())
        }
        _ => bail!("{job:?} is no job"),
    }
}

/// Creates file after file, each with its own number in every page, and deletes the oldest: the file system gives their inode numbers out again.
fn reuse(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let name = |n: u64| dir.join(format!("f-{n}"));
    let mut numbers = std::collections::HashSet::new();
    let mut again = 0u64;
    for n in 0.. {
        let file = File::create(name(n))?;
        again += u64::from(!numbers.insert(file.metadata()?.ino()));
        file.write_all_at(&page(n).repeat(1 + (n % 3) as usize), 0)?;
        drop(file);
        if n >= KEPT {
            fs::remove_file(name(n - KEPT))?;
        }
        if n == 200 {
            ensure!(again > 50, "only {again} of 200 inode numbers were given out again");
            ready()?;
        }
        if n % 8 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
    Ok(())
}

/// Judges what `reuse` left in a frozen tree: a run of numbers without a gap, all whole but perhaps the newest.
///
/// # Errors
/// What is wrong.
pub fn judge_reuse(dir: &Path) -> Result<u64> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        found.push((name.strip_prefix("f-").context("a strange name")?.parse()?, entry.path()));
    }
    found.sort();
    let numbers: Vec<u64> = found.iter().map(|(n, _)| *n).collect();
    let fine = numbers.windows(2).all(|w| w[0] + 1 == w[1]);
    ensure!(fine && numbers.len() as u64 >= KEPT, "files {numbers:?}");
    ensure!(numbers.len() as u64 <= KEPT + 1, "files {numbers:?}");
    for (n, path) in &found {
        let bytes = fs::read(path)?;
        let whole = bytes.len() == (1 + (n % 3) as usize) * PAGE;
        let newest = Some(n) == numbers.last() && bytes.is_empty();
        ensure!(whole || newest, "f-{n} has {} bytes", bytes.len());
        ensure!(bytes.chunks(PAGE).all(|p| check_page(p) == Some(*n)), "f-{n} holds another file's content");
    }
    numbers.last().copied().context("no file at all")
}
