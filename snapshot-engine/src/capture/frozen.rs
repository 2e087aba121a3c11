//! Building the frozen upperdir, and publishing it.
//!
//! ```text
//!   1. every inode that is no directory, flat:  data/<ino>-<n>      owner, mode, attributes, times   (in parallel)
//!   2. directories, leaves first:               tree/<ino>/         files renamed (or linked) in, child directories renamed in,
//!                                                                   then its own owner, mode, attributes, times
//!   3. syncfs                                                       everything above is on the disk
//!   4. rename(tree/<root>, frozen), fsync of both parents           it exists
//! ```
//!
//! **Nothing that looks whole is not.** The name `frozen` comes to be by one rename, after `syncfs` returned: an engine killed,
//! or a machine that loses power, at any instruction leaves either no `frozen` or all of it. What is in the work directory is never
//! taken for a result; the next shadow there removes it.
//!
//! **One `syncfs`, not an `fsync` each.** Twenty thousand `fsync`s are as many journal commits. `syncfs` writes the same data
//! in one, and since Linux 5.8 it reports every write-back error of the file system since the descriptor was opened, which
//! was before the first byte of the shadow. Its price is that it writes the neighbours' dirty pages as well.
//!
//! Each directory is made flat, filled, and only then moved into its parent. So no path is ever longer than two
//! components, no depth costs a descriptor, and renaming a directory leaves its own times alone.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::copy::data_name;
use super::index::{Body, Index, Known};
use super::{Error, Shadow, metadata, private_dir};
use crate::kernel::beneath::Dir;
use crate::model::dirty::Ino;
use crate::model::progress::Progress;

/// The frozen upperdir: immutable from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Where it is.
    pub path: PathBuf,
    /// Names in it, without the root.
    pub entries: u64,
    /// Bytes of its files, as their sizes say; each inode once.
    pub bytes: u64,
    /// How long building it took, the syncing included.
    pub took: Duration,
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The name of a flat object that has no data file: a link, device, FIFO or socket.
fn object_name(ino: Ino, known: &Known) -> String {
    match known.body {
        Body::File { serial } => data_name(ino, serial),
        _ => format!("{}-object", ino.0),
    }
}

impl Shadow {
    /// Makes the frozen upperdir out of the shadow. Its parent directory must exist, on the file system of the work directory; it itself
    /// must not. On success everything is durable and the shadow's files are gone; on an error nothing is left of either.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when the shadow is not whole: an inode that is named was never read, or the shape is no tree.
    /// Otherwise when something cannot be made, with what and why.
    pub fn freeze(self, frozen: &Path, progress: &dyn Progress) -> Result<Frozen, Error> {
        let started = Instant::now();
        progress.stage("freeze");
        let order = self.order()?;
        if frozen.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: frozen.into() });
        }
        let index = &self.index;
        let inside: HashSet<Ino> = order.iter().copied().collect();
        let objects: Vec<(Ino, &Known)> = index
            .nodes()
            .filter(|(_, node)| node.links.iter().any(|(dir, _)| inside.contains(dir)))
            .filter_map(|(ino, node)| Some((ino, node.known.as_ref()?)))
            .filter(|(_, known)| known.body != Body::Directory)
            .collect();
        self.objects(&objects)?;

        let tree = private_dir(self.disk.base.as_fd(), "tree")
            .map_err(|e| Error::shadow("make", self.disk.shadow_path("tree"), e))?;
        let mut placed = HashMap::new();
        let mut entries = 0;
        for ino in &order {
            entries += self.directory(tree.as_fd(), *ino, &mut placed)?;
        }
        progress.stage("sync");
        rustix::fs::syncfs(&*self.disk.base).map_err(|e| Error::shadow("sync", &self.disk.path, e))?;
        self.publish(tree.as_fd(), frozen)?;
        let bytes = objects.iter().filter(|(_, k)| k.stat.is_file()).map(|(_, k)| k.stat.size).sum();
        Ok(Frozen { path: frozen.into(), entries, bytes, took: started.elapsed() })
    }

    /// The directories, each after all that are below it. Checks that the shape is a tree and that everything in it was read.
    fn order(&self) -> Result<Vec<Ino>, Error> {
        let index = &self.index;
        let incomplete = |ino, what| Error::Incomplete { path: index.path(ino), what };
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        let mut stack = vec![index.root()];
        while let Some(ino) = stack.pop() {
            if !seen.insert(ino) {
                return Err(incomplete(ino, "a directory is in two places"));
            }
            order.push(ino);
            let node = index.get(ino).ok_or_else(|| incomplete(ino, "an inode is missing"))?;
            let entries = node.entries.as_ref();
            for child in entries.ok_or_else(|| incomplete(ino, "a directory was never listed"))?.values() {
                match index.known(*child) {
                    None => return Err(incomplete(*child, "an inode was never read")),
                    Some(known) if known.body == Body::Directory => stack.push(*child),
                    Some(_) => {}
                }
            }
            if node.known.is_none() {
                return Err(incomplete(ino, "a directory was never read"));
            }
        }
        order.reverse();
        Ok(order)
    }

    /// Step 1: everything but directories, with its metadata, flat.
    fn objects(&self, objects: &[(Ino, &Known)]) -> Result<(), Error> {
        let (data, index) = (self.disk.data.as_fd(), &self.index);
        let share = objects.len().div_ceil(self.options.threads.max(1)).max(64);
        std::thread::scope(|scope| {
            let threads: Vec<_> = objects
                .chunks(share)
                .map(|part| {
                    scope.spawn(move || {
                        part.iter().try_for_each(|(ino, known)| object(data, index, *ino, known))
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Threads { source: io::Error::other("a thread panicked") }))
            })
        })
    }

    /// Step 2, one directory. Returns the number of its entries.
    fn directory(
        &self,
        tree: BorrowedFd<'_>,
        ino: Ino,
        placed: &mut HashMap<Ino, usize>,
    ) -> Result<u64, Error> {
        let index = &self.index;
        let (Some(node), Some(known)) = (index.get(ino), index.known(ino)) else {
            return Err(Error::Incomplete { path: index.path(ino), what: "a directory was never read" });
        };
        let name = ino.0.to_string();
        let fail = |op, e: Errno| Error::shadow(op, index.path(ino), e);
        rustix::fs::mkdirat(tree, &name, Mode::RWXU).map_err(|e| fail("make the directory", e))?;
        let dir = rustix::fs::openat(tree, &name, OPEN, Mode::empty()).map_err(|e| fail("open", e))?;
        let data = self.disk.data.as_fd();
        let mut count = 0;
        for (entry, child) in node.entries.iter().flatten() {
            count += 1;
            let fail = |op, e: Errno| Error::shadow(op, index.path(*child), e);
            let entry: &std::ffi::CStr = entry;
            let Some(below) = index.get(*child) else { continue };
            let Some(known) = &below.known else { continue };
            if known.body == Body::Directory {
                rustix::fs::renameat(tree, child.0.to_string(), &dir, entry).map_err(|e| fail("place", e))?;
                continue;
            }
            let from = object_name(*child, known);
            // All names but the last are links, so that the flat name stays until then. Names in directories that are not part of
            // the tree do not count, which leaves a link too many in the data directory; it is removed with it.
            let done = placed.entry(*child).or_insert(0);
            *done += 1;
            if *done < below.links.len() {
                rustix::fs::linkat(data, &from, &dir, entry, AtFlags::empty())
                    .map_err(|e| fail("link", e))?;
            } else {
                rustix::fs::renameat(data, &from, &dir, entry).map_err(|e| fail("place", e))?;
            }
        }
        metadata::put(tree, &name, &known.stat, &known.xattrs, &|| index.path(ino))?;
        Ok(count)
    }

    /// Step 4.
    fn publish(&self, tree: BorrowedFd<'_>, frozen: &Path) -> Result<(), Error> {
        let name = self.index.root().0.to_string();
        let parent = match frozen.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (Some(to), Ok(parent_fd)) =
            (frozen.file_name(), rustix::fs::open(parent, OPEN.difference(OFlags::NOFOLLOW), Mode::empty()))
        else {
            return Err(Error::shadow("open", parent, io::Error::from(io::ErrorKind::NotFound)));
        };
        match rustix::fs::renameat_with(tree, &name, &parent_fd, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists { path: frozen.into() }),
            Err(Errno::XDEV) => {
                return Err(Error::OtherFileSystem { path: frozen.into(), dir: self.disk.work_path.clone() });
            }
            Err(e) => return Err(Error::shadow("publish", frozen, e)),
        }
        for (fd, path) in [(parent_fd.as_fd(), parent), (tree, self.disk.path.as_path())] {
            rustix::fs::fsync(fd).map_err(|e| Error::shadow("sync", path, e))?;
        }
        Ok(())
    }
}

