//! The shadow: the engine's copy of the upperdir, brought up to date in rounds while the container runs.
//!
//! ```text
//!   create -> base -> round* -> sweep -> [window] -> apply -> freeze
//!
//!   work directory            memory                          after freeze
//!   shadow/data/<ino>-<n>     index: directories, names,      <frozen>/...  one plain directory,
//!   (content by identity)     metadata, links, attributes     published by one rename
//! ```
//!
//! Content lies flat on disk under its identity; the tree's shape is only in memory ([`index`]). So what a container
//! does most besides writing (renaming, deleting) costs nothing here until [`Shadow::freeze`] builds the directory.
//!
//! What was rejected: mirroring the tree on disk during the rounds (every rename and rmdir of the container is then done
//! twice, in an order that must never pass through a name that is taken), and one big file of extents (no clones, no hard links).
//!
//! | file | what |
//! |---|---|
//! | `rounds` | what is read when, and what is put back (T2, T3, T4) |
//! | `walk`, `hot` | open directories and files |
//! | `copy`, `clone` | content |
//! | `apply` | taking in the window's residual |
//! | `index`, `links` | the shape of the tree, and the names of its inodes |
//! | `sweep` | the tree against the index (T6) |
//! | `frozen`, `metadata` | building and publishing the frozen upperdir |
//! | `settled` | which files the next snapshot will recognise |
//! | `graft` | trees beside the upperdir, and how all become one |

mod apply;
mod clone;
mod copy;
mod error;
mod frozen;
mod graft;
mod hot;
mod index;
mod links;
mod metadata;
mod rounds;
mod settled;
mod sweep;
mod walk;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use error::Error;
pub use frozen::Frozen;
pub use graft::{Graft, Grafts};
pub use sweep::{Change, Difference};

use crate::kernel::beneath::{self, Dir, Stat};
use crate::kernel::removal::remove_tree_at;
use crate::model::dirty::Ino;
pub use crate::model::residual;
use copy::{Copier, data_name};
use hot::Hot;
use index::Index;
use links::Links;
use settled::Judge;
use walk::Walker;

/// The directory inside the work directory that is the shadow's alone.
const SHADOW: &str = "shadow";

/// Limits and sizes of a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowOptions {
    /// The most inodes it holds; a container that makes more is refused rather than let the engine run out of memory.
    pub max_entries: usize,
    /// The most bytes of attributes and link targets it holds, in memory.
    pub max_attributes: usize,
    /// The most descriptors of recently dirtied inodes kept open for the window; fewer where the limit of open files is low.
    pub hot: usize,
    /// Threads that copy content.
    pub threads: usize,
    /// How long before the copy a file must have been left alone to be recognised in the next snapshot.
    pub settled: Duration,
}

impl Default for ShadowOptions {
    fn default() -> ShadowOptions {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        ShadowOptions {
            max_entries: 16 << 20,
            max_attributes: 1 << 30,
            hot: 8192,
            threads,
            settled: settled::SETTLED,
        }
    }
}

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Bytes the tracker held for dirty: its blocks (a page, or 64 KiB in files that were small), or the whole file.
    pub dirty: u64,
    /// Inodes brought up to date.
    pub inodes: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes cloned.
    pub cloned: u64,
    /// Directories listed.
    pub directories: u64,
    /// Inodes that are dirty again at once because they were met too late, vanished on the way, or were under direct I/O.
    pub late: u64,
    /// Every call that was under way when the dirt was taken has ended (T2). If not, everything was put back.
    pub settled: bool,
    /// How long it took.
    pub took: Duration,
}

/// The engine's copy of a live upperdir.
///
/// Removed from the disk when it is dropped, unless it was frozen.
#[derive(Debug)]
pub struct Shadow {
    // Dropped first: the copying threads end before their files are removed (`Disk`, last).
    copier: Copier,
    hot: Hot,
    walker: Walker,
    index: Index,
    /// Files that were read, without their pages being cleaned, so soon after their last change that a change after it may have left the same times (T4).
    hasty: HashSet<Ino>,
    options: ShadowOptions,
    serial: u64,
    /// Device and inode of the upperdir. A btrfs subvolume inside it has another device.
    identity: (u64, u64),
    grafts: Grafts,
    /// The directory on the disk, if it is on the upper's file system: nothing that is copied may hold it.
    place: Option<Ino>,
    same_file_system: bool,
    clones: bool,
    /// Who may be recognised in the next snapshot; `None`: nobody.
    judge: Option<Judge>,
    disk: Disk,
}

impl Shadow {
    /// Prepares an empty shadow of the upperdir `upper` in the work directory `dir`, which is made if it is not there.
    ///
    /// The remains of an engine that was killed in the same work directory are removed. Raises the soft limit of open
    /// files as far as it may, because the hot descriptors need it.
    ///
    /// # Errors
    /// When either directory cannot be opened, one is inside the other, or another engine uses the work directory.
    pub fn create(upper: &Path, dir: &Path, options: ShadowOptions) -> Result<Shadow, Error> {
        Shadow::grafted(upper, Grafts::default(), dir, options)
    }

