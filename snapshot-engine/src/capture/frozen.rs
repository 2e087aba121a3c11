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
use super::graft::Shape;
use super::index::{Body, Index, Known};
use super::settled::Recognised;
use super::{Error, Shadow, metadata, private_dir};
use crate::kernel::removal::remove_tree_at;
use crate::model::dirty::Ino;
use crate::model::identity::Settled;
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
    /// Which of its files the next snapshot can recognise, where the upperdir's file system allows it. It holds only if a tracker watched
    /// while the shadow was made: without one nobody knows who had them mapped.
    pub settled: Option<Settled>,
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The directories, each after all that are below it, and everything that is none.
struct Plan<'a> {
    shape: &'a Shape<'a>,
    order: Vec<Ino>,
    objects: Vec<(Ino, &'a Known)>,
}

impl Plan<'_> {
    /// Bytes of the files, as their sizes say.
    fn bytes(&self) -> u64 {
        let files = self.objects.iter().filter(|(_, k)| k.stat.is_file());
        // A hostile tree may have files of 8 EiB.
        files.fold(0, |sum: u64, (_, k)| sum.saturating_add(k.stat.size))
    }
}

/// The name of a flat object that has no data file: a link, device, FIFO or socket.
pub(super) fn object_name(ino: Ino, known: &Known) -> String {
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
        let shape = self.shape();
        let plan = self.plan(&shape, frozen)?;
        let (tree, entries, files) = self.build(&plan, self.disk.data.as_fd(), "tree")?;
        progress.stage("sync");
        rustix::fs::syncfs(&*self.disk.base).map_err(|e| Error::shadow("sync", &self.disk.path, e))?;
        self.publish(tree.as_fd(), frozen)?;
        let settled = self.settled(frozen, files);
        Ok(Frozen { path: frozen.into(), entries, bytes: plan.bytes(), took: started.elapsed(), settled })
    }

    /// Makes the same directory out of a copy of the content, and leaves the shadow as it is: for who looks at every cut of a session.
    /// Nothing is synced: it does not outlive a loss of power.
    ///
    /// # Errors
    /// As [`freeze`](Shadow::freeze).
    pub fn replica(&self, to: &Path) -> Result<Frozen, Error> {
        let started = Instant::now();
        let shape = self.shape();
        let plan = self.plan(&shape, to)?;
        let base = self.disk.base.as_fd();
        let clear = || {
            ["replica", "replica-tree"].into_iter().try_for_each(|name| {
                remove_tree_at(base, name.as_ref())
                    .map_err(|e| Error::shadow("remove", self.disk.shadow_path(name), e))
            })
        };
        clear()?;
        let data = private_dir(base, "replica")
            .map_err(|e| Error::shadow("make", self.disk.shadow_path("replica"), e))?;
        for (ino, known) in &plan.objects {
            if let Body::File { serial } = known.body {
                let name = data_name(*ino, serial);
                self.duplicate(data.as_fd(), &name)
                    .map_err(|e| Error::shadow("copy", self.index.path(*ino), e))?;
            }
        }
        let (tree, entries, _) = self.build(&plan, data.as_fd(), "replica-tree")?;
        self.publish(tree.as_fd(), to)?;
        clear()?;
        Ok(Frozen { path: to.into(), entries, bytes: plan.bytes(), took: started.elapsed(), settled: None })
    }

    /// Clones or copies a data file.
    fn duplicate(&self, to: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let from =
            rustix::fs::openat(&*self.disk.data, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        if self.clones && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(());
        }
        while rustix::fs::copy_file_range(&from, None, &to, None, 1 << 30)? > 0 {}
        Ok(())
    }

    /// The tree to build.
    fn shape(&self) -> Shape<'_> {
        let roots: Vec<Ino> = self.index.roots().skip(1).collect();
        let shape = Shape::of(&self.index, &self.grafts, &roots);
        if shape.left_out > 0 {
            tracing::warn!(
                devices = shape.left_out,
                "devices with the number 0/0 in what --with-path adds are left out: a layer of an image has them for deletions"
            );
        }
        shape
    }

    /// What there is to build, in its order.
    fn plan<'a>(&self, shape: &'a Shape<'a>, to: &Path) -> Result<Plan<'a>, Error> {
        let order = order(shape)?;
        if to.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: to.into() });
        }
        let inside: HashSet<Ino> = order.iter().copied().collect();
        let nodes = shape.index().nodes();
        let objects = nodes
            .filter(|(_, node)| node.links.iter().any(|(dir, _)| inside.contains(dir)))
            .filter_map(|(ino, _)| Some((ino, shape.known(ino)?)))
            .filter(|(_, known)| known.body != Body::Directory)
            .collect();
        Ok(Plan { shape, order, objects })
    }

    /// Steps 1 and 2, in the directory `name`; `data` has the content. Returns the directory, the number of names, and the files that can be
    /// recognised later.
    fn build(
        &self,
        plan: &Plan<'_>,
        data: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(OwnedFd, u64, Vec<Recognised>), Error> {
        let files = self.objects(data, &plan.objects)?;
        let tree = private_dir(self.disk.base.as_fd(), name)
            .map_err(|e| Error::shadow("make", self.disk.shadow_path(name), e))?;
        let mut placed = HashMap::new();
        let mut entries = 0;
        for ino in &plan.order {
            entries += directory(plan.shape, data, tree.as_fd(), *ino, &mut placed)?;
        }
        Ok((tree, entries, files))
    }

    /// Step 1: everything but directories, with its metadata, flat. Returns the files that can be recognised later.
    fn objects(&self, data: BorrowedFd<'_>, objects: &[(Ino, &Known)]) -> Result<Vec<Recognised>, Error> {
        let index = &self.index;
        let share = objects.len().div_ceil(self.options.threads.max(1)).max(64);
        std::thread::scope(|scope| {
            let threads: Vec<_> = objects
                .chunks(share)
                .map(|part| {
                    scope.spawn(move || {
                        let mut files = Vec::new();
                        for (ino, known) in part {
                            object(data, index, *ino, known)?;
                            files.extend(self.recognised(data, *ino, known)?);
                        }
                        Ok(files)
                    })
                })
                .collect();
            let mut files = Vec::new();
            for thread in threads {
                let part = thread.join().unwrap_or_else(|_| {
                    Err(Error::Threads { source: io::Error::other("a thread panicked") })
                });
                files.extend(part?);
            }
            Ok(files)
        })
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

/// The directories, each after all that are below it. Checks that the shape is a tree and that everything in it was read.
fn order(shape: &Shape<'_>) -> Result<Vec<Ino>, Error> {
    let index = shape.index();
    let incomplete = |ino, what| Error::Incomplete { path: index.path(ino), what };
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut stack = vec![index.root()];
    while let Some(ino) = stack.pop() {
        if !seen.insert(ino) {
            return Err(incomplete(ino, "a directory is in two places"));
        }
        order.push(ino);
        let entries = shape.entries(ino);
        for child in entries.ok_or_else(|| incomplete(ino, "a directory was never listed"))?.values() {
            match shape.known(*child) {
                None => return Err(incomplete(*child, "an inode was never read")),
                Some(known) if known.body == Body::Directory => stack.push(*child),
                Some(_) => {}
            }
        }
        if shape.known(ino).is_none() {
            return Err(incomplete(ino, "a directory was never read"));
        }
    }
    order.reverse();
    Ok(order)
}

/// Step 2, one directory. Returns the number of its entries.
fn directory(
    shape: &Shape<'_>,
    data: BorrowedFd<'_>,
    tree: BorrowedFd<'_>,
    ino: Ino,
    placed: &mut HashMap<Ino, usize>,
) -> Result<u64, Error> {
    let index = shape.index();
    let Some(known) = shape.known(ino) else {
        return Err(Error::Incomplete { path: index.path(ino), what: "a directory was never read" });
    };
    let name = ino.0.to_string();
    let fail = |op, e: Errno| Error::shadow(op, index.path(ino), e);
    rustix::fs::mkdirat(tree, &name, Mode::RWXU).map_err(|e| fail("make the directory", e))?;
    let dir = rustix::fs::openat(tree, &name, OPEN, Mode::empty()).map_err(|e| fail("open", e))?;
    let mut count = 0;
    for (entry, child) in shape.entries(ino).into_iter().flatten() {
        count += 1;
        let fail = |op, e: Errno| Error::shadow(op, index.path(*child), e);
        let entry: &std::ffi::CStr = entry;
        let Some(known) = shape.known(*child) else { continue };
        if known.body == Body::Directory {
            rustix::fs::renameat(tree, child.0.to_string(), &dir, entry).map_err(|e| fail("place", e))?;
            continue;
        }
        let from = object_name(*child, known);
        // All names but the last are links, so that the flat name stays until then. Names in directories that are not part of
        // the tree do not count, which leaves a link too many in the data directory; it is removed with it.
        let done = placed.entry(*child).or_insert(0);
        *done += 1;
        if *done < index.get(*child).map_or(1, |below| below.links.len()) {
            rustix::fs::linkat(data, &from, &dir, entry, AtFlags::empty()).map_err(|e| fail("link", e))?;
        } else {
            rustix::fs::renameat(data, &from, &dir, entry).map_err(|e| fail("place", e))?;
        }
    }
    metadata::put(tree, &name, &known.stat, &known.xattrs, &|| index.path(ino))?;
    Ok(count)
}
