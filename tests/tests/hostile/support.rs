//! A container, the engine at it, and what must not be touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use serde_json::Value;
use snapshot_engine::demo::Workload;
use snapshot_engine::image::mount::{Mounted, mount_files};
use snapshot_tests::bench::{self, Disk, Running};
use snapshot_tests::engine::{self, Ended, Started};
use snapshot_tests::listing::{Depth, Listing, list, must_equal};
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// What stands in the files that must never be read.
pub(crate) const SECRET: &str = "never-to-be-read-by-anyone";

/// How a command ended, and what it took.
pub(crate) struct Measured {
    pub(crate) ended: Ended,
    pub(crate) took: Duration,
    /// The most memory it had, in KiB (`VmHWM`).
    pub(crate) peak: u64,
}

impl Measured {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.ended.code, Some(0), "{:#?}", self.ended);
        self.ended.json().unwrap()
    }
}

/// A container on a disk of its own.
pub(crate) struct Victim {
    // Dropped in this order.
    pub(crate) worker: Worker,
    pub(crate) container: Running,
    pub(crate) disk: Disk,
}

impl Victim {
    pub(crate) fn new(file_system: &str) -> Victim {
        Victim::on(Disk::new(file_system).unwrap())
    }

    pub(crate) fn on(disk: Disk) -> Victim {
        let container = Running::start(INIT, &disk, Workload::idle()).unwrap();
        let worker = Worker::start(WORKER, &container).unwrap();
        Victim { worker, container, disk }
    }

    /// Its root, as it sees it itself.
    pub(crate) fn root(&self) -> PathBuf {
        self.container.root().unwrap()
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.disk.path().join("work")
    }

    fn run(&self, args: &[&str]) -> Measured {
        let work = self.work();
        let args = args.iter().copied().chain(["--work-dir", work.to_str().unwrap()]);
        let mut command = engine::engine(args);
        let began = Instant::now();
        let mut started = Started::new(&mut command).unwrap();
        let status = format!("/proc/{}/status", started.pid());
        let mut peak = 0;
        while started.runs().unwrap() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let now = line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok());
            peak = peak.max(now.unwrap_or(0));
            assert!(began.elapsed() < Duration::from_secs(600), "it does not end: {args:?}", args = command);
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = began.elapsed();
        Measured { ended: started.end().unwrap(), took, peak }
    }

    /// The whole way to an image that the kernel can mount, with time for a noisy machine.
    pub(crate) fn commit(&self, more: &[&str]) -> Measured {
        let target = format!("oci:{}:hostile", self.disk.path().join("layout").display());
        let mut args = vec!["commit", self.container.0.name(), &target, "--wait", "--overwrite"];
        args.extend(["--compressor", "none", "--max-pause", "200ms", "--maximum-times", "40"]);
        if !more.contains(&"--output") {
            args.extend(["--output", "json"]);
        }
        args.extend(more);
        self.run(&args)
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Measured {
        self.run(args)
    }

    /// The image of a result, mounted.
    pub(crate) fn mount(&self, result: &Value) -> Mounted {
        let image = &result["image"];
        let blobs: Vec<PathBuf> =
            image["blobs"].as_array().unwrap().iter().map(|b| b.as_str().unwrap().into()).collect();
        let blobs: Vec<&Path> = blobs.iter().map(PathBuf::as_path).collect();
        let at = self.disk.path().join(bench::unique("image"));
        fs::create_dir(&at).unwrap();
        mount_files(Path::new(image["bootstrap"].as_str().unwrap()), &blobs, &at).unwrap()
    }

    /// The blob's bytes are the files' own: nothing is compressed.
    pub(crate) fn nothing_leaked(&self, result: &Value) {
        let frozen = PathBuf::from(result["old_upper_dir"].as_str().unwrap());
        assert_eq!(find_secret(&frozen), None);
        for blob in result["image"]["blobs"].as_array().unwrap() {
            assert!(!has_secret(&fs::read(blob.as_str().unwrap()).unwrap()), "in {blob}");
        }
    }
}

pub(crate) fn frozen(result: &Value) -> PathBuf {
    result["old_upper_dir"].as_str().unwrap().into()
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

/// The first file below a directory that has the secret.
fn find_secret(root: &Path) -> Option<PathBuf> {
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() && has_secret(&fs::read(entry.path()).unwrap()) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// A tree outside of the container, on the same file system, that looks like one inside of it.
pub(crate) struct Canary {
    pub(crate) at: PathBuf,
    before: Listing,
    watch: std::os::fd::OwnedFd,
}

impl Canary {
    pub(crate) fn new(at: PathBuf) -> Canary {
        fs::create_dir_all(at.join("below")).unwrap();
        for name in ["secret", "below/secret"] {
            fs::write(at.join(name), SECRET).unwrap();
        }
        let before = list(&at, Depth::Untouched).unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        for path in ["", "below", "secret", "below/secret"] {
            inotify::add_watch(&watch, at.join(path), inotify::WatchFlags::ALL_EVENTS).unwrap();
        }
        Canary { at, before, watch }
    }

    /// Watches the inodes of an upperdir that must not be opened, too.
    pub(crate) fn watch_opens(&self, path: &Path) {
        inotify::add_watch(&self.watch, path, inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS)
            .unwrap();
    }

    /// Not opened, not read, not listed, not changed: the kernel has not one event to tell.
    pub(crate) fn must_sing(self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        match reader.next() {
            Err(rustix::io::Errno::AGAIN) => {}
            Ok(event) => panic!("touched: {:?} {:?}", event.events(), event.file_name()),
            Err(e) => panic!("{e}"),
        }
        must_equal(&self.before, &list(&self.at, Depth::Untouched).unwrap()).unwrap();
    }
}
