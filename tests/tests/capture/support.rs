//! A scripted tracker, and two trees compared entry by entry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use snapshot_engine::capture::{Round, Shadow, ShadowOptions};
use snapshot_engine::model::dirty::{Dirty, Full, Ino, Probe, Watch};
use snapshot_engine::model::progress::Quiet;

/// What runs inside `settle`, between the two listings of a round.
pub(crate) type Hook = Box<dyn FnMut(&mut Tracker)>;

/// A tracker that is told what happens instead of hearing it from the kernel; like the real one it is deaf to inodes it does not watch.
#[derive(Default)]
pub(crate) struct Tracker {
    pub(crate) watched: HashSet<u64>,
    pub(crate) dirty: BTreeMap<u64, Dirty>,
    pub(crate) room: Option<usize>,
    pub(crate) unsettled: bool,
    pub(crate) probe: Probe,
}

#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) tracker: Tracker,
    pub(crate) hook: Option<Hook>,
}

impl Tracker {
    pub(crate) fn event(&mut self, ino: u64, whole: bool, tail: Option<u64>, range: Option<(u64, u64)>) {
        if !self.watched.contains(&ino) {
            return;
        }
        let dirty = self.dirty.entry(ino).or_insert(Dirty {
            ino: Ino(ino),
            meta: true,
            whole: false,
            direct: false,
            tail: None,
            ranges: Vec::new(),
        });
        dirty.meta = true;
        dirty.whole |= whole;
        dirty.tail = dirty.tail.into_iter().chain(tail).min();
        if let Some((from, to)) = range {
            let block = 64 << 10;
            dirty.ranges.push(from / block * block..to.div_ceil(block) * block);
        }
    }
    pub(crate) fn meta(&mut self, path: &Path) {
        if let Ok(meta) = path.symlink_metadata() {
            self.event(meta.ino(), false, None, None);
        }
    }
    pub(crate) fn names(&mut self, path: &Path) {
        self.meta(path.parent().unwrap());
        self.meta(path);
    }
}

impl Watch for Fake {
    fn watch(&mut self, ino: Ino, _: u64) -> Result<(), Full> {
        if self.tracker.room.is_some_and(|room| self.tracker.watched.len() >= room) {
            return Err(Full);
        }
        self.tracker.watched.insert(ino.0);
        Ok(())
    }
    fn unwatch(&mut self, ino: Ino) {
        self.tracker.watched.remove(&ino.0);
        self.tracker.dirty.remove(&ino.0);
    }
    fn take(&mut self) -> Vec<Dirty> {
        std::mem::take(&mut self.tracker.dirty).into_values().collect()
    }
    fn put_back(&mut self, dirty: &[Dirty]) {
        for d in dirty {
            self.tracker.event(d.ino.0, d.whole, d.tail, None);
            if let Some(had) = self.tracker.dirty.get_mut(&d.ino.0) {
                had.ranges.extend(d.ranges.clone());
            }
        }
    }
    fn settle(&mut self) -> bool {
        if let Some(hook) = &mut self.hook {
            hook(&mut self.tracker);
        }
        !self.tracker.unsettled
    }
    fn probe(&self, _: BorrowedFd<'_>, _: bool) -> Probe {
        self.tracker.probe
    }
}

pub(crate) struct Bench {
    _dir: tempfile::TempDir,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) frozen: PathBuf,
}

pub(crate) fn bench() -> Bench {
    bench_in(&std::env::temp_dir())
}

pub(crate) fn bench_in(place: &Path) -> Bench {
    let dir = tempfile::tempdir_in(place).unwrap();
    let [upper, work, frozen] = ["upper", "work", "frozen"].map(|n| dir.path().join(n));
    fs::create_dir(&upper).unwrap();
    Bench { _dir: dir, upper, work, frozen }
}

pub(crate) fn options() -> ShadowOptions {
    ShadowOptions::default()
}

pub(crate) fn shadow(b: &Bench) -> Shadow {
    Shadow::create(&b.upper, &b.work, options()).unwrap()
}

/// Rounds until nothing is dirty.
pub(crate) fn settle(shadow: &mut Shadow, fake: &mut Fake) -> Round {
    for _ in 0..10 {
        let round = shadow.round(fake, &Quiet).unwrap();
        if fake.tracker.dirty.is_empty() {
            return round;
        }
    }
    panic!("never clean: {:?}", fake.tracker.dirty);
}

/// Everything about a tree that a copy must keep, by path. Hard links are told by the first path of their inode.
pub(crate) fn describe(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut stack = vec![Vec::new()];
    while let Some(below) = stack.pop() {
        let path = root.join(OsStr::from_bytes(&below));
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.mode() & 0o170_000;
        let size = if kind == 0o040_000 { 0 } else { meta.size() };
        let mut text = format!(
            "mode {:o} owner {}:{} rdev {} size {size} mtime {}.{}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let mut keys: Vec<&[u8]> = names[..len].split(|b| *b == 0).filter(|k| !k.is_empty()).collect();
        keys.sort_unstable();
        for key in keys {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(&path, key, &mut value[..]).unwrap();
            text += &format!(" {}={:?}", String::from_utf8_lossy(key), &value[..len]);
        }
        match kind {
            0o040_000 => {
                for entry in fs::read_dir(&path).unwrap() {
                    let mut next = below.clone();
                    if !next.is_empty() {
                        next.push(b'/');
                    }
                    next.extend_from_slice(entry.unwrap().file_name().as_bytes());
                    stack.push(next);
                }
            }
            0o100_000 if size < 64 << 20 => {
                let content = fs::read(&path).unwrap();
                let sum =
                    content.iter().fold(7u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
                text += &format!(" sum {sum:x}");
            }
            0o120_000 => text += &format!(" -> {:?}", fs::read_link(&path).unwrap()),
            _ => {}
        }
        if kind != 0o040_000 {
            text += &format!(" nlink {} links", meta.nlink());
            let name = first.entry(meta.ino()).or_insert_with(|| below.clone());
            if *name > below {
                name.clone_from(&below);
            }
        }
        all.insert(below, text);
    }
    for (path, text) in &mut all {
        if text.ends_with("links") {
            let ino = root.join(OsStr::from_bytes(path)).symlink_metadata().unwrap().ino();
            *text += &format!(" with {:?}", String::from_utf8_lossy(&first[&ino]));
        }
    }
    all
}

#[track_caller]
pub(crate) fn same(live: &Path, frozen: &Path) {
    let (live, frozen) = (describe(live), describe(frozen));
    for (path, text) in &live {
        assert_eq!(Some(text), frozen.get(path), "at {:?}", String::from_utf8_lossy(path));
    }
    assert_eq!(live.len(), frozen.len());
}

pub(crate) fn set(path: &Path, key: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()).unwrap();
}
