//! `image mount` and `image unmount`.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum, ValueHint};
use serde_json::json;
use snapshot_engine::kernel::signals;
use snapshot_engine::reader::mount::{self, Options, Report, Through};
use snapshot_engine::reader::{Opened, ReaderError};

use super::super::out::{Out, printable};
use super::super::{Error, Failed, Result};
use super::Which;

#[derive(Debug, Args)]
pub(super) struct Mount {
    #[command(flatten)]
    which: Which,
    /// Where
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Make it writable: what is written goes elsewhere, the image stays as it is
    #[arg(long)]
    rw: bool,
    /// Where what is written is kept, in `upper` and `work`; without it, it is lost with the mount
    #[arg(long, value_name = "DIR", requires = "rw", value_hint = ValueHint::DirPath)]
    rw_dir: Option<PathBuf>,
    /// Who reads the image; the kernel if it can, when not given
    #[arg(long, value_name = "WHO", value_enum)]
    through: Option<Who>,
    /// Serve it from this process, until it is unmounted or interrupted
    #[arg(long)]
    foreground: bool,
    /// This is the process in the background.
    #[arg(long, hide = true)]
    daemon: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Who {
    /// EROFS of the kernel: uncompressed RAFS v6 only; data is not verified.
    Kernel,
    /// A process of the engine's; every byte is verified.
    Fuse,
}

#[derive(Debug, Args)]
pub(super) struct Unmount {
    /// Where it is mounted
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
}

pub(super) fn run(args: &Mount, out: &Out) -> Result {
    let through = args.through.map(|who| match who {
        Who::Kernel => Through::Kernel,
        Who::Fuse => Through::Fuse,
    });
    let options = Options { through, rw: args.rw, rw_dir: args.rw_dir.clone() };
    let serves = args.foreground || args.daemon;
    // Plain layers are kept by the process that serves them.
    let image = if serves { args.which.open()? } else { args.which.look()? }.complete()?;
    let at = if args.daemon {
        args.dir.canonicalize().map_err(lost(&args.dir))?
    } else {
        mount::place(&args.dir)?
    };
    if serves {
        return serve(args, image, &at, &options, out);
    }
    if mount::reader_for(&image, &options)? == Through::Kernel {
        match mount::mount_kernel(&image, &at, &options) {
            Ok(report) => return tell(&report, out),
            // Before 6.12 it reads block devices only: the other way serves as well, unless this one was asked for.
            Err(ReaderError::Mount { source, .. }) if through.is_none() => {
                tracing::warn!(error = %source, "the kernel does not mount it: it is served by a process");
            }
            Err(e) => return Err(e.into()),
        }
    }
    drop(image);
    in_background(&at, out)
}

fn lost(dir: &Path) -> impl FnOnce(std::io::Error) -> ReaderError {
    move |source| ReaderError::Io { what: "find the directory", path: dir.to_owned(), source }
}

fn serve(args: &Mount, image: Opened, at: &Path, options: &Options, out: &Out) -> Result {
    signals::install().map_err(Error::Output)?;
    let ready = |report: &Report| -> Result {
        if !args.daemon {
            return tell(report, out);
        }
        // Away from the terminal and its hang-ups. Nothing is said after this line: whoever started us may be gone.
        let _ = rustix::process::setsid();
        let _ = std::env::set_current_dir("/");
        let line = serde_json::to_string(report).map_err(Error::Json)?;
        out.raw(format!("{line}\n").as_bytes())
    };
    mount::serve::<Failed>(image, at, options, ready)
}

/// Starts this very program again with the same arguments, and passes on what it says when it serves.
fn in_background(at: &Path, out: &Out) -> Result {
    let log = mount::prepare(at)?;
    let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path);
    let stderr = open(&log).map_err(|e| Error::File(log.clone(), e))?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("snapshot-engine")
        .args(std::env::args_os().skip(1))
        .arg("--daemon")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(Error::Output)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(Error::Output)?;
    }
    if let Ok(report) = serde_json::from_str(&line) {
        return tell(&report, out);
    }
    let _ = child.wait();
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_dir_all(log.parent().unwrap_or(&log));
    Err(ReaderError::Server { said: said.trim().to_owned() }.into())
}

fn tell(report: &Report, out: &Out) -> Result {
    let by = match (report.through, report.pid) {
        (Through::Kernel, _) => "by the kernel's EROFS; its data is not verified".to_owned(),
        (Through::Fuse, Some(pid)) => format!("by process {pid}, which verifies its data"),
        (Through::Fuse, None) => "by a process".to_owned(),
    };
    let at = printable(&report.at.to_string_lossy());
    let how = if report.rw { "writable" } else { "read-only" };
    out.result(&format!("Mounted on {at}, {how}, {by}\n"), report)
}

pub(super) fn undo(args: &Unmount, out: &Out) -> Result {
    mount::unmount(&args.dir)?;
    let at = printable(&args.dir.to_string_lossy());
    out.result(&format!("Unmounted {at}\n"), &json!({ "unmounted": args.dir.to_string_lossy() }))
}