    /// The same with trees beside the upperdir, which must lie on its file system, in the same subvolume.
    ///
    /// # Errors
    /// As [`create`](Shadow::create), and when one of them is a root twice.
    pub fn grafted(
        upper: &Path,
        grafts: Grafts,
        dir: &Path,
        options: ShadowOptions,
    ) -> Result<Shadow, Error> {
        let hot = options.hot.min(raise_open_files() / 2);
        let root = Dir::enclose(upper).map_err(|e| Error::upper("open", upper, e))?;
        let stat = beneath::stat_fd(root.as_fd()).map_err(|e| Error::upper("look at", upper, e))?;
        let disk = Disk::create(upper, dir)?;
        let place = beneath::stat_fd(disk.data.as_fd()).map_err(|e| Error::shadow("look at", dir, e))?;
        let clones = clone::supported(disk.data.as_fd()).map_err(|e| Error::shadow("try a clone", dir, e))?;
        let same_file_system = place.dev == stat.dev;
        let clones = clones && same_file_system;
        let copier =
            Copier::start(&disk.data, clones, options.threads).map_err(|source| Error::Threads { source })?;
        let ino = Ino(stat.ino);
        let judge = Judge::new(&root, &stat, options.settled);
        let mut roots = HashMap::from([(ino, Arc::new(root))]);
        let mut planted = Vec::with_capacity(grafts.list.len());
        for Graft { at, root, .. } in &grafts.list {
            let found = beneath::stat_fd(root.as_fd()).map_err(|e| Error::upper("look at", at, e))?;
            let overlap = found.dev != stat.dev || roots.insert(Ino(found.ino), Arc::clone(root)).is_some();
            if overlap {
                return Err(Error::Overlap { path: at.clone() });
            }
            planted.push((Ino(found.ino), at.clone()));
        }
        Ok(Shadow {
            copier,
            hot: Hot::new(hot),
            walker: Walker::new(roots),
            index: Index::new(ino, planted),
            hasty: HashSet::new(),
            options,
            serial: 0,
            identity: (stat.dev, stat.ino),
            grafts,
            place: same_file_system.then_some(Ino(place.ino)),
            same_file_system,
            clones,
            judge,
            disk,
        })
    }

    /// The files that were read so soon after their last change that stores through a mapping since then may have left no event. From now
    /// on the caller answers for them.
    pub fn take_hasty(&mut self) -> impl Iterator<Item = Ino> {
        std::mem::take(&mut self.hasty).into_iter()
    }

    /// Device and inode number of the upperdir's root, as it was opened.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Whether the work directory is on the upper's file system.
    #[must_use]
    pub fn same_file_system(&self) -> bool {
        self.same_file_system
    }

    /// Whether content is cloned rather than copied.
    #[must_use]
    pub fn clones(&self) -> bool {
        self.clones
    }

    /// Inodes in the shadow.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is nothing but the roots.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.len() <= self.index.roots().count()
    }

    /// What was dirty in the last rounds (not in the base), most of it still being so, and what was made ready with
    /// [`warm`](Shadow::warm): an open descriptor each and the stat the shadow has. The window reads through them.
    pub fn hot(&self) -> impl Iterator<Item = (Ino, BorrowedFd<'_>, &Stat)> {
        self.hot.iter().filter_map(|(ino, fd)| Some((ino, fd, &self.index.known(ino)?.stat)))
    }

    /// Whether the shadow has this very inode, so that a difference to it is enough. If not (it was never read, it is another one under a
    /// reused number, or the birth time cannot tell) the window captures it as `fresh`.
    #[must_use]
    pub fn knows(&self, stat: &Stat) -> bool {
        self.index.known(Ino(stat.ino)).is_some_and(|known| known.is(stat))
    }

    /// Makes an inode ready for the window, if the shadow has this very inode: opens it, a symbolic link or special file as a location
    /// (`O_PATH`). What cannot be made ready is left to the next round.
    pub fn warm(&mut self, ino: Ino) {
        if self.hot.has(ino) {
            return;
        }
        let Ok((path, stat)) = self.walker.locate(&self.index, ino) else { return };
        if !self.knows(&stat) {
            return;
        }
        let fd = if stat.is_file() || stat.is_dir() { beneath::reopen(path.as_fd()) } else { Ok(path) };
        if let Ok(fd) = fd {
            self.hot.keep(ino, fd);
        }
    }

    /// Makes all inodes ready, if there are descriptors for them all: for a container that works on more of them than a few rounds show.
    pub fn warm_all(&mut self) {
        if self.index.len() > self.hot.limit() {
            return;
        }
        let all: Vec<Ino> = self.index.nodes().map(|(ino, _)| ino).collect();
        for ino in all {
            self.warm(ino);
        }
    }

    /// Makes the roots ready: nothing that a window finds out leads to them.
    pub fn warm_roots(&mut self) {
        let roots: Vec<Ino> = self.index.roots().collect();
        for root in roots {
            self.warm(root);
        }
    }

    /// The directories that name an inode: none for one that has lost its last name, or that was never seen under one. A root needs no name to be
    /// there: it is its own.
    #[must_use]
    pub fn parents(&self, ino: Ino) -> Vec<Ino> {
        if self.index.is_root(ino) {
            return vec![ino];
        }
        let links = self.index.get(ino).map(|node| &node.links);
        links.into_iter().flat_map(Links::iter).map(|(directory, _)| *directory).collect()
    }

    /// What the shadow recorded of an inode.
    #[must_use]
    pub fn stat(&self, ino: Ino) -> Option<&Stat> {
        self.index.known(ino).map(|known| &known.stat)
    }

    /// Where an inode was last seen, relative to the root; for messages.
    #[must_use]
    pub fn path(&self, ino: Ino) -> PathBuf {
        self.index.path(ino)
    }

    /// Opens an inode of the live tree as a location (`O_PATH`), with its stat: for what is dirty at the cut and not [`hot`](Shadow::hot).
    ///
    /// # Errors
    /// As `openat2(2)`; `ESTALE` or `ENOENT` when no name the shadow knows leads to it any more.
    pub fn locate(&mut self, ino: Ino) -> io::Result<(OwnedFd, Stat)> {
        self.walker.locate(&self.index, ino)
    }

    /// No tree may be in another, nor the shadow in one of them.
    fn must_be_apart(&self, ino: Ino) -> Result<(), Error> {
        let path = || self.index.path(ino);
        if self.place == Some(ino) {
            return Err(Error::NestedInGraft { dir: self.disk.work_path.clone(), path: path() });
        }
        if self.index.is_root(ino) { Err(Error::Overlap { path: path() }) } else { Ok(()) }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Removes a data file that nothing refers to any more.
    fn discard(&self, ino: Ino, serial: u64) -> Result<(), Error> {
        let name = data_name(ino, serial);
        match rustix::fs::unlinkat(&*self.disk.data, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::shadow("remove", self.disk.path.join("data").join(name), e)),
        }
    }
}

