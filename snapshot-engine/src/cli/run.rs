//! `run`.

use std::ffi::CStr;
use std::fs;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use serde_json::Value;
use snapshot_engine::kernel::beneath::Dir;
use snapshot_engine::kernel::removal::remove_tree;
use snapshot_engine::kernel::signals;
use snapshot_engine::reader::unpack::{Options, unpack};
use snapshot_engine::reader::{Layout, ReaderError, mount};
use snapshot_engine::restore::{RestoreError, Wanted, spec};

use super::image::Where;
use super::{Error, Result};

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// An OCI layout (DIR or DIR:TAG), a bootstrap file, or the id of a snapshot
    #[arg(value_name = "IMAGE", value_hint = ValueHint::AnyPath)]
    image: PathBuf,
    /// What to run instead of what the image says
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,
    #[command(flatten)]
    place: Where,
    /// The OCI runtime [default: the first of runc and crun in the PATH]
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    runtime: Option<PathBuf>,
    /// The network it has
    #[arg(long, value_name = "NETWORK", value_enum, default_value_t = Network::None)]
    network: Network,
    /// Where what it writes is kept, in `upper`; without it, it is lost with the container
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    rw_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// Nothing but its own loopback.
    None,
    /// The host's.
    Host,
}

/// The most of `/etc/passwd` that is read.
const MAX_TEXT: u64 = 16 << 20;

/// The directory of a container, and its mount: gone with this value.
struct Bundle(tempfile::TempDir);

impl Bundle {
    fn rootfs(&self) -> PathBuf {
        self.0.path().join("rootfs")
    }

    fn tree(&self) -> PathBuf {
        self.0.path().join("tree")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // What the runtime had of it goes a moment after the runtime.
        for _ in 0..50 {
            match mount::unmount(&self.rootfs()) {
                Err(ReaderError::Unmount { .. }) => std::thread::sleep(Duration::from_millis(20)),
                _ => break,
            }
        }
        // However deep it is.
        let _ = remove_tree(&self.tree());
    }
}

/// Runs a container to its end, whose code is ours.
pub(super) fn run(args: &Run) -> Result<ExitCode> {
    let runtime = runtime(args.runtime.as_deref())?;
    let opened = args.place.open(&args.image)?.complete()?;
    // Of a bootstrap file there is no config.
    let config = opened.layout.as_ref().map_or(Value::Null, |layout| layout.config.clone());
    let source = opened.layout.as_ref().map_or(args.image.clone(), source);
    let place = args.place.work_dir();
    let made = tempfile::Builder::new().prefix("snapshot-run-").tempdir_in(place);
    let bundle = Bundle(made.map_err(|e| Error::File(place.to_owned(), e))?);
    let directory = |name: &str| -> Result<PathBuf> {
        let path = bundle.0.path().join(name);
        fs::create_dir(&path).map_err(|e| Error::File(path.clone(), e))?;
        Ok(path)
    };
    let (rootfs, written) = (directory("rootfs")?, directory("rw")?);
    let written = args.rw_dir.clone().unwrap_or(written);
    // From here on a signal does not keep what was made from being removed.
    signals::install().map_err(|e| Error::File("the signal table".into(), e))?;
    if opened.layers.is_some() {
        // Tars are nothing to mount: the tree is made, and goes with the container.
        let tree = bundle.tree();
        unpack(&opened, &tree, Options::default(), &|_, _| {})?;
        drop(opened);
        mount::over(&tree, &rootfs, &written)?;
    } else {
        drop(opened);
        mounted(args, &source, &rootfs, &written)?;
    }

    let name =
        bundle.0.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase().replace('.', "-");
    let (passwd, group) = (text(&rootfs, c"etc/passwd"), text(&rootfs, c"etc/group"));
    let wanted = Wanted {
        command: &args.command,
        terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        host_network: args.network == Network::Host,
        name: &name,
        passwd: &passwd,
        group: &group,
    };
    if let Some(signal) = signals::caught() {
        return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)));
    }
    let document = spec(&config, &wanted)?.to_string();
    let path = bundle.0.path().join("config.json");
    fs::write(&path, document).map_err(|e| Error::File(path.clone(), e))?;

    let started = Command::new(&runtime).args(["run", "--bundle"]).arg(bundle.0.path()).arg(&name).spawn();
    let mut child = started.map_err(|e| Error::File(runtime.clone(), e))?;
    let ended = wait(&mut child, &runtime, &name).map_err(|e| Error::File(runtime.clone(), e));
    // One that could not even be started may have left its state.
    let mut remove = Command::new(&runtime);
    let _ = remove.args(["delete", "--force", &name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    drop(bundle);
    Ok(ExitCode::from(code(ended?)))
}

/// A text of the image's, never through one of its links; empty if it has none.
fn text(rootfs: &Path, path: &CStr) -> String {
    let file = Dir::open(rootfs).and_then(|root| root.open_file(path)).map(|(file, _)| fs::File::from(file));
    file.and_then(|file| std::io::read_to_string(file.take(MAX_TEXT))).unwrap_or_default()
}

/// Waits for the container. A signal to us is one to it; the second time it is not asked again.
fn wait(child: &mut Child, runtime: &Path, name: &str) -> std::io::Result<ExitStatus> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(signal) = signals::caught().filter(|_| !told) {
            told = true;
            let mut kill = Command::new(runtime);
            let _ = kill.args(["kill", name, &signal.to_string()]).stderr(Stdio::null()).status();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn runtime(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = ["runc", "crun"]
        .into_iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)).collect::<Vec<_>>());
    Ok(all.into_iter().find(|program| program.is_file()).ok_or(RestoreError::NoRuntime)?)
}

/// The image as `image mount` is told it: what was found, and not where it was looked for.
fn source(layout: &Layout) -> PathBuf {
    match &layout.tag {
        Some(tag) => format!("{}:{tag}", layout.dir.display()).into(),
        None => layout.dir.clone(),
    }
}

/// Mounts the image by our own command: the kernel reads it, or a process that outlives that command does.
fn mounted(args: &Run, source: &Path, rootfs: &Path, written: &Path) -> Result {
    let mut mount = Command::new("/proc/self/exe");
    mount.args(["image", "mount"]).arg(source).arg(rootfs).args(["--rw", "--rw-dir"]).arg(written);
    if let Some(blobs) = args.place.blob_dir() {
        mount.arg("--blob-dir").arg(blobs);
    }
    let output =
        mount.arg("--quiet").stdin(Stdio::null()).output().map_err(|e| Error::File(source.to_owned(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ").to_owned();
    Err(Error::Mount(said).into())
}
