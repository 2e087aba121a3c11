//! A process inside a container that does as it is told, a line a command, a line an answer.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use snapshot_engine::kernel::words::Words;

use crate::bench::Running;
use crate::causal::{Roots, Writers};
use crate::hostile::Attack;

/// The other end of a worker; it is killed on drop.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Worker {
    /// Starts one inside a container. `program` is the binary `worker`.
    ///
    /// # Errors
    /// When it cannot enter.
    pub fn start(program: &str, container: &Running) -> Result<Worker> {
        let mut child = Command::new(program)
            .arg(container.cgroup()?)
            .arg(container.0.init().context("the container is dead")?.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut worker = Worker { child, commands, answers };
        worker.ask("hello")?;
        Ok(worker)
    }

    /// Gives a command without waiting for its end.
    ///
    /// # Errors
    /// When it is gone.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands, "{command}")?;
        Ok(())
    }

    /// The answer to an earlier command, `None` if there is none in time.
    ///
    /// # Errors
    /// When the command failed.
    pub fn answer(&mut self, patience: Duration) -> Result<Option<String>> {
        let patience = patience * crate::bench::slack();
        let Ok(line) = self.answers.recv_timeout(patience) else { return Ok(None) };
        match line.strip_prefix("ok") {
            Some(rest) => Ok(Some(rest.trim().to_owned())),
            None => bail!("the worker says {line}"),
        }
    }

    /// Gives a command and waits for its end.
    ///
    /// # Errors
    /// When it fails or takes longer than 30 seconds.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer(Duration::from_secs(30))?.with_context(|| format!("{command}: no answer"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's `main`: arguments CGROUP INIT.
///
/// # Errors
/// When it cannot enter the container.
pub fn serve() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let cgroup = args.next().context("no cgroup")?;
    let init = args.next().context("no init")?;
    let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
    fs::write(Path::new(&cgroup).join("cgroup.procs"), "0")?;
    // A process of one thread only may do this, and its root becomes the container's.
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let mut state = State::default();
    for line in io::stdin().lock().lines() {
        let answer = match state.obey(&line?) {
            Ok(text) => format!("ok {text}"),
            Err(e) => format!("failed {e:#}"),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct State {
    writers: Option<Writers>,
    attacks: Vec<Attack>,
    maps: HashMap<String, Arc<Words>>,
    storing: Option<(Arc<AtomicBool>, std::thread::JoinHandle<()>)>,
}

impl State {
    fn obey(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let file = |path: &str| OpenOptions::new().write(true).create(true).truncate(false).open(path);
        match words[..] {
            ["hello"] => {}
            // One call of LEN bytes.
            ["write", path, at, len, byte] => {
                file(path)?.write_all_at(&vec![byte.parse()?; len.parse()?], at.parse()?)?;
            }
            ["open", path] => drop(file(path)?),
            ["fifo", path] => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0)?,
            // A call that changes a file and ends only when something comes through a pipe.
            ["splice", path, millis] => {
                let (read, write) = rustix::pipe::pipe()?;
                let file = file(path)?;
                let patience = Duration::from_millis(millis.parse()?);
                let feeder = std::thread::spawn(move || {
                    std::thread::sleep(patience);
                    rustix::io::write(&write, b"at last")
                });
                rustix::pipe::splice(read, None, file, None, 7, rustix::pipe::SpliceFlags::empty())?;
                let _ = feeder.join();
            }
            // COUNT small writes; the longest it took for one, in nanoseconds.
            ["writes", path, count] => return longest(&file(path)?, count.parse()?),
            ["map", path, len] => {
                let len: usize = len.parse()?;
                let file =
                    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                file.set_len(len as u64 * 8)?;
                self.maps.insert(path.to_owned(), Arc::new(Words::map(&file, len)?));
            }
            ["map_to_read", path] => crate::raw::map_to_read(File::open(path)?.as_fd())?,
            #[cfg(target_arch = "x86_64")]
            ["map32", path] => {
                let file = File::options().read(true).write(true).open(path)?;
                crate::raw::map_as_32_bit(file.as_fd())?;
            }
            ["unmap", path] => drop(self.maps.remove(path)),
            ["store", path, index, value] => {
                let map = self.maps.get(path).context("not mapped")?;
                map.as_slice()[index.parse::<usize>()?].store(value.parse()?, SeqCst);
            }
            // Counts up for ever: first in the first word, then in the last.
            ["storing", path] => self.storing = Some(storing(self.maps.get(path).context("not mapped")?)),
            ["stored"] => {
                if let Some((stop, thread)) = self.storing.take() {
                    stop.store(true, SeqCst);
                    let _ = thread.join();
                }
            }
            ["causal", root, threads] => {
                self.writers = Some(Writers::start(&Roots::parse(root), threads.parse()?)?);
            }
            ["quiet"] => {
                if let Some(writers) = self.writers.take() {
                    writers.stop()?;
                }
            }
            ["attack", kind, ref paths @ ..] => self.attacks.push(Attack::start(kind, paths)?),
            // How often all of them struck.
            ["peace"] => {
                let strokes = self.attacks.drain(..).map(Attack::stop).sum::<Result<u64>>()?;
                return Ok(strokes.to_string());
            }
            _ => bail!("{line:?} is no command"),
        }
        Ok(String::new())
    }
}

fn longest(file: &File, count: u32) -> Result<String> {
    let mut longest = Duration::ZERO;
    for n in 0..count {
        let began = Instant::now();
        file.write_all_at(&n.to_le_bytes(), 0)?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest.as_nanos().to_string())
}

fn storing(map: &Arc<Words>) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
    let (map, stop) = (Arc::clone(map), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let words = map.as_slice();
        let mut n = 0;
        while !stopped.load(SeqCst) {
            n += 1;
            words[0].store(n, SeqCst);
            words[words.len() - 1].store(n, SeqCst);
            if n % 1000 == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    });
    (stop, thread)
}
