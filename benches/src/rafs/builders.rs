//! Who builds: the engine, `nydus-image`, and a bare copy as the limit. Each is a process of its own, watched from outside.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sha2::{Digest as _, Sha256};
use snapshot_engine::chunk::blob::Known;
use snapshot_engine::image::layer::{self, Options};
use snapshot_engine::kernel::uring::Ring;
use snapshot_engine::model::chunk::{BlobIndex, ChunkSize, Format};
use snapshot_engine::model::overlay::{self, Namespaces};
use snapshot_engine::rafs;

use super::incremental;

/// Who builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Builder {
    /// The engine; 0 workers are as many as it likes.
    Ours {
        /// Worker threads.
        workers: usize,
    },
    /// `nydus-image create` of this program.
    Nydus(PathBuf),
    /// A whole image of a frozen tree by the engine, on the image that lies there, or with every file read.
    Image {
        /// Where the earlier image is.
        earlier: Option<PathBuf>,
    },
    /// All bytes read by io_uring, digested with BLAKE3 and written to one file, by as many threads as there are CPUs. It makes no image.
    Limit,
    /// The SHA-256 of as many bytes as the files have, always the same in cache, by one thread: a blob's name, which has no parallel form.
    Name,
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Builder::Ours { workers: 0 } => f.write_str("ours"),
            Builder::Ours { workers } => write!(f, "ours with {workers}"),
            Builder::Image { earlier: None } => f.write_str("whole image"),
            Builder::Image { .. } => f.write_str("1 % changed"),
            Builder::Nydus(_) => f.write_str("nydus-image"),
            Builder::Limit => f.write_str("limit"),
            Builder::Name => f.write_str("SHA-256 alone"),
        }
    }
}

/// What a build cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the start of the process to its end.
    pub wall: Duration,
    /// Of all its threads, user and system.
    pub cpu: Duration,
    /// The largest resident memory seen, in bytes.
    pub peak: u64,
    /// Bytes of what it wrote.
    pub stored: u64,
}

/// How often it is looked how much memory a builder has.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// The first argument of this very program when it is to build.
const ARGUMENT: &str = "__build";

impl Builder {
    /// Builds an image of `source` in the new directory `out`.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn build(&self, source: &Path, out: &Path, compressor: &str) -> Result<Cost> {
        fs::create_dir_all(out)?;
        let mut command = match self {
            Builder::Nydus(program) => {
                let mut command = Command::new(program);
                command.args([
                    "create",
                    "--type",
                    "dir-rafs",
                    "--fs-version",
                    "6",
                    "--log-level",
                    "error",
                    "--chunk-size",
                    "0x100000",
                ]);
                command.args(["--compressor", compressor, "--blob-dir"]).arg(out);
                command.arg("--bootstrap").arg(out.join("image.boot")).arg(source);
                command
            }
            Builder::Ours { .. } | Builder::Limit | Builder::Name | Builder::Image { .. } => {
                let mut command = Command::new(std::env::current_exe()?);
                let how = match self {
                    Builder::Ours { workers } => workers.to_string(),
                    Builder::Image { .. } => "image".to_owned(),
                    Builder::Name => "name".to_owned(),
                    _ => "limit".to_owned(),
                };
                command.arg(ARGUMENT).args([source, out]).args([compressor, &how]);
                if let Builder::Image { earlier: Some(earlier) } = self {
                    command.arg(earlier);
                }
                command
            }
        };
        let began = Instant::now();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let mut peak = 0;
        // It stays a zombie, whose times can still be read. Looking at its memory takes time from it.
        // A signal that stops us is seen when the builder has ended.
        let waited = || poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&LOOK));
        while retry_on_intr(waited)? == 0 {
            peak = peak.max(resident(pid));
        }
        let (wall, cpu) = (began.elapsed(), cpu(pid)?);
        let status = child.wait()?;
        if !status.success() {
            let mut text = String::new();
            if let Some(mut errors) = child.stderr.take() {
                std::io::Read::read_to_string(&mut errors, &mut text)?;
            }
            bail!("{command:?}: {status}: {text}");
        }
        let stored =
            fs::read_dir(out)?.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        Ok(Cost { wall, cpu, peak, stored })
    }
}

/// `VmHWM` of proc_pid_status(5), in bytes.
fn resident(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

/// `USER_HZ` (include/asm-generic/param.h): what /proc counts times in, on every architecture that BPF is used on.
const TICKS_PER_SECOND: u64 = 100;

/// `utime` and `stime` of proc_pid_stat(5): fields 14 and 15.
fn cpu(pid: Pid) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let fields: Vec<&str> = text.rsplit_once(") ").context("no state")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11).context("no utime")?.parse::<u64>()?
        + fields.get(12).context("no stime")?.parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Called first thing in `main`: builds if this process was started to.
