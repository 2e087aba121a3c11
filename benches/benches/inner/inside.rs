//! A process inside a container, or outside of any, that times calls when it is told to: in processor time of its own, so that what else runs
//! on the machine does not count.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};
use snapshot_tests::bench::Running;

const WORD: &str = "--time-calls";
/// Calls timed at a time; the time of one is the whole divided by them.
const CALLS: u64 = 20_000;
const PAGE: usize = 4096;
/// The file that is read and written: larger than a core's caches.
const PAGES: u64 = 16 << 20 >> 12;

/// The calls, in the order of their times.
pub(crate) const KINDS: [&str; 4] =
    ["getppid", "pread 4 KiB", "pwrite 4 KiB", "pwrite 4 KiB, fdatasync each 64"];

/// One that waits to be told; killed on drop.
pub(crate) struct Caller {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Caller {
    /// Starts one that uses the file `file`: inside the container if there is one.
    pub(crate) fn start(container: Option<&Running>, file: &Path) -> Result<Caller> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(WORD).arg(file);
        if let Some(container) = container {
            command.arg(container.cgroup()?);
            command.arg(container.0.init().context("the container is dead")?.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut caller = Caller { child, commands, answers };
        caller.times()?;
        Ok(caller)
    }

    /// Nanoseconds of one call of each of [`KINDS`].
    pub(crate) fn times(&mut self) -> Result<Vec<f64>> {
        writeln!(self.commands, "go")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.split_whitespace().map(|word| Ok(word.parse()?)).collect()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves if this process was started as a [`Caller`]'s.
pub(crate) fn serve_if_asked() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [word, file, rest @ ..] = &arguments[..] else { return Ok(false) };
    if word != WORD {
        return Ok(false);
    }
    if let [cgroup, init] = rest {
        let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
        fs::write(Path::new(cgroup).join("cgroup.procs"), "0")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)?;
    (0..PAGES).try_for_each(|n| file.write_all_at(&[1; PAGE], n * PAGE as u64))?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let times = times(&file)?.map(|t| t.to_string()).join(" ");
        println!("{times}");
    }
    Ok(true)
}

fn times(file: &File) -> Result<[f64; 4]> {
    let mut page = [3; PAGE];
    let place = |n: u64| n % PAGES * PAGE as u64;
    Ok([
        time(CALLS, |_| {
            std::hint::black_box(rustix::process::getppid());
            Ok(())
        })?,
        time(CALLS, |n| file.read_exact_at(&mut page, place(n)))?,
        time(CALLS, |n| file.write_all_at(&[3; PAGE], place(n)))?,
        time(CALLS / 8, |n| {
            file.write_all_at(&[4; PAGE], place(n))?;
            if n % 64 == 63 { file.sync_data() } else { Ok(()) }
        })?,
    ])
}

/// Nanoseconds this thread has run.
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

fn time(calls: u64, mut call: impl FnMut(u64) -> std::io::Result<()>) -> Result<f64> {
    let began = cpu();
    (0..calls).try_for_each(&mut call)?;
    Ok((cpu() - began) / calls as f64)
}
