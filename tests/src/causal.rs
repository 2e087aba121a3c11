//! Writers with a known order, and the judge of a frozen tree.
//!
//! Thread `k` counts `n` up and does in each round, one completed after the other, in its own directory:
//!
//! ```text
//!   a.db  pwrite of page n into slot n % PAGES          }
//!   b.log O_APPEND of line n (every LOG lines renamed   }
//!         to b.old and begun anew)                      }
//!   c     line n written to c.tmp, renamed into place   }  newest(a) >= b >= c >= d >= m >= u >= newest(a) - 1
//!   d.db  lseek + write of page n into slot n % PAGES   }
//!   m-n   mkdir, then rmdir of m-(n-1)                  }
//!   u-n   create, then unlink of u-(n-1)                }
//!   x     the round that the next thread has completed: what is in x has happened there
//! ```
//!
//! A tree that was cut at one instant keeps all of it; pages and lines prove that they are whole. In two trees (`ROOT:OTHER`) the steps of each round
//! go to one and the other by turns: a, c, m and x to the first, b, d and u to the second. They must have been cut at one instant, too.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use snapshot_engine::demo::content::{LINE, PAGE, check_line, check_page, line, page};

use crate::bench::slack;

/// Pages of each paged file.
const PAGES: u64 = 16;
/// Lines of a log until it is renamed.
const LOG: u64 = 300;

/// Where the writers are: in one tree, or in two.
#[derive(Debug, Clone)]
pub struct Roots {
    first: PathBuf,
    second: Option<PathBuf>,
}

impl From<&Path> for Roots {
    fn from(root: &Path) -> Roots {
        Roots { first: root.to_owned(), second: None }
    }
}

impl Roots {
    /// Two trees.
    #[must_use]
    pub fn two(first: &Path, second: &Path) -> Roots {
        Roots { first: first.to_owned(), second: Some(second.to_owned()) }
    }

    /// As the worker is told: `ROOT` or `ROOT:OTHER`.
    #[must_use]
    pub fn parse(text: &str) -> Roots {
        match text.split_once(':') {
            Some((first, second)) => Roots::two(Path::new(first), Path::new(second)),
            None => Path::new(text).into(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.first).chain(&self.second)
    }

    fn of_thread(&self, k: usize) -> Roots {
        let name = format!("t{k}");
        Roots { first: self.first.join(&name), second: self.second.as_ref().map(|root| root.join(&name)) }
    }

    /// The directory that has what begins with this letter.
    fn of(&self, name: &str) -> &Path {
        let in_second = name.starts_with(['b', 'd', 'u']);
        self.second.as_ref().filter(|_| in_second).unwrap_or(&self.first)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.of(name).join(name)
    }
}

/// The threads of one process.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<io::Result<()>>>,
}