///
/// # Errors
/// When that fails.
pub fn build_if_asked() -> Result<bool> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return Ok(false);
    }
    let rest: Vec<OsString> = arguments.collect();
    let [source, out, compressor, how, earlier @ ..] = rest.as_slice() else {
        bail!("SOURCE OUT COMPRESSOR WORKERS|limit|name|image [EARLIER]")
    };
    let (source, out) = (Path::new(source), Path::new(out));
    let words = |word: &OsString| word.to_str().map(str::to_owned).context("no text");
    match words(how)?.as_str() {
        "limit" => limit(source, out)?,
        "name" => name(source)?,
        "image" => incremental::make(source, out, &words(compressor)?, earlier.first().map(Path::new))?,
        workers => ours(source, out, &words(compressor)?, workers.parse()?)?,
    }
    Ok(true)
}

/// Tells nobody.
pub(super) struct Silent;

impl snapshot_engine::image::Progress for Silent {
    fn stage(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64) {}
}

fn ours(source: &Path, out: &Path, compressor: &str, workers: usize) -> Result<()> {
    let format =
        Format { compressor: compressor.parse()?, chunk_size: ChunkSize::new(1 << 20)?, ..Format::default() };
    let options = Options { format, namespaces: Namespaces::Trusted, workers, sync: false };
    let walked = layer::walk(source, None, options)?;
    let made = layer::convert(walked, None, out, Known::default(), BlobIndex(0), options, &Silent)?;
    let tree = overlay::merge(None, [made.tree], Namespaces::Trusted)?;
    let blob = made.blob.map(|open| open.finish(options.sync)).transpose()?;
    let blobs: Vec<_> = blob.into_iter().map(|(blob, _)| blob).collect();
    let boot = rafs::write(&tree, &blobs, format, &[])?;
    fs::write(out.join("image.boot"), boot.bytes)?;
    Ok(())
}

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A part of a file: where it begins and how long it is.
struct Piece {
    path: PathBuf,
    at: u64,
    len: usize,
}

/// Everything in a tree, in pieces, so that one file of all bytes is as well shared.
fn pieces(source: &Path) -> Result<Vec<Piece>> {
    let mut all = Vec::new();
    let mut dirs = vec![source.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let (path, meta) = {
                let entry = entry?;
                (entry.path(), entry.metadata()?)
            };
            if meta.is_dir() {
                dirs.push(path);
            } else {
                for at in (0..meta.len()).step_by(PIECE) {
                    let len = usize::try_from((meta.len() - at).min(PIECE as u64))?;
                    all.push(Piece { path: path.clone(), at, len });
                }
            }
        }
    }
    Ok(all)
}

fn name(source: &Path) -> Result<()> {
    let mut sum = Sha256::new();
    let bytes = vec![7; PIECE];
    for piece in pieces(source)? {
        sum.update(&bytes[..piece.len]);
    }
    std::hint::black_box(sum.finalize());
    Ok(())
}

fn limit(source: &Path, out: &Path) -> Result<()> {
    let mut total = 0;
    let placed = pieces(source)?.into_iter().map(|piece| {
        let place = total;
        total += piece.len as u64;
        (piece, place)
    });
    let files: Vec<(Piece, u64)> = placed.collect();
    let to = fs::File::create(out.join("copy"))?;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut ring = Ring::new(1, PIECE)?;
        let mut open: Option<(PathBuf, fs::File)> = None;
        loop {
            let Some((Piece { path, at, len }, place)) =
                files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
            else {
                return Ok(());
            };
            if open.as_ref().is_none_or(|(name, _)| name != path) {
                open = Some((path.clone(), fs::File::open(path)?));
            }
            let Some((_, file)) = &open else { continue };
            let buf = ring.take().context("no buffer")?;
            ring.read(std::os::fd::AsFd::as_fd(file), *at, buf, 0, *len, 0)?;
            ring.wait()?;
            let done = ring.completed().context("no answer")?;
            ensure!(usize::try_from(done.result?)? == *len, "{} is short", path.display());
            let bytes = &ring.bytes(&done.buf)[..*len];
            std::hint::black_box(blake3::hash(bytes));
            std::os::unix::fs::FileExt::write_all_at(&to, bytes, *place)?;
            ring.release(done.buf);
        }
    };
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
        all.into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
