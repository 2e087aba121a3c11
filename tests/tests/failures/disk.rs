//! Disks that are full or broken: below the work directory (the shadow, the frozen tree's build) and below the image's target. `a_full_disk` in
//! `tests/tests/bad_input.rs` goes through every size of a work directory; here are the other ways to run out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use snapshot_engine::demo::Seed;
use snapshot_tests::engine::{self, Ended};
use snapshot_tests::host;
use snapshot_tests::root_or_skip;
use snapshot_tests::running::Running;

use super::INIT;

/// A tmpfs that goes away with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path, options: &str) -> Tmpfs {
        fs::create_dir_all(at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Tmpfs(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// An ext4 file system whose disk fails writes with EIO: a loop device over a sparse file on a tmpfs that is full but for some KiB.
struct Broken {
    at: PathBuf,
    below: Tmpfs,
}

impl Broken {
    fn new(place: &Path, left_kib: u64) -> Broken {
        let below = Tmpfs::new(&place.join("below"), "size=24m");
        let (image, at) = (below.0.join("image"), place.join("broken"));
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        // The file system's own tables are written in full, and the directories below are there: what fails is content. A file system that loses
        // its tables loses files that were synced, and no program can make that good.
        let tables = [
            "-O",
            "^has_journal,^uninit_bg,^metadata_csum",
            "-N",
            "512",
            "-E",
            "nodiscard,lazy_itable_init=0",
        ];
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).args(tables).arg(&image));
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop,errors=continue"]).arg(&image).arg(&at));
        fs::create_dir_all(at.join("layout/blobs/sha256")).unwrap();
        fs::write(at.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        rustix::fs::syncfs(fs::File::open(&at).unwrap()).unwrap();
        let broken = Broken { at, below };
        let free = rustix::fs::statvfs(&broken.below.0).unwrap();
        let filler = (free.f_bfree * free.f_bsize).saturating_sub(left_kib << 10);
        fs::write(broken.filler(), vec![0; usize::try_from(filler).unwrap()]).unwrap();
        broken
    }

    fn filler(&self) -> PathBuf {
        self.below.0.join("filler")
    }

    /// The disk works again, and forgets what it had cached: only what really was written is there.
    fn mend(&self) {
        fs::remove_file(self.filler()).unwrap();
        run(Command::new("umount").arg(&self.at));
        // What the disk lost of the file system's own tables is not ours to make good. 1: errors were corrected.
        let image = self.below.0.join("image");
        let status = Command::new("e2fsck").arg("-fy").arg(&image).output().unwrap().status;
        assert!(status.code().is_some_and(|code| code < 4), "{status}");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&self.at));
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        for _ in 0..20 {
            if Command::new("umount").arg(&self.at).output().is_ok_and(|o| o.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A container, a work directory and a target.
struct Lab {
    demo: Running,
    dir: tempfile::TempDir,
    programs: BTreeSet<u32>,
}

impl Lab {
    fn new(name: &str, bytes: u64) -> Lab {
        let programs = host::programs();
        let demo = Running::start(INIT, name, "write-tick", Seed { files: 30, bytes }).unwrap();
        Lab { demo, dir: tempfile::Builder::new().prefix("snapshot-disk-").tempdir().unwrap(), programs }
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn commit(&self, work: &Path, layout: &Path) -> Ended {
        let (work, target) = (work.to_string_lossy(), format!("oci:{}:t", layout.display()));
        let args = ["commit", self.demo.name(), &target, "--work-dir", &work, "--wait"];
        let more = ["--compressor", "none", "--max-pause", "50ms"];
        engine::run(args.into_iter().chain(more)).unwrap()
    }

    /// Refused: exit code 1, the reason and a remedy; the container goes on, and of the snapshot nothing is left.
    fn must_refuse(&self, ended: &Ended, work: &Path, reasons: &[&str]) {
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(reasons.iter().any(|reason| ended.stderr.contains(reason)), "{ended:#?}");
        assert!(ended.stderr.contains("--work-dir"), "no remedy: {ended:#?}");
        self.demo.goes_on().unwrap();
        let snapshots = work.join("snapshot-engine/snapshots");
        if snapshots.exists() {
            let left: Vec<_> = fs::read_dir(snapshots).unwrap().flatten().map(|e| e.file_name()).collect();
            assert!(left.is_empty(), "{left:?} is left: {ended:#?}");
        }
        host::must_be_clean(&self.programs, &work.join("snapshot-engine")).unwrap();
    }
}

/// Every blob of a layout has the digest it is named by.
fn blobs_are_whole(layout: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("sha256sum").arg(&path).output().unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(&*name), "{}", path.display());
        count += 1;
    }
    count
}

/// The file system of the work directory has room for the content, and no inodes for the directories of the frozen tree.
#[test]
fn no_inodes_for_building_the_frozen_tree() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new("disk-inodes", 1 << 20);
    let root = PathBuf::from(format!("/proc/{}/root/srv/dirs", lab.demo.init().unwrap()));
    (0..400).for_each(|n| fs::create_dir_all(root.join(n.to_string())).unwrap());
    for inodes in [80, 200, 400] {
        let disk = Tmpfs::new(&lab.work(), &format!("size=64m,mode=755,nr_inodes={inodes}"));
        let ended = lab.commit(&lab.work(), &lab.dir.path().join("layout"));
        lab.must_refuse(&ended, &lab.work(), &["No space left"]);
        drop(disk);
    }
    let _disk = Tmpfs::new(&lab.work(), "size=64m,mode=755,nr_inodes=4000");
    lab.commit(&lab.work(), &lab.dir.path().join("layout")).must_succeed().unwrap();
}

/// The disk below the work directory fails writes, sooner or later: there is no snapshot, as its bytes are not durable. Breaks without `syncfs` in
/// `Shadow::freeze`: the page cache took everything.
#[test]
fn a_work_directory_on_a_broken_disk() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new("disk-broken", 4 << 20);
    for left_kib in [64, 512, 2048] {
        let place = tempfile::tempdir_in(lab.dir.path()).unwrap();
        let broken = Broken::new(place.path(), left_kib);
        let work = broken.at.join("work");
        fs::create_dir(&work).unwrap();
        let ended = lab.commit(&work, &lab.dir.path().join(format!("layout-{left_kib}")));
        println!("{left_kib} KiB left: {}", ended.stderr.trim());
        lab.must_refuse(&ended, &work, &["Input/output error", "No space left"]);
    }
}

