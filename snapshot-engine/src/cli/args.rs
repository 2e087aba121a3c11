//! What can be given on the command line. The bounds are checked by `CommitOptions::validate`, the one place for them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use snapshot_engine::model::access::Access;
use snapshot_engine::model::base::{KnownImage, LayoutImage};
use snapshot_engine::model::change::Change;
use snapshot_engine::model::format::{BlobLayout, Compressor, Digester, ImageFormat};
use snapshot_engine::model::globs::PathGlob;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::options::{CommitOptions, GateChoice, TrackerChoice, parse_size};
use snapshot_engine::model::reference::ContainerRef;
use snapshot_engine::model::target::ImageTarget;

use super::reach::Reach;
use super::runtimes::Runtimes;

/// Snapshots of running containers, cut in microseconds.
#[derive(Debug, Parser)]
#[command(name = "snapshot-engine", version, propagate_version = true, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 general, 2 arguments, 3 no such container, 4 permission, 5 network, \
                        130 and 143 interrupted"
)]
pub(crate) struct Cli {
    /// How the result is printed on stdout; with json, an error is JSON too, on stderr
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Log more, on stderr (-v, -vv, -vvv); RUST_LOG decides where it is set
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// No progress bar, and only errors in the log
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// The format asked for, of arguments that could not be understood.
    pub(crate) fn sniff(args: &[OsString]) -> Format {
        let json = args.iter().any(|a| a == "--output=json")
            || args.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
        if json { Format::Json } else { Format::Text }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an image of a container, running, paused or stopped, without stopping it
    ///
    /// The command returns once the frozen upperdir is durable; a background process makes the image. `status` and `list` show how far it is.
    #[command(after_help = "Examples:\n  \
        snapshot-engine seamless-commit --container web --target oci:/var/lib/images:web-1\n  \
        snapshot-engine seamless-commit --container docker://web --target oci:/var/lib/images:web-2\n  \
        snapshot-engine seamless-commit --container web --target registry.example.com/team/web:1 --wait\n  \
        snapshot-engine seamless-commit --container web --target oci:/var/lib/images:web-3 --format oci --wait\n  \
        snapshot-engine seamless-commit --pid 4711 --target oci:images:db --wait --compressor none\n  \
        snapshot-engine seamless-commit --container db --target oci:images:db --gate fence --max-pause 100us --output json")]
    SeamlessCommit(SeamlessCommit),
    /// The same in short: commit CONTAINER TARGET
    #[command(after_help = "Examples:\n  \
        snapshot-engine commit web oci:/var/lib/images:web-1\n  \
        snapshot-engine commit web localhost:5000/web:1 --target-insecure --wait\n  \
        snapshot-engine commit web registry.example.com/team/web:1 --format oci --wait\n  \
        snapshot-engine commit web oci-archive:web.tar:web-1 --wait\n  \
        snapshot-engine commit web oci:/var/lib/images:web-2 --change 'ENV DEBUG=1' --change 'CMD [\"serve\"]'\n  \
        snapshot-engine commit web oci:/var/lib/images:web-3 --without-path '/var/cache/*' --without-path '*.pyc'\n  \
        snapshot-engine commit db oci:/var/lib/images:db-1 --with-path /var/lib/postgresql/data\n  \
        snapshot-engine commit pid:4711 oci:images:db --wait")]
    Commit(Commit),
    /// List the containers of all runtimes, and what a snapshot of each would be like
    ///
    /// Nobody is held. The gate is what --gate auto comes to, with the reason; a container that cannot be snapshotted is listed with the reason for that.
    #[command(after_help = "Examples:\n  \
        snapshot-engine ps\n  \
        snapshot-engine ps --all --rate\n  \
        snapshot-engine ps --rate=5s --output json")]
    Ps(super::ps::Ps),
    /// Show how far a snapshot is
    #[command(after_help = "Examples:\n  \
        snapshot-engine status snapshot-1752857512540089368\n  \
        snapshot-engine status 17528575 --output json")]
    Status(OneSnapshot),
    /// List the snapshots of a work directory
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  \
        snapshot-engine list\n  \
        snapshot-engine list --work-dir /var/lib/snapshots --output json"
    )]
    List(Place),
    /// Finish the image of an interrupted or failed snapshot, and its delivery
    #[command(after_help = "Examples:\n  \
        snapshot-engine resume 17528575\n  \
        snapshot-engine resume snapshot-1752857512540089368 --wait\n  \
        snapshot-engine resume 17528575 --wait --username me --password-stdin < password")]
    Resume(Resume),
    /// Remove a snapshot and its frozen upperdir; its image stays
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  \
        snapshot-engine remove snapshot-1752857512540089368"
    )]
    Remove(OneSnapshot),
    /// Show the pauses of all snapshots of a work directory, by gate
    #[command(after_help = "Examples:\n  \
        snapshot-engine stats\n  \
        snapshot-engine stats --output json")]
    Stats(Place),
    /// Look into images: check, show, compare, unpack, export, mount
    #[command(after_help = "Examples:\n  \
        snapshot-engine image check oci:/var/lib/images:web-1\n  \
        snapshot-engine image inspect /var/lib/images --files\n  \
        snapshot-engine image diff /var/lib/images:web-1 /var/lib/images:web-2")]
    Image(super::image::Images),
    /// Run a container from an image or a snapshot on this machine, by runc or crun and without a daemon
    ///
    /// It has everything that the original had on disk. What it writes is lost with it, unless --rw-dir says where to keep it. Its exit code is the command's.
    #[command(after_help = "Examples:\n  \
        snapshot-engine run /var/lib/images:web-1\n  \
        snapshot-engine run snapshot-1752857512540089368 -- /bin/sh -c 'ls -l /data'\n  \
        snapshot-engine run /var/lib/images:web-1 --network host --rw-dir /var/lib/scratch")]
    Run(super::run::Run),
    /// Containers to try things on, and the whole engine at work on them
    #[command(after_help = "Examples:\n  \
        snapshot-engine demo run\n  \
        snapshot-engine demo start web --workload log,database,churn,tick\n  \
        snapshot-engine demo ticks web\n  \
        snapshot-engine demo stop web")]
    Demo(super::demo::Demos),
    /// Measure what a container feels
    #[command(after_help = "Examples:\n  \
        snapshot-engine bench pause --container web\n  \
        snapshot-engine bench pause --container web --html pause.html")]
    Bench(super::bench::Benches),
    /// Print the completions of a shell
    #[command(after_help = "Examples:\n  \
        snapshot-engine completions bash > /etc/bash_completion.d/snapshot-engine\n  \
        snapshot-engine completions zsh > /usr/share/zsh/site-functions/_snapshot-engine")]
    Completions(Completions),
    /// Print the manual page, or write all pages to a directory
    #[command(after_help = "Examples:\n  \
        snapshot-engine man | man -l -\n  \
        snapshot-engine man /usr/local/share/man/man1")]
    Man(Man),
    /// Finishes an image; started by the engine itself.
    #[command(name = snapshot_engine::pipeline::background::COMMAND, hide = true)]
    Background(OneSnapshot),
}