impl Writers {
    /// Starts `count` threads in `roots`, which must have no `t0` .., and returns once each has completed two rounds.
    ///
    /// # Errors
    /// When a writer fails.
    pub fn start(roots: &Roots, count: usize) -> io::Result<Writers> {
        roots.all().try_for_each(fs::create_dir_all)?;
        let stop = Arc::new(AtomicBool::new(false));
        let done: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let threads = (0..count)
            .map(|k| {
                let (root, stop, done) = (roots.of_thread(k), Arc::clone(&stop), Arc::clone(&done));
                std::thread::spawn(move || writer(&root, k, &stop, &done))
            })
            .collect::<Vec<_>>();
        while done.iter().any(|d| d.load(Ordering::Acquire) < 2) {
            if let Some(at) = threads.iter().position(std::thread::JoinHandle::is_finished) {
                return Err(io::Error::other(format!("writer {at} has ended")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Writers { stop, threads })
    }

    /// Ends them.
    ///
    /// # Errors
    /// The first error of a writer.
    pub fn stop(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| io::Error::other("a writer panicked"))??;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn writer(root: &Roots, k: usize, stop: &AtomicBool, done: &[AtomicU64]) -> io::Result<()> {
    root.all().try_for_each(fs::create_dir)?;
    let at = |name: &str| root.file(name);
    let numbered = |kind: char, n: u64| root.file(&format!("{kind}-{n}"));
    let a = File::create(at("a.db"))?;
    let mut b = append(&at("b.log"))?;
    let mut d = File::create(at("d.db"))?;
    let x = File::create(at("x"))?;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        a.write_all_at(&page(n), n % PAGES * PAGE as u64)?;
        if n > 0 && n.is_multiple_of(LOG) {
            fs::rename(at("b.log"), at("b.old"))?;
            b = append(&at("b.log"))?;
        }
        b.write_all(&line(n))?;
        File::create(at("c.tmp"))?.write_all(&line(n))?;
        fs::rename(at("c.tmp"), at("c"))?;
        d.seek(SeekFrom::Start(n % PAGES * PAGE as u64))?;
        d.write_all(&page(n))?;
        fs::create_dir(numbered('m', n))?;
        if n > 0 {
            fs::remove_dir(numbered('m', n - 1))?;
        }
        File::create(numbered('u', n))?;
        if n > 0 {
            fs::remove_file(numbered('u', n - 1))?;
        }
        n += 1;
        // "Rounds below n are complete" is published after they are, and what is read here is complete there.
        done[k].store(n, Ordering::Release);
        let other = done[(k + 1) % done.len()].load(Ordering::Acquire);
        if other > 0 {
            x.write_all_at(&page(other - 1), 0)?;
        }
        pace(n);
    }
    Ok(())
}

/// Between rounds: some time to breathe, and 6 of every 20 ms in which all threads rest (for gate none); stretched by [`slack`].
fn pace(n: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let phase = (now / slack()).as_micros() % 20_000;
    if phase > 14_000 {
        std::thread::sleep(Duration::from_micros(u64::try_from(20_000 - phase).unwrap_or(0)) * slack());
    } else if n.is_multiple_of(4) {
        std::thread::sleep(Duration::from_micros(100) * slack());
    }
}

/// The newest completed `c` of each thread, -1 if there is none; also of a live tree, because `c` is renamed into place.
#[must_use]
pub fn newest(roots: &Roots, threads: usize) -> Vec<i64> {
    (0..threads)
        .map(|k| fs::read(roots.of_thread(k).file("c")).ok().and_then(|b| check_line(&b)).map_or(-1, signed))
        .collect()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Judges a frozen tree: the newest rounds of each thread, or the first thing that no instant can have looked like.
///
/// # Errors
/// What is wrong.
pub fn judge(roots: &Roots, threads: usize) -> Result<Vec<i64>, String> {
    let mut rounds = Vec::new();
    let mut crossed = Vec::new();
    for k in 0..threads {
        let dir = roots.of_thread(k);
        let read = |name: &str| match fs::read(dir.file(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("t{k}/{name}: {e}")),
        };
        let say = |name: &str, what: String| format!("t{k}/{name}: {what}");
        let a = pages(&read("a.db")?.unwrap_or_default()).map_err(|e| say("a.db", e))?;
        let d = pages(&read("d.db")?.unwrap_or_default()).map_err(|e| say("d.db", e))?;
        let b = log(read("b.old")?, read("b.log")?).map_err(|e| say("b.log", e))?;
        let c = match read("c")? {
            Some(bytes) => signed(check_line(&bytes).ok_or_else(|| say("c", "is not complete".into()))?),
            None => -1,
        };
        if let Some(bytes) = read("c.tmp")?
            && !bytes.is_empty()
            && check_line(&bytes).is_none()
        {
            return Err(say("c.tmp", "is torn".into()));
        }
        let (m, u) = (numbers(dir.of("m"), "m-")?, numbers(dir.of("u"), "u-")?);
        for (name, set) in [("m", &m), ("u", &u)] {
            let fine = set.len() <= 2 && set.iter().zip(set.iter().skip(1)).all(|(x, y)| x + 1 == *y);
            if !fine || (set.is_empty() && c > 1) {
                return Err(say(name, format!("has {set:?}")));
            }
        }
        let newest = |set: &BTreeSet<i64>| set.last().copied().unwrap_or(-1);
        let order = [a, b, c, d, newest(&m), newest(&u)];
        if order.windows(2).any(|w| w[0] < w[1]) || order[5] < a - 1 {
            return Err(say("a b c d m u", format!("have {order:?}")));
        }
        // Of two steps of one kind the second comes before the next kind's first.
        if (newest(&u) == newest(&m) && m.len() == 2) || (newest(&u) < newest(&m) && u.len() == 2) {
            return Err(say("m", format!("has {m:?} when u has {u:?}")));
        }
        let x = read("x")?.unwrap_or_default();
        if !x.is_empty() {
            let n = check_page(&x).ok_or_else(|| say("x", "is torn".into()))?;
            crossed.push((k, signed(n)));
        }
        rounds.push(newest(&u));
    }
    for (k, n) in crossed {
        let other = (k + 1) % threads;
        if n > rounds[other] {
            return Err(format!("t{k} has seen t{other} complete {n}, but it has only {}", rounds[other]));
        }
    }
    Ok(rounds)
}

/// The newest page number; every slot has to hold the newest page that belongs there.
fn pages(bytes: &[u8]) -> Result<i64, String> {
    let mut found = Vec::new();
    for (i, part) in bytes.chunks(PAGE).enumerate() {
        found.push(signed(check_page(part).ok_or_else(|| format!("page {i} is torn"))?));
    }
    let newest = found.iter().copied().max().unwrap_or(-1);
    let (slots, len) = (signed(PAGES), signed(found.len() as u64));
    if len != slots.min(newest + 1) {
        return Err(format!("has {len} pages when the newest is {newest}"));
    }
    for (i, n) in found.iter().enumerate() {
        let i = signed(i as u64);
        if *n != newest - (newest - i).rem_euclid(slots) {
            return Err(format!("slot {i} holds {n} when the newest is {newest}"));
        }
    }
    Ok(newest)
}

/// The newest line; the lines are whole and follow each other without a gap, from the old file into the new one.
fn log(old: Option<Vec<u8>>, new: Option<Vec<u8>>) -> Result<i64, String> {
    let mut last: Option<i64> = None;
    for (which, bytes) in [("old", old), ("new", new)] {
        for (i, part) in bytes.unwrap_or_default().chunks(LINE).enumerate() {
            let n = signed(check_line(part).ok_or_else(|| format!("line {i} of the {which} one is torn"))?);
            let fits = match last {
                Some(last) => n == last + 1,
                None => n % signed(LOG) == 0 && (which == "old" || n == 0),
            };
            if !fits || (i == 0 && n % signed(LOG) != 0) {
                return Err(format!("line {n} of the {which} one follows {last:?}"));
            }
            last = Some(n);
        }
    }
    Ok(last.unwrap_or(-1))
}

fn numbers(dir: &Path, prefix: &str) -> Result<BTreeSet<i64>, String> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return Err(format!("{}: {e}", dir.display())),
    };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect())
}
