//! What a container does to a tree while it is read: one thread an attack, as fast as it can.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// A running attack.
#[derive(Debug)]
pub struct Attack {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Attack {
    /// Starts one:
    ///
    /// * `exchange A B`: two names change places;
    /// * `replace A`: the name leads to a new file, FIFO, device, directory or link each time, by a rename over it;
    /// * `grow A`: the file grows, up to 1 GiB;
    /// * `attributes A`: the file has ever other attributes, and ever more of them;
    /// * `shrink A`: the directory is filled with 500 files and emptied again.
    ///
    /// # Errors
    /// When there is no such attack, or no thread for it.
    pub fn start(kind: &str, paths: &[&str]) -> Result<Attack> {
        let stop = Arc::new(AtomicBool::new(false));
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let first = paths.first().context("an attack needs a path")?.clone();
        let stopped = Arc::clone(&stop);
        let mut stroke: Box<dyn FnMut(u64) -> Result<()> + Send> = match kind {
            "exchange" => {
                let second = paths.get(1).context("two paths are needed")?.clone();
                Box::new(move |_| {
                    Ok(rustix::fs::renameat_with(CWD, &first, CWD, &second, RenameFlags::EXCHANGE)?)
                })
            }
            "replace" => Box::new(move |n| replace(&first, n)),
            "grow" => {
                let mut file = OpenOptions::new().append(true).create(true).open(&first)?;
                let block = vec![7; 64 << 10];
                Box::new(move |n| {
                    if n < 16 << 10 {
                        file.write_all(&block)?;
                    }
                    std::thread::sleep(Duration::from_micros(100));
                    Ok(())
                })
            }
            "attributes" => Box::new(move |n| attributes(&first, n)),
            "shrink" => Box::new(move |n| {
                let file = first.join(format!("a-name-of-some-length-{:05}", n % 500));
                if (n / 500).is_multiple_of(2) {
                    std::fs::write(file, b"here")?;
                } else {
                    std::fs::remove_file(file)?;
                }
                Ok(())
            }),
            _ => bail!("no attack is called {kind}"),
        };
        let thread = std::thread::Builder::new().spawn(move || {
            let mut n = 0;
            while !stopped.load(Relaxed) {
                stroke(n)?;
                n += 1;
            }
            Ok(n)
        })?;
        Ok(Attack { stop, thread })
    }

    /// Ends it; returns how often it struck.
    ///
    /// # Errors
    /// When it failed on the way.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("an attack panicked"))
    }
}

fn replace(path: &Path, n: u64) -> Result<()> {
    let next = path.with_extension("next");
    let node = |kind, device| rustix::fs::mknodat(CWD, &next, kind, Mode::RUSR | Mode::WUSR, device);
    match n % 5 {
        0 => std::fs::write(&next, b"a file")?,
        1 => node(FileType::Fifo, 0)?,
        // Opening the clone device of pseudo terminals makes one.
        2 => node(FileType::CharacterDevice, rustix::fs::makedev(5, 2))?,
        3 => std::os::unix::fs::symlink("/", &next)?,
        _ => node(FileType::Socket, 0)?,
    }
    Ok(std::fs::rename(&next, path)?)
}

/// Sixteen attributes come and go, with values from one byte to a kilobyte.
fn attributes(path: &Path, n: u64) -> Result<()> {
    let name = format!("user.attribute-{}", n % 16);
    let value = vec![b'v'; usize::try_from(n % 100)? + 1];
    let set = if (n / 16).is_multiple_of(2) {
        rustix::fs::setxattr(path, name.as_str(), &value, XattrFlags::empty())
    } else {
        rustix::fs::removexattr(path, name.as_str())
    };
    match set {
        Ok(()) | Err(Errno::NODATA | Errno::NOSPC) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Makes `depth` directories inside each other below `top`, each called `name`, and the file `bottom` in the last one. No path is as long.
///
/// # Errors
/// As `mkdirat(2)`.
pub fn deep(top: &Path, name: &str, depth: usize) -> Result<()> {
    let mut dir = rustix::fs::open(top, DIRECTORY, Mode::empty())?;
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU)?;
        dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    let file = rustix::fs::openat(
        &dir,
        "bottom",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE,
        Mode::RUSR | Mode::WUSR,
    )?;
    rustix::io::write(&file, b"the bottom")?;
    Ok(())
}

/// How deep the directories called `name` go below `top`, and whether the file at the bottom is the one of [`deep`].
///
/// # Errors
/// As `openat(2)`.
pub fn depth(top: &Path, name: &str) -> Result<(usize, bool)> {
    let mut dir = rustix::fs::open(top, DIRECTORY, Mode::empty())?;
    let mut depth = 0;
    while rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
        depth += 1;
    }
    let file = rustix::fs::openat(&dir, "bottom", rustix::fs::OFlags::RDONLY, Mode::empty())?;
    let mut content = [0; 32];
    let n = rustix::io::read(&file, &mut content)?;
    Ok((depth, &content[..n] == b"the bottom"))
}

const DIRECTORY: rustix::fs::OFlags = rustix::fs::OFlags::RDONLY
    .union(rustix::fs::OFlags::DIRECTORY)
    .union(rustix::fs::OFlags::NOFOLLOW)
    .union(rustix::fs::OFlags::CLOEXEC);