/// Where snapshots are.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Where snapshots are kept
    #[arg(long, value_name = "DIR", env = "SNAPSHOT_ENGINE_WORK_DIR", default_value = "/tmp", value_hint = ValueHint::DirPath)]
    pub(crate) work_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OneSnapshot {
    /// The snapshot's id, or an unambiguous beginning of it, with or without `snapshot-`
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) one: OneSnapshot,
    /// Make the image in this process and show the progress
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write a page for each command here instead of printing the main one
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["container", "pid"]))]
pub(crate) struct SeamlessCommit {
    /// The container: its name, id or a beginning of the id, at any runtime or at one (docker://, podman://, cri://, containerd://, crun://, runc://)
    #[arg(long, value_name = "CONTAINER")]
    container: Option<ContainerRef>,
    /// Any process of the container, instead of --container
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Where the image goes: oci:DIR:TAG, REGISTRY/REPOSITORY:TAG, oci-archive:FILE[:TAG], dir:DIR, docker-daemon:NAME:TAG, containerd:NAMESPACE/NAME:TAG
    #[arg(long, value_name = "TARGET")]
    target: ImageTarget,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// The container: its name, id or a beginning of the id, at any runtime or at one (docker://NAME), or pid:N for any process of it
    #[arg(value_name = "CONTAINER")]
    container: ContainerRef,
    /// Where the image goes: oci:DIR:TAG, REGISTRY/REPOSITORY:TAG, oci-archive:FILE[:TAG], dir:DIR, docker-daemon:NAME:TAG, containerd:NAMESPACE/NAME:TAG
    #[arg(value_name = "TARGET")]
    target: ImageTarget,
    #[command(flatten)]
    how: How,
}

/// A commit, whichever command asked for it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) container: ContainerRef,
    pub(crate) target: ImageTarget,
    pub(crate) wait: bool,
    pub(crate) options: CommitOptions,
    pub(crate) runtimes: Runtimes,
    pub(crate) reach: Reach,
}

impl From<SeamlessCommit> for Wanted {
    fn from(args: SeamlessCommit) -> Self {
        // clap has seen to it that one of the two is there.
        let container = args.container.unwrap_or(ContainerRef::Pid(args.pid.unwrap_or_default()));
        args.how.wanted(container, args.target)
    }
}

