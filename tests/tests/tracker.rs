//! The tracker operation by operation, and its invariants T1 to T4, on real ext4 and XFS, and where the kernel allows fentry on btrfs and tmpfs.
//!
//! Every operation goes through the overlay of a container and is looked for on the upper's inode. What breaks the operation tests: taking any
//! one program out of `track::programs` that the operation depends on (`docs/architecture.md` has the table), or a mark in `ext4.rs`, `xfs.rs`,
//! `any.rs`, `vfs.rs`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FallocateFlags, FileType, IFlags, Mode, OFlags, XattrFlags, fallocate};
use snapshot_ebpf::FAULT_NO_COUNT;
use snapshot_engine::demo::Workload;
use snapshot_engine::kernel::words::Words;
use snapshot_engine::model::dirty::{Dirty, Ino, Watch};
use snapshot_engine::track::{Error, Tracker};
use snapshot_tests::bench::{self, Disk, Running, clean, eventually};
use snapshot_tests::worker::Worker;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const KIB: u64 = 1 << 10;

/// What has to be dirty after an operation.
#[derive(Debug, Clone)]
enum Want {
    /// Metadata: attributes, links, entries.
    Meta(&'static str),
    /// At least these bytes.
    Content(&'static str, Range<u64>),
    /// These bytes and at most two blocks more.
    Exact(&'static str, Range<u64>),
}
use Want::{Content, Exact, Meta};

type Act = Box<dyn Fn(&Path)>;

struct Operation {
    name: &'static str,
    /// Done before anything is watched.
    prepare: Act,
    /// Done after that, without a sync in between.
    warm: Option<Act>,
    act: Act,
    want: Vec<Want>,
}

fn operation(name: &'static str, want: Vec<Want>, act: impl Fn(&Path) + 'static) -> Operation {
    Operation { name, prepare: Box::new(|_| ()), warm: None, act: Box::new(act), want }
}

fn open(dir: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(dir.join("f")).unwrap()
}

fn range(flags: FallocateFlags, at: u64, len: u64) -> impl Fn(&Path) {
    move |d| fallocate(open(d), flags, at, len).unwrap()
}

/// `f` has 1 MiB, `g` and its second name `h` are small, `sub` is a directory, `e` an empty one.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::create_dir(dir.join("e")).unwrap();
    fs::write(dir.join("f"), vec![7; 1 << 20]).unwrap();
    fs::write(dir.join("g"), "small").unwrap();
    fs::hard_link(dir.join("g"), dir.join("h")).unwrap();
    rustix::fs::lsetxattr(dir.join("f"), "trusted.had", b"1", XattrFlags::empty()).unwrap();
}

fn contents() -> Vec<Operation> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let store = |d: &Path, value| {
        let words = Words::map(open(d), 100_000 / 8).unwrap();
        words.as_slice()[80_000 / 8].store(value, SeqCst);
        drop(words);
    };
    let mut all = vec![
        operation("write", vec![Exact("f", 0..10)], |d| (&open(d)).write_all(b"0123456789").unwrap()),
        operation("pwrite", vec![Exact("f", 700_000..700_100)], |d| {
            open(d).write_all_at(&[1; 100], 700_000).unwrap();
        }),
        operation("append", vec![Content("f", 1 << 20..(1 << 20) + 9), Meta("f")], |d| {
            OpenOptions::new().append(true).open(d.join("f")).unwrap().write_all(b"last line").unwrap();
        }),
        // Down and up between two looks leaves the size as it was, so the bytes have to be dirty.
        operation("truncate down and up", vec![Meta("f"), Content("f", 5000..1 << 20)], |d| {
            open(d).set_len(5000).unwrap();
            open(d).set_len(1 << 20).unwrap();
        }),
        operation("truncate up", vec![Meta("f")], |d| open(d).set_len(3 << 20).unwrap()),
        operation("fallocate", vec![Meta("f")], range(FallocateFlags::empty(), 2 << 20, 64 * KIB)),
        operation("punch", vec![Content("f", 128 * KIB..192 * KIB)], range(punch, 128 * KIB, 64 * KIB)),
        operation(
            "zero",
            vec![Content("f", 130 * KIB..150 * KIB)],
            range(FallocateFlags::ZERO_RANGE, 130 * KIB, 20 * KIB),
        ),
        operation(
            "collapse",
            vec![Content("f", 64 * KIB..(1 << 20) - 64 * KIB)],
            range(FallocateFlags::COLLAPSE_RANGE, 64 * KIB, 64 * KIB),
        ),
        operation(
            "insert",
            vec![Content("f", 64 * KIB..(1 << 20) + 64 * KIB)],
            range(FallocateFlags::INSERT_RANGE, 64 * KIB, 64 * KIB),
        ),
        operation("direct write", vec![Content("f", 64 * KIB..68 * KIB)], |d| {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(OFlags::DIRECT.bits().cast_signed())
                .open(d.join("f"))
                .unwrap();
            let buffer = vec![3u8; 12 << 10];
            let at = buffer.as_ptr().align_offset(4096);
            assert_eq!(file.write_at(&buffer[at..at + 4096], 64 * KIB).unwrap(), 4096);
        }),
        operation("sendfile", vec![Content("f", 0..5), Meta("f")], |d| {
            rustix::fs::sendfile(open(d), File::open(d.join("g")).unwrap(), None, 5).unwrap();
        }),
        operation("copy_file_range", vec![Content("f", 300_000..300_005)], |d| {
            let (from, to) = (File::open(d.join("g")).unwrap(), open(d));
            let mut at = 300_000;
            rustix::fs::copy_file_range(from, None, to, Some(&mut at), 5).unwrap();
        }),
        operation("store into a mapped clean page", vec![Content("f", 80_000..80_008)], move |d| store(d, 1)),
    ];
    let mut again = operation("pwrite to a dirty page", vec![Exact("f", 200_000..200_010)], |d| {
        open(d).write_all_at(&[2; 10], 200_000).unwrap();
    });
    again.warm = Some(Box::new(|d| open(d).write_all_at(&[1; 10], 200_000).unwrap()));
    all.push(again);
    all
}

fn names() -> Vec<Operation> {
    vec![
        operation("create", vec![Meta("sub")], |d| drop(File::create(d.join("sub/new")).unwrap())),
        operation("rename", vec![Meta("."), Meta("sub"), Meta("f")], |d| {
            fs::rename(d.join("f"), d.join("sub/f2")).unwrap();
        }),
        operation("rename over", vec![Meta("."), Meta("g")], |d| {
            fs::rename(d.join("f"), d.join("g")).unwrap();
        }),
        operation("link", vec![Meta("sub"), Meta("f")], |d| {
            fs::hard_link(d.join("f"), d.join("sub/l")).unwrap();
        }),
        operation("symlink", vec![Meta("sub")], |d| symlink("x", d.join("sub/s")).unwrap()),
        operation("unlink of one of two names", vec![Meta("."), Meta("h")], |d| {
            fs::remove_file(d.join("g")).unwrap();
        }),
        operation("mkdir", vec![Meta("sub")], |d| fs::create_dir(d.join("sub/d")).unwrap()),
        operation("rmdir", vec![Meta(".")], |d| fs::remove_dir(d.join("e")).unwrap()),
        operation("mknod", vec![Meta("sub")], |d| {
            rustix::fs::mknodat(CWD, d.join("sub/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
    ]
}

fn attributes() -> Vec<Operation> {
    vec![
        operation("chmod", vec![Meta("f")], |d| {
            fs::set_permissions(d.join("f"), fs::Permissions::from_mode(0o640)).unwrap();
        }),
        operation("chmod of a directory", vec![Meta("sub")], |d| {
            fs::set_permissions(d.join("sub"), fs::Permissions::from_mode(0o711)).unwrap();
        }),
        operation("chown", vec![Meta("f")], |d| {
            std::os::unix::fs::chown(d.join("f"), Some(5), Some(6)).unwrap();
        }),
        operation("utimens", vec![Meta("f")], |d| {
            open(d).set_modified(std::time::UNIX_EPOCH + Duration::from_secs(99)).unwrap();
        }),
        operation("setxattr", vec![Meta("f")], |d| {
            rustix::fs::lsetxattr(d.join("f"), "trusted.new", b"v", XattrFlags::empty()).unwrap();
        }),
        operation("setxattr again", vec![Meta("f")], |d| {
            rustix::fs::lsetxattr(d.join("f"), "trusted.had", b"2", XattrFlags::empty()).unwrap();
        }),
        operation("removexattr", vec![Meta("f")], |d| {
            rustix::fs::lremovexattr(d.join("f"), "trusted.had").unwrap();
        }),
        operation("chattr", vec![Meta("f")], |d| {
            let file = open(d);
            let flags = rustix::fs::ioctl_getflags(&file).unwrap();
            rustix::fs::ioctl_setflags(&file, flags | IFlags::NODUMP).unwrap();
        }),
    ]
}

fn operations(kind: &str) {
    if !bench::root() {
        return;
    }
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let Some(mut tracker) = bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap() else { return };
    println!("{kind}: changes are told by {}", tracker.backend());
    let mut all = contents();
    all.extend(names());
    all.extend(attributes());
    let given = all.len();
    all.retain(|operation| offers(&disk, operation.name));
    assert!(all.len() == given || matches!(kind, "btrfs" | "tmpfs"), "{kind} has all of them");
    if matches!(kind, "xfs" | "btrfs") {
        all.push(operation("clone", vec![Content("f", 0..4096)], |d| {
            let from = File::create_new(d.join("sub/from")).unwrap();
            from.write_all_at(&[9; 8192], 0).unwrap();
            rustix::fs::ioctl_ficlone(open(d), File::open(d.join("sub/from")).unwrap()).unwrap();
        }));
    }
    // A lower file is copied up by opening it for writing: its directory has a new entry.
    let mut copy_up = operation("copy-up by open", vec![Meta("../../../etc")], |d| {
        drop(OpenOptions::new().write(true).open(d.join("../../../etc/layer")).unwrap());
    });
    copy_up.prepare = Box::new(|d| {
        fs::set_permissions(d.join("../../../etc"), fs::Permissions::from_mode(0o750)).unwrap();
    });
    all.push(copy_up);
    let mut wrong = Vec::new();
    for (n, operation) in all.iter().enumerate() {
        if let Err(why) = perform(&demo, &disk, &mut tracker, n, operation) {
            wrong.push(format!("{kind}, {}: {why}", operation.name));
        }
    }
    println!("{kind}: {} operations, {} wrong", all.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tracker.skipped().unwrap(), 0, "the kernel skipped programs");
}

/// Whether a file system has an operation at all: btrfs cannot collapse, tmpfs not before Linux 6.6 be written to directly.
fn offers(disk: &Disk, operation: &str) -> bool {
    let path = disk.path().join("offers");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    match operation {
        "zero" => fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4 * KIB).is_ok(),
        "collapse" => fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 64 * KIB).is_ok(),
        "insert" => fallocate(&file, FallocateFlags::INSERT_RANGE, 0, 64 * KIB).is_ok(),
        "chattr" => rustix::fs::ioctl_getflags(&file).is_ok(),
        "direct write" => {
            let direct = OFlags::DIRECT.bits().cast_signed();
            OpenOptions::new().write(true).custom_flags(direct).open(&path).is_ok()
        }
        _ => true,
    }
}

fn ino(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

fn perform(
    demo: &Running,
    disk: &Disk,
    tracker: &mut Tracker,
    n: usize,
    operation: &Operation,
) -> Result<(), String> {
    let below = format!("srv/ops/{n}");
    let (inside, upper) = (demo.root().unwrap().join(&below), demo.upper().join(&below));
    furnish(&inside);
    (operation.prepare)(&inside);
    rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
    let wanted = operation.want.iter().map(|want| match want {
        Meta(name) | Content(name, _) | Exact(name, _) => *name,
    });
    let inodes: HashMap<&str, u64> = wanted.map(|name| (name, ino(&upper.join(name)))).collect();
    for ino in inodes.values() {
        tracker.watch(Ino(*ino), 1 << 20).unwrap();
    }
    if let Some(warm) = &operation.warm {
        warm(&inside);
    }
    clean(tracker);
    (operation.act)(&inside);
    let taken = tracker.take();
    let verdict = operation.want.iter().try_for_each(|want| {
        let (Meta(name) | Content(name, _) | Exact(name, _)) = want;
        match taken.iter().find(|d| d.ino.0 == inodes[name]) {
            Some(dirty) if fits(want, dirty) => Ok(()),
            other => Err(format!("{want:?} is not met by {other:?}")),
        }
    });
    for ino in inodes.values() {
        tracker.unwatch(Ino(*ino));
    }
    verdict
}

fn covers(dirty: &Dirty, range: &Range<u64>) -> bool {
    let mut at = range.start;
    for r in &dirty.ranges {
        if r.start <= at && at < r.end {
            at = r.end;
        }
    }
    dirty.whole || at >= range.end || dirty.tail.is_some_and(|tail| tail <= at)
}

fn fits(want: &Want, dirty: &Dirty) -> bool {
    match want {
        Meta(_) => dirty.meta,
        Content(_, range) => covers(dirty, range),
        Exact(_, range) => {
            let bytes: u64 = dirty.ranges.iter().map(|r| r.end - r.start).sum();
            covers(dirty, range) && !dirty.whole && dirty.tail.is_none() && bytes <= 192 * KIB
        }
    }
}

#[test]
fn every_operation_is_seen_on_ext4() {
    operations("ext4");
}

#[test]
fn every_operation_is_seen_on_xfs() {
    operations("xfs");
}

#[test]
fn every_operation_is_seen_on_btrfs() {
    operations("btrfs");
}

#[test]
fn every_operation_is_seen_on_tmpfs() {
    operations("tmpfs");
}

/// A demo with a tracker, and a worker inside.
fn scene(kind: &str) -> (Disk, Running, Tracker, Worker) {
    let disk = Disk::new(kind).unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let tracker = bench::tracker(&[&demo.target().unwrap()]).unwrap();
    let worker = Worker::start(WORKER, &demo).unwrap();
    (disk, demo, tracker, worker)
}

/// T1: the ring holds 65536 slots; 80000 become dirty between two looks. Breaks without the comparison of `ring_lost` in `Tracker::take`.
#[test]
fn t1_an_overflowing_ring_loses_nothing() {
    if !bench::root() {
        return;
    }
    const FILES: usize = 80_000;
    let disk = Disk::new("ext4").unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let mut scope = bench::scope(&[&demo.target().unwrap()], 0).unwrap();
    scope.inodes = FILES as u64;
    let mut tracker = Tracker::start(&scope).unwrap();
    let dir = demo.upper().join("srv/many");
    fs::create_dir(&dir).unwrap();
    let files: Vec<PathBuf> = (0..FILES).map(|n| dir.join(n.to_string())).collect();
    for file in &files {
        let file = File::create(file).unwrap();
        tracker.watch(Ino(file.metadata().unwrap().ino()), 0).unwrap();
    }
    rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
    clean(&mut tracker);
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(tracker.live().stamp().lost > 0, "the ring did not overflow: this test proves nothing");
    let dirty: std::collections::HashSet<u64> =
        tracker.take().into_iter().filter(|d| d.meta).map(|d| d.ino.0).collect();
    let lost = files.iter().filter(|file| !dirty.contains(&ino(file))).count();
    assert_eq!(lost, 0, "changes of {lost} files were lost");
    // And it works on afterwards.
    clean(&mut tracker);
    fs::set_permissions(&files[5], fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(tracker.take().iter().map(|d| d.ino.0).collect::<Vec<_>>(), [ino(&files[5])]);
}

/// T1: a write behind the blocks that have bits. Breaks without TAIL in `slots::word`.
#[test]
fn t1_a_write_behind_the_bits_is_the_tail() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let (_disk, demo, mut tracker, mut worker) = scene(kind);
        worker.ask("write /srv/far 0 10 1").unwrap();
        let far = ino(&demo.upper().join("srv/far"));
        tracker.watch(Ino(far), 10).unwrap();
        clean(&mut tracker);
        worker.ask("write /srv/far 3000000000 10 1").unwrap();
        let dirty = tracker.take().into_iter().find(|d| d.ino.0 == far).unwrap();
        assert!(covers(&dirty, &(3_000_000_000..3_000_000_010)), "{dirty:?}");
        // A file that was large when it was watched has bits for all of it.
        tracker.unwatch(Ino(far));
        tracker.watch(Ino(far), 3_000_000_010).unwrap_or(());
        clean(&mut tracker);
        worker.ask("write /srv/far 2500000000 10 1").unwrap();
        let dirty = tracker.take().into_iter().find(|d| d.ino.0 == far).unwrap();
        assert!(covers(&dirty, &(2_500_000_000..2_500_000_010)), "{dirty:?}");
    }
}

/// T2: settle says no while a call is under way that may yet change something, and yes when it has ended. Breaks without the counting in
/// `count::enter` (which the planted fault shows), and without the waiting in `Tracker::settle`.
#[test]
fn t2_settle_waits_for_calls_under_way() {
    if !bench::root() {
        return;
    }
    let (_disk, demo, mut tracker, mut worker) = scene("ext4");
    assert!(tracker.settle(), "nobody does anything");
    worker.tell("splice /srv/spliced 1500").unwrap();
    eventually("the file is there", || demo.upper().join("srv/spliced").exists());
    eventually("the call is counted", || tracker.live().in_flight() == 1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!tracker.settle(), "a call that will change a file is under way");
    worker.answer(Duration::from_secs(10)).unwrap().unwrap();
    assert!(tracker.settle() && tracker.live().in_flight() == 0);
    // Whoever waits in open(2) for the other end of a FIFO changes nothing, and may wait for ever.
    worker.ask("fifo /srv/pipe").unwrap();
    worker.tell("open /srv/pipe").unwrap();
    eventually("the open is counted", || tracker.live().in_flight() == 1);
    // On its way to where it sleeps.
    std::thread::sleep(Duration::from_millis(20) * bench::slack());
    assert!(tracker.settle(), "it is not to be waited for");
    // The overlay's FIFO and the upper's are two.
    let _reader = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(demo.root().unwrap().join("srv/pipe"))
        .unwrap();
    worker.answer(Duration::from_secs(10)).unwrap().unwrap();
    eventually("nobody is inside", || tracker.live().in_flight() == 0);
    // Long writes, but not too long to be waited for: whenever settle says yes, the write is complete.
    let len = (48 << 20) / u64::from(bench::slack());
    let mut waited = 0;
    for n in 0..8 {
        let path = demo.upper().join(format!("srv/long{n}"));
        let size = || fs::metadata(&path).map_or(0, |file| file.len());
        worker.tell(&format!("write /srv/long{n} 0 {len} 1")).unwrap();
        eventually("the write has begun", || size() > 0);
        let (under_way, began) = (size() < len, Instant::now());
        if tracker.settle() {
            assert_eq!(size(), len, "settled in the middle of a write");
            waited += u32::from(under_way);
        }
        println!("settled after {:?}", began.elapsed());
        worker.answer(Duration::from_secs(20)).unwrap().unwrap();
    }
    println!("{waited} of 8 writes were waited for");
    // The check above is sharp: without the counting settle says yes in the middle of a call.
    drop(tracker);
    let scope = bench::scope(&[&demo.target().unwrap()], FAULT_NO_COUNT).unwrap();
    let mut broken = Tracker::start(&scope).unwrap();
    worker.tell("splice /srv/again 1000").unwrap();
    eventually("the file is there", || demo.upper().join("srv/again").exists());
    std::thread::sleep(Duration::from_millis(50));
    assert!(broken.settle(), "the planted fault was not there");
    worker.answer(Duration::from_secs(10)).unwrap().unwrap();
}

/// T3: what is put back is dirty again. Breaks without `again.push` in `Tracker::put_back`.
#[test]
fn t3_what_is_put_back_is_dirty_again() {
    if !bench::root() {
        return;
    }
    let (_disk, demo, mut tracker, mut worker) = scene("xfs");
    worker.ask("write /srv/f 0 1000000 1").unwrap();
    let f = ino(&demo.upper().join("srv/f"));
    tracker.watch(Ino(f), 1_000_000).unwrap();
    clean(&mut tracker);
    worker.ask("write /srv/f 500000 10 2").unwrap();
    let first = tracker.take();
    assert!(covers(first.iter().find(|d| d.ino.0 == f).unwrap(), &(500_000..500_010)));
    assert_eq!(tracker.take(), []);
    tracker.put_back(&first);
    // A change on top of it is not lost either.
    worker.ask("write /srv/f 100 10 3").unwrap();
    let again = tracker.take();
    let dirty = again.iter().find(|d| d.ino.0 == f).unwrap();
    assert!(covers(dirty, &(500_000..500_010)) && covers(dirty, &(100..110)), "{dirty:?}");
}

/// T4: stores before and after a file is watched, to clean and to dirty pages. Breaks without MAPPED in `slots::queue` or the probe's
/// answer (`calls::probe`).
#[test]
fn t4_a_mapped_file_is_told_and_its_stores_are_seen() {
    if !bench::root() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs"] {
        let disk = Disk::new(kind).unwrap();
        let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
        let Some(mut tracker) = bench::tracker_if_allowed(&[&demo.target().unwrap()]).unwrap() else {
            continue;
        };
        let mut worker = Worker::start(WORKER, &demo).unwrap();
        let before = tracker.live().stamp().mappings;
        worker.ask("map /srv/map 8192").unwrap();
        worker.ask("store /srv/map 0 1").unwrap();
        assert!(tracker.live().stamp().mappings > before, "the mapping was not noticed");
        let path = demo.upper().join("srv/map");
        let file = File::open(&path).unwrap();
        tracker.watch(Ino(ino(&path)), 65536).unwrap();
        use std::os::fd::AsFd;
        assert!(tracker.probe(file.as_fd(), false).mapped, "{kind}: the probe says it is not mapped");
        for round in 0..5 {
            // As a round does: the pages are cleaned, so that the next store is an event.
            file.sync_all().unwrap();
            clean(&mut tracker);
            worker.ask(&format!("store /srv/map 4096 {round}")).unwrap();
            let dirty = tracker.take();
            let dirty = dirty.iter().find(|d| d.ino.0 == ino(&path));
            assert!(dirty.is_some_and(|d| covers(d, &(32768..32776))), "{kind}, {round}: {dirty:?}");
        }
        worker.ask("unmap /srv/map").unwrap();
        assert!(!tracker.probe(file.as_fd(), false).mapped, "{kind}: nobody maps it any more");
    }
}

/// T5: file systems without a backend are named, and the remedy is told.
#[test]
fn t5_an_unknown_file_system_is_named() {
    if !bench::root() {
        return;
    }
    let disk = Disk::new("tmpfs").unwrap();
    let demo = Running::start(INIT, &disk, Workload::idle()).unwrap();
    let target = demo.target().unwrap();
    for fs in ["f2fs", "nfs", "overlay"] {
        let mut scope = bench::scope(&[&target], 0).unwrap();
        assert_eq!(scope.file_system, "tmpfs");
        fs.clone_into(&mut scope.file_system);
        let error = Tracker::start(&scope).unwrap_err();
        assert!(matches!(error, Error::UnsupportedFileSystem { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(fs) && text.contains("--tracker none"), "{text}");
    }
}