/// The target's disk is full, or fails writes: the cut stands, the image is `failed` and says what to do; with room it is resumed; on the full
/// disk its blobs are whole then.
#[test]
fn a_target_on_a_full_or_broken_disk() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new("disk-target", 4 << 20);
    let resume = |work: &Path| {
        let listed = engine::list(work).unwrap();
        let [snapshot] = &listed[..] else { panic!("{listed:#?}") };
        assert_eq!(snapshot["state"], "failed", "{snapshot:#}");
        assert!(snapshot["record"]["failure"]["remedy"].is_string(), "{snapshot:#}");
        let id = snapshot["snapshot_id"].as_str().unwrap();
        engine::run(["resume", id, "--wait", "--work-dir", &work.to_string_lossy()]).unwrap()
    };
    for kib in [16, 300, 2000] {
        let (work, target) =
            (lab.dir.path().join(format!("work-{kib}")), lab.dir.path().join(format!("t-{kib}")));
        let disk = Tmpfs::new(&target, &format!("size={kib}k,mode=755"));
        let layout = target.join("layout");
        lab.commit(&work, &layout).must_fail(1, &["No space left", "help: "]).unwrap();
        lab.demo.goes_on().unwrap();
        resume(&work).must_fail(1, &["No space left"]).unwrap();
        mount_remount(&disk.0, MountFlags::empty(), c"size=64m").unwrap();
        resume(&work).must_succeed().unwrap();
        assert!(blobs_are_whole(&layout) >= 3, "{kib}");
    }
    for left_kib in [64, 1024] {
        let work = lab.dir.path().join(format!("work-broken-{left_kib}"));
        let place = tempfile::tempdir_in(lab.dir.path()).unwrap();
        let broken = Broken::new(place.path(), left_kib);
        let layout = broken.at.join("layout");
        let ended = lab.commit(&work, &layout);
        println!("{left_kib} KiB left: {}", ended.stderr.trim());
        ended.must_fail(1, &["help: "]).unwrap();
        assert!(ended.stderr.contains("Input/output error") || ended.stderr.contains("No space left"));
        lab.demo.goes_on().unwrap();
        broken.mend();
        resume(&work).must_succeed().unwrap();
        // Also those that were placed before the error: `resume` reads them back from the disk.
        assert!(blobs_are_whole(&layout) >= 3, "{left_kib}");
    }
    host::must_be_clean(&lab.programs, &lab.dir.path().join("work-16")).unwrap();
}