impl From<Commit> for Wanted {
    fn from(args: Commit) -> Self {
        args.how.wanted(args.container, args.target)
    }
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// Make the image in this process and show the progress
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    runtimes: Runtimes,
    #[command(flatten)]
    reach: Reach,
    /// What kind of image is made: nydus, oci (tar layers, which any runtime runs), or auto for what the container's own image is
    #[arg(long, value_name = "FORMAT", default_value_t = ImageFormat::Nydus)]
    format: ImageFormat,
    /// RAFS version of a Nydus image: 6, or 5 for readers of old
    #[arg(long, value_name = "5|6", default_value_t = 6)]
    fs_version: u32,
    /// How chunks or layers are compressed: none, lz4_block (nydus only, and its default), gzip (the default for oci), zstd, or zstd:LEVEL with
    /// a level from 1 to 22
    #[arg(long, value_name = "KIND")]
    compressor: Option<Compressor>,
    /// How chunks are named: blake3, sha256
    #[arg(long, value_name = "KIND", default_value_t = Digester::Blake3)]
    digest: Digester,
    /// Size of a chunk: a power of two from 4KiB to 16MiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size)]
    chunk_size: u64,
    /// What blobs have besides chunks: plain, toc (nydusd can verify its data), inline (the bootstrap too), inline_toc (both, as
    /// nydusify pushes them)
    #[arg(long, value_name = "LAYOUT", default_value_t = BlobLayout::Plain)]
    blob_layout: BlobLayout,
    /// A path in the image that is fetched first when it is mounted, a directory with all below it; may be given more than once
    #[arg(long, value_name = "PATH")]
    prefetch: Vec<PathBuf>,
    /// The image of what is below the container's own layer, so that only that layer is read: bootstrap=FILE[,blobs=DIR]
    #[arg(long, value_name = "IMAGE")]
    parent: Option<KnownImage>,
    /// An image whose chunks are referred to and not stored again, such as an earlier snapshot: bootstrap=FILE[,blobs=DIR]; may be given
    /// more than once
    #[arg(long, value_name = "IMAGE")]
    chunk_dict: Vec<KnownImage>,
    /// Read every file and refer to no earlier image. Otherwise files that have not changed since an earlier snapshot of the same container, made with
    /// the same options in the same work directory, are taken over from its image
    #[arg(long)]
    full: bool,
    /// The OCI image the container was started from, in a layout: its layers are referred to instead of made again: oci:DIR:TAG. Without it, it is
    /// looked for in the target, in the registry that the target is in, and in containerd
    #[arg(long, value_name = "IMAGE")]
    base_image: Option<LayoutImage>,
    /// Paths that are left out: what the container wrote there is not in the image, which shows what is below instead. /var/cache/app with all below it, /tmp/*,
    /// *.pyc anywhere; may be given more than once
    #[arg(long, value_name = "GLOB")]
    without_path: Vec<PathGlob>,
    /// A directory outside the container's own layer that is added to the image, as it stood at the same instant: a volume or bind mount, by the path that the
    /// container has it by. It must lie on the file system of the container's layer; what is mounted below it is not added. May be given more than once
    #[arg(long, value_name = "PATH")]
    with_path: Vec<PathBuf>,
    /// What may hold writers back during the cut: auto, none, fence, freezer
    #[arg(long, value_name = "GATE", default_value_t = GateChoice::Auto)]
    gate: GateChoice,
    /// Whether writes are tracked: auto, or none for one long, honest pause
    #[arg(long, value_name = "TRACKER", default_value_t = TrackerChoice::Auto)]
    tracker: TrackerChoice,
    /// The longest pause allowed: an attempt that would take longer is abandoned (500us, 1ms, 2s)
    #[arg(long, value_name = "DURATION", default_value = "1ms")]
    max_pause: Nanos,
    /// The most rounds of pre-copy
    #[arg(long, value_name = "N", default_value_t = 10)]
    maximum_times: u32,
    /// Threads that make the image
    #[arg(long, value_name = "N", default_value_t = 4)]
    background_workers: u32,
    /// Replace the target if it exists
    #[arg(long)]
    overwrite: bool,
    /// Keep the frozen upperdir when the image is complete (until `remove`)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true")]
    keep_frozen: bool,
    /// A remark for the image's history
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Who made the image
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// A change to the image's config, an instruction as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL,
    /// USER, VOLUME, WORKDIR; may be given more than once
    #[arg(long, short = 'c', value_name = "INSTRUCTION")]
    change: Vec<Change>,
}

impl How {
    fn wanted(self, container: ContainerRef, target: ImageTarget) -> Wanted {
        let options = CommitOptions {
            work_dir: self.place.work_dir,
            format: self.format,
            fs_version: self.fs_version,
            compressor: self.compressor,
            digest: self.digest,
            chunk_size: self.chunk_size,
            blob_layout: self.blob_layout,
            prefetch: self.prefetch,
            parent: self.parent,
            chunk_dict: self.chunk_dict,
            full: self.full,
            base_image: self.base_image,
            without_paths: self.without_path,
            with_paths: self.with_path.iter().map(|path| path.components().collect()).collect(),
            gate: self.gate,
            tracker: self.tracker,
            max_pause: self.max_pause,
            maximum_times: self.maximum_times,
            background_workers: self.background_workers,
            overwrite: self.overwrite,
            keep_frozen: self.keep_frozen,
            message: self.message,
            author: self.author,
            access: self.reach.access(Access::default()),
            changes: self.change,
        };
        Wanted { container, target, wait: self.wait, options, runtimes: self.runtimes, reach: self.reach }
    }
}