/// Step 1, one inode.
fn object(data: BorrowedFd<'_>, index: &Index, ino: Ino, known: &Known) -> Result<(), Error> {
    let name = object_name(ino, known);
    let fail = |e: Errno| Error::shadow("make", index.path(ino), e);
    match &known.body {
        Body::Directory | Body::File { .. } => {}
        Body::Symlink(target) => {
            let target = CString::new(target.as_slice()).map_err(|_| fail(Errno::INVAL))?;
            rustix::fs::symlinkat(target, data, &name).map_err(fail)?;
        }
        Body::Special => {
            let kind = FileType::from_raw_mode(known.stat.mode);
            rustix::fs::mknodat(data, &name, kind, Mode::RUSR | Mode::WUSR, known.stat.rdev).map_err(fail)?;
        }
    }
    metadata::put(data, &name, &known.stat, &known.xattrs, &|| index.path(ino))
}

/// Removes a directory and everything below it, whatever its depth: directories that are found are moved up to its own level
/// first, so that one is open at a time.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let top = match rustix::fs::openat(parent, name, OPEN, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut serial = 0u64;
    loop {
        let mut any = false;
        for (name, directory) in names(top.as_fd())? {
            any = true;
            if !directory {
                rustix::fs::unlinkat(&top, &name, AtFlags::empty())?;
                continue;
            }
            let dir = rustix::fs::openat(&top, &name, OPEN, Mode::empty())?;
            for (name, directory) in names(dir.as_fd())? {
                if directory {
                    // Renaming a directory elsewhere needs the right to write in it (`..` changes), which root has.
                    serial += 1;
                    let up = format!("removed-{}-{serial}", std::process::id());
                    rustix::fs::renameat(&dir, &name, &top, up)?;
                } else {
                    rustix::fs::unlinkat(&dir, &name, AtFlags::empty())?;
                }
            }
            rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
        if !any {
            break;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory, and whether each is one itself.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<(CString, bool)>> {
    let fd: OwnedFd = rustix::fs::openat(dir, c".", OPEN, Mode::empty())?;
    let dir = Dir::from(fd);
    dir.entries()?
        .into_iter()
        .map(|entry| {
            let directory = match entry.kind {
                libc::DT_UNKNOWN => dir.stat(&entry.name)?.is_dir(),
                kind => kind == libc::DT_DIR,
            };
            Ok((entry.name, directory))
        })
        .collect()
}
