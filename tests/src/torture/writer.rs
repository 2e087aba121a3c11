//! A process of writers inside the container: it does what the plan says, one thread a part of the tree, and logs it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::Mode;
use rustix::process::{Signal, set_parent_process_death_signal};
use snapshot_engine::kernel::process::{Fork, fork};

use super::dice::Dice;
use super::log::Log;
use super::op::{Hands, Kind, LIFE, plan};
use super::post::{self, Post};
use super::tree::{Room, Tree};
use super::{lower, writers};
use crate::bench::slack;

/// The first argument that makes a program a process of writers.
pub const ARGUMENT: &str = "__writers";

/// How fast the threads go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// One call after the other.
    Flat,
    /// For some milliseconds, then all rest for some, so that gate none has its chance.
    Bursts,
    /// With a rest after each call.
    Slow,
}

impl Pace {
    const ALL: [(Pace, &'static str); 3] =
        [(Pace::Flat, "flat"), (Pace::Bursts, "bursts"), (Pace::Slow, "slow")];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        Pace::ALL.iter().find(|(pace, _)| *pace == self).map_or("", |(_, word)| word)
    }

    fn named(word: &str) -> Option<Pace> {
        Pace::ALL.iter().find(|(_, name)| *name == word).map(|(pace, _)| *pace)
    }

    fn rest(self, dice: &mut Dice) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let phase = (now / slack()).as_micros() % 20_000;
        let micros = match self {
            Pace::Flat => return,
            Pace::Bursts if phase > 14_000 => u64::try_from(20_000 - phase).unwrap_or(0),
            Pace::Bursts => dice.below(300),
            Pace::Slow => 1000 + dice.below(8000),
        };
        std::thread::sleep(Duration::from_micros(micros) * slack());
    }
}

/// What the writers of a container are.
#[derive(Debug, Clone)]
pub struct Crew {
    /// Everything they do comes from it.
    pub seed: u64,
    /// How many threads there are, of all processes together.
    pub threads: u64,
    /// What they do.
    pub kinds: Vec<Kind>,
    /// How fast.
    pub pace: Pace,
    /// How much each may have.
    pub room: Room,
    /// Of how many processes they are.
    pub processes: u64,
    /// Where the processes stand, in turn.
    pub posts: Vec<Post>,
}

impl Crew {
    /// How many threads a process has.
    #[must_use]
    pub fn each(&self) -> u64 {
        self.threads.div_ceil(self.processes.max(1))
    }

    /// Where a thread stands.
    #[must_use]
    pub fn post(&self, thread: u64) -> Post {
        let process = usize::try_from(thread / self.each()).unwrap_or(0);
        self.posts.get(process % self.posts.len().max(1)).copied().unwrap_or(Post::Inside)
    }

    /// What a thread begins with.
    #[must_use]
    pub fn tree(&self, thread: u64) -> Tree {
        lower::tree(self.seed, thread, self.room, self.post(thread))
    }
}

/// The kinds of these names.
///
/// # Errors
/// When there is none of a name.
pub fn kinds(names: &str) -> Result<Vec<Kind>> {
    let find = |name: &str| {
        let all = || writers::ALL.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let kind = writers::ALL.iter().find(|kind| kind.name == name).copied();
        kind.with_context(|| format!("{name:?} is no kind of writer; there are: {}", all()))
    };
    names.split(',').filter(|name| !name.is_empty()).map(find).collect()
}

/// A process of writers; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// No cgroup holds it.
    outside: bool,
}