/// The shadow's part of the disk: removed on drop.
#[derive(Debug)]
struct Disk {
    /// `<work directory>/shadow`.
    path: PathBuf,
    /// The work directory, locked as long as this lives.
    work: OwnedFd,
    work_path: PathBuf,
    /// `<work directory>/shadow`, opened before anything was written in it: `syncfs(2)` on it reports every write-back error since then.
    base: Arc<OwnedFd>,
    /// `<work directory>/shadow/data`.
    data: Arc<OwnedFd>,
}

impl Disk {
    fn create(upper: &Path, dir: &Path) -> Result<Disk, Error> {
        let fail = |op, e: io::Error| Error::shadow(op, dir, e);
        std::fs::create_dir_all(dir).map_err(|e| fail("make", e))?;
        let (real, real_upper) = (
            dir.canonicalize().map_err(|e| fail("find", e))?,
            upper.canonicalize().map_err(|e| Error::upper("find", upper, e))?,
        );
        if real.starts_with(&real_upper) {
            return Err(Error::Nested { dir: real, upper: real_upper });
        }
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let work = rustix::fs::open(&real, open, Mode::empty()).map_err(|e| fail("open", e.into()))?;
        match rustix::fs::flock(&work, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { dir: real }),
            Err(e) => return Err(fail("lock", e.into())),
        }
        let path = real.join(SHADOW);
        remove_tree_at(work.as_fd(), SHADOW.as_ref()).map_err(|e| Error::shadow("remove", &path, e))?;
        let base = Arc::new(private_dir(work.as_fd(), SHADOW).map_err(|e| Error::shadow("make", &path, e))?);
        let data = private_dir(base.as_fd(), "data").map_err(|e| Error::shadow("make", path.join("data"), e));
        // From here on `Drop` cleans up.
        let disk = |data| Disk { path, work, work_path: real, base: Arc::clone(&base), data };
        match data {
            Ok(data) => Ok(disk(Arc::new(data))),
            Err(e) => {
                drop(disk(Arc::clone(&base)));
                Err(e)
            }
        }
    }

    fn shadow_path(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }
}

/// Makes a directory for the engine alone, whose children inherit nothing: no group (set-group-ID) and no default ACL.
fn private_dir(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for acl in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        match rustix::fs::fremovexattr(&fd, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    rustix::fs::fchmod(&fd, Mode::RWXU)?;
    Ok(fd)
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = remove_tree_at(self.work.as_fd(), SHADOW.as_ref()) {
            tracing::warn!(path = %self.path.display(), %error, "the shadow could not be removed; the next snapshot with this work directory does it");
        }
    }
}

/// The hot descriptors, the open directories and the files being copied add up to more than the usual 1024. Returns how many there may be.
fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(65536, |maximum| maximum.min(65536));
    let current = limit.current.unwrap_or(wanted);
    if current < wanted {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => return usize::try_from(wanted).unwrap_or(usize::MAX),
            Err(error) => tracing::debug!(%error, "the limit of open files stays as it is"),
        }
    }
    usize::try_from(current).unwrap_or(usize::MAX)
}
