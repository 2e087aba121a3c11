//! `image`: what can be done with an image that is there. One file a command.

mod bar;
mod check;
mod diff;
mod export;
mod inspect;
mod mount;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueHint};
use snapshot_engine::reader::{self, Opened, ReaderError, Source};
use snapshot_engine::store::{self, Store};

use super::Result;
use super::args::Place;
use super::out::Out;

#[derive(Debug, Args)]
pub(crate) struct Images {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check an image: its structure, and every byte of its data
    ///
    /// Reads every chunk and compares it with its digest, hashes every blob, and compares the documents of an OCI layout with theirs. Of an image of plain
    /// layers every layer is hashed as it is and as the tar that it stands for, and every entry must be one that makes sense within the tree.
    /// Everything that is wrong is listed. The exit code is 0 if nothing is.
    #[command(after_help = "Examples:\n  \
        snapshot-engine image check /var/lib/images:web-1\n  \
        snapshot-engine image check image.boot --blob-dir blobs --output json\n  \
        snapshot-engine image check 17528575")]
    Check(check::Check),
    /// Show what an image is made of
    #[command(after_help = "Examples:\n  \
        snapshot-engine image inspect /var/lib/images:web-1\n  \
        snapshot-engine image inspect /var/lib/images:web-1 /etc --files\n  \
        snapshot-engine image inspect image.boot --files --output json")]
    Inspect(inspect::Inspect),
    /// Compare two images, of one kind or of both
    ///
    /// Lists what was added, removed or changed: type, mode, owner, time, attributes, link targets, content, and which names are one file. The exit
    /// code is 0 if the images are equal, 1 if they differ, and 2 if they cannot be compared.
    #[command(after_help = "Examples:\n  \
        snapshot-engine image diff /var/lib/images:web-1 /var/lib/images:web-2\n  \
        snapshot-engine image diff a.boot b.boot --blob-dir blobs --output json")]
    Diff(diff::Diff),
    /// Unpack an image into a directory
    ///
    /// With owners, modes, times, attributes, hard links, devices and holes; of an image of plain layers, what they show together. Data is verified. Nothing is
    /// written outside of the directory, whatever the image says.
    #[command(after_help = "Examples:\n  \
        snapshot-engine image unpack /var/lib/images:web-1 rootfs\n  \
        snapshot-engine image unpack image.boot rootfs --blob-dir blobs --unprivileged")]
    Unpack(unpack::Unpack),
    /// Write an image as one file that the kernel mounts
    #[command(after_help = "Examples:\n  \
        snapshot-engine image export /var/lib/images:web-1 web.erofs\n  \
        snapshot-engine image export /var/lib/images:web-1 web.erofs --verity --output json")]
    Export(export::Export),
    /// Mount an image on a directory
    ///
    /// Uncompressed images of RAFS v6 are read by the kernel itself: no process stays, and data is not verified. All others are served by a process in the background that
    /// verifies every byte. `image unmount` undoes it.
    #[command(after_help = "Examples:\n  \
        snapshot-engine image mount /var/lib/images:web-1 /mnt\n  \
        snapshot-engine image mount /var/lib/images:web-1 /mnt --rw --rw-dir /var/lib/scratch\n  \
        snapshot-engine image mount image.boot /mnt --blob-dir blobs --through fuse --foreground")]
    Mount(mount::Mount),
    /// Undo a mount of an image, and remove what was made for it
    #[command(visible_alias = "umount", after_help = "Examples:\n  snapshot-engine image unmount /mnt")]
    Unmount(mount::Unmount),
}

/// Which image.
#[derive(Debug, Args)]
struct Which {
    /// An OCI layout (DIR or DIR:TAG), a bootstrap file, or the id of a snapshot
    #[arg(value_name = "IMAGE", value_hint = ValueHint::AnyPath)]
    image: PathBuf,
    #[command(flatten)]
    place: Where,
}

/// Where the parts of an image are.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// Where the blobs of a bootstrap file are, named by their ids; beside it if not given
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    blob_dir: Option<PathBuf>,
    #[command(flatten)]
    work: Place,
}

impl Where {
    /// Where the blobs of a bootstrap file are, if that was said.
    pub(super) fn blob_dir(&self) -> Option<&Path> {
        self.blob_dir.as_deref()
    }

    /// Where snapshots are.
    pub(super) fn work_dir(&self) -> &Path {
        &self.work.work_dir
    }

    /// Finds and opens an image. A name that is no file is looked for among the snapshots.
    ///
    /// What is in plain layers is kept in the work directory while the image is open.
    pub(super) fn open(&self, name: &Path) -> Result<Opened> {
        let keep =
            if self.work.work_dir.is_dir() { self.work.work_dir.clone() } else { std::env::temp_dir() };
        Ok(reader::open(&self.source(name)?, Some(&keep))?)
    }

    fn source(&self, name: &Path) -> Result<Source> {
        let source = match Source::find(name, self.blob_dir.as_deref()) {
            Err(not_found @ ReaderError::NotFound(_)) => match self.snapshot(name)? {
                Some(source) => source,
                None => return Err(not_found.into()),
            },
            source => source?,
        };
        Ok(source)
    }

    fn snapshot(&self, name: &Path) -> Result<Option<Source>> {
        let (Some(id), Some(store)) = (name.to_str(), Store::open_existing(&self.work.work_dir)?) else {
            return Ok(None);
        };
        let id = match store.find(id) {
            Ok(id) => id,
            Err(store::Error::Unknown { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let record = store.record(id)?;
        let target = record.target.to_string();
        if !record.target.is_layout() {
            return Err(super::Error::Elsewhere(target).into());
        }
        Ok(Some(Source::find(Path::new(&target), None)?))
    }
}

impl Which {
    fn open(&self) -> Result<Opened> {
        self.place.open(&self.image)
    }

    /// The image for one who asks nothing of its files' contents.
    fn look(&self) -> Result<Opened> {
        Ok(reader::open(&self.place.source(&self.image)?, None)?)
    }
}

pub(super) fn run(args: Images, out: &Out, quiet: bool) -> Result<ExitCode> {
    match args.command {
        Command::Check(args) => check::run(&args, out, quiet),
        Command::Diff(args) => diff::run(&args, out),
        Command::Inspect(args) => done(inspect::run(&args, out)),
        Command::Unpack(args) => done(unpack::run(&args, out, quiet)),
        Command::Export(args) => done(export::run(&args, out, quiet)),
        Command::Mount(args) => done(mount::run(&args, out)),
        Command::Unmount(args) => done(mount::undo(&args, out)),
    }
}

fn done(result: Result) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