impl Process {
    /// Starts threads `first..first + count` of a crew in a container.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        program: &Path,
        cgroup: &Path,
        init: u32,
        log: &File,
        crew: &Crew,
        (first, count): (u64, u64),
    ) -> Result<Process> {
        let names: Vec<&str> = crew.kinds.iter().map(|kind| kind.name).collect();
        let child = Command::new(program)
            .arg(ARGUMENT)
            .arg(cgroup)
            .args([init.to_string(), crew.seed.to_string(), crew.threads.to_string()])
            .args([first.to_string(), count.to_string(), names.join(","), crew.pace.word().to_owned()])
            .args([crew.room.names.to_string(), crew.room.bytes.to_string()])
            .arg(crew.post(first).word())
            .stdin(log.try_clone()?)
            .stdout(Stdio::null())
            // Ctrl-C goes to the whole group, and the harness wants to end between two cuts, with its writers alive.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        Ok(Process { child, outside: !crew.post(first).is_held() })
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Stops it, or lets it go on, if it stands outside the container.
    ///
    /// # Errors
    /// As `kill(2)`.
    pub fn hold(&self, stop: bool) -> io::Result<()> {
        if self.outside {
            let signal = if stop { Signal::STOP } else { Signal::CONT };
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// Whether it is stopped, if it stands outside the container: each of its threads is.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        let stopped = |task: io::Result<fs::DirEntry>| {
            let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat"))).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        };
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        !self.outside || tasks.is_ok_and(|mut tasks| tasks.all(stopped))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every program that starts writers calls this first thing in `main`: if it was executed to be some, it is and does not return.
pub fn write_if_asked() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().map(String::as_str) != Some(ARGUMENT) {
        return;
    }
    if let Err(e) = serve(&args[1..]) {
        let _ = writeln!(io::stderr(), "a process of writers: {e:#}");
        std::process::exit(1);
    }
}

fn serve(args: &[String]) -> Result<()> {
    let [cgroup, init, seed, threads, first, count, names, pace, most, bytes, post] = args else {
        bail!("CGROUP INIT SEED THREADS FIRST COUNT KINDS PACE NAMES BYTES POST");
    };
    let (seed, threads): (u64, u64) = (seed.parse()?, threads.parse()?);
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    let pace = Pace::named(pace).context("no such pace")?;
    let room = Room { names: most.parse()?, bytes: bytes.parse()? };
    let kinds = kinds(names)?;
    let log = Log::map(io::stdin(), threads)?;
    let [post] = Post::named(post)?[..] else { bail!("one post") };
    let home = post.take(Path::new(cgroup), init.parse()?)?;
    rustix::process::umask(Mode::empty());
    let work = Work { seed, threads, kinds, pace, log, home };
    let trees = (first..first + count).map(|thread| lower::tree(seed, thread, room, post));
    if post == Post::Born {
        return work.generations(trees.collect());
    }
    let threads: Vec<_> = trees
        .map(|mut tree| {
            let work = work.clone();
            std::thread::spawn(move || work.go(&mut tree, 0, u64::MAX))
        })
        .collect();
    for thread in threads {
        // It ends only by a panic, which leaves its message on standard error.
        if thread.join().is_err() {
            bail!("a writer panicked");
        }
    }
    Ok(())
}

/// What the threads of a process share.
#[derive(Debug, Clone)]
struct Work {
    seed: u64,
    threads: u64,
    kinds: Vec<Kind>,
    pace: Pace,
    log: Log,
    home: String,
}

impl Work {
    /// Operations `from..to` of the thread whose tree this is.
    fn go(&self, tree: &mut Tree, from: u64, to: u64) {
        let thread = tree.thread;
        // Slow threads do not go in step.
        let mut dice = Dice::new(&[self.seed, thread, from, 1 << 40]);
        let mut hands = Hands::new(thread, self.threads);
        hands.home.clone_from(&self.home);
        for k in from..to {
            let (_, mut op) = plan(self.seed, k, tree, &self.kinds);
            let call = std::mem::replace(&mut op.call, Box::new(|_| Ok(0)));
            let ended = self.log.around(thread, k, || call(&mut hands));
            op.done(tree, ended);
            self.pace.rest(&mut dice);
        }
    }

    /// Each thread is a process that ends after [`LIFE`] operations, and then another. What they have done is in the log.
    fn generations(&self, mut trees: Vec<Tree>) -> Result<()> {
        for k in (0..).step_by(usize::try_from(LIFE)?) {
            let mut children = Vec::new();
            for tree in &mut trees {
                match fork()? {
                    Fork::Parent(child) => children.push(child),
                    Fork::Child => {
                        set_parent_process_death_signal(Some(Signal::KILL))?;
                        self.go(tree, k, k + LIFE);
                        std::process::exit(0);
                    }
                }
            }
            for child in children {
                if !post::wait(child)? {
                    bail!("a writer has died");
                }
            }
            for tree in &mut trees {
                for k in k..k + LIFE {
                    let (_, op) = plan(self.seed, k, tree, &self.kinds);
                    op.done(tree, self.log.ended(tree.thread, k));
                }
            }
        }
        Ok(())
    }
}
