//! An image as a directory tree.
//!
//! ```text
//! plan:         names by what is to be done with them, directories first
//! directories   made, with nobody else's access
//! files         in parallel: small ones whole, large ones in pieces; then owner, mode, attributes, times
//! others        links, devices, FIFOs, sockets; then further names
//! directories   owner, mode, attributes, times: last, because making names in them changes their times
//! ```
//!
//! Nothing is written outside of the directory, whatever the image holds: names have no `/`, `.` and `..` are refused
//! (`rafs::read`), every directory is opened without following a link (`kernel/beneath.rs`), and everything else is made anew.

mod meta;
mod plan;

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::kernel::beneath::Dir;
use crate::kernel::descent::Opener;
use crate::model::tree::{Content, Kind, Node, NodeId};

use super::data::Decoder;
use super::{Opened, Progress, ReaderError, content, sparse};
use plan::{Job, Named, Plan};

/// What may be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Unpack into a directory that is not empty, over what has the same names.
    pub force: bool,
    /// Leave out what needs privilege: owners, devices, set-id bits, and attributes but `user.*`.
    pub unprivileged: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Names made, the directory itself included.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Bytes of it that were written; the rest are holes.
    pub written: u64,
    /// Devices and attributes left out for want of privilege.
    pub left_out: u64,
}

/// Everything the workers share.
struct Unpack<'a> {
    image: &'a Opened,
    root: Dir,
    plan: Plan,
    options: Options,
    progress: Progress<'a>,
    done: AtomicU64,
    total: u64,
    written: AtomicU64,
    left_out: AtomicU64,
}

/// Unpacks an image into a directory, which is made if it is not there.
///
/// # Errors
/// [`ReaderError::NotEmpty`]; when something cannot be made; when data is damaged. What was made stays.
pub fn unpack(
    image: &Opened,
    at: &Path,
    options: Options,
    progress: Progress<'_>,
) -> Result<Report, ReaderError> {
    match rustix::fs::mkdir(at, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(ReaderError::io("create", at)(e.into())),
    }
    let root = Dir::open(at).map_err(ReaderError::io("open", at))?;
    if !options.force && !root.entries_at_most(1).map_err(ReaderError::io("list", at))?.is_empty() {
        return Err(ReaderError::NotEmpty(at.to_owned()));
    }
    let plan = Plan::new(&image.image);
    let total = plan.bytes;
    let unpack = Unpack {
        image,
        root,
        plan,
        options,
        progress,
        done: AtomicU64::new(0),
        total,
        written: AtomicU64::new(0),
        left_out: AtomicU64::new(0),
    };
    unpack.run().map_err(|error| error.below(at))?;
    Ok(Report {
        entries: 1
            + (unpack.plan.directories.len() + unpack.plan.files.len()) as u64
            + (unpack.plan.others.len() + unpack.plan.links.len()) as u64,
        bytes: total,
        written: unpack.written.into_inner(),
        left_out: unpack.left_out.into_inner(),
    })
}

/// What failed, at a path from the directory's root.
enum Failed {
    Io(&'static str, PathBuf, std::io::Error),
    Reader(ReaderError),
}

impl Failed {
    fn below(self, root: &Path) -> ReaderError {
        match self {
            Failed::Io(what, path, source) => ReaderError::Io { what, path: root.join(path), source },
            Failed::Reader(error) => error,
        }
    }
}

impl From<ReaderError> for Failed {
    fn from(error: ReaderError) -> Failed {
        Failed::Reader(error)
    }
}

impl Unpack<'_> {
    fn run(&self) -> Result<(), Failed> {
        let mut opener = Opener::new(&self.root);
        for named in &self.plan.directories {
            let dir = self.open(&mut opener, named.dir)?;
            self.directory(&dir, &named.name).map_err(|e| self.failed("create", named, e))?;
        }
        // Large files are made first, so that workers can write their pieces in any order.
        for named in self.plan.large() {
            let file = self.create(&mut opener, named)?;
            file.set_len(self.content(named.id).map_or(0, |c| c.size))
                .map_err(|e| self.failed("lengthen", named, e))?;
        }
        self.plan.jobs.par_iter().try_for_each_init(
            || (Opener::new(&self.root), Decoder::default()),
            |(opener, decoder), job| self.job(opener, decoder, job),
        )?;
        for named in self.plan.large() {
            let dir = self.open(&mut opener, named.dir)?;
            let file = File::from(existing(&dir, &named.name).map_err(|e| self.failed("open", named, e))?);
            self.finish(&file, named)?;
        }
        for named in &self.plan.others {
            let dir = self.open(&mut opener, named.dir)?;
            let Some(node) = self.node(named.id) else { continue };
            self.other(&dir, named, node).map_err(|e| self.failed("create", named, e))?;
        }
        for (named, first) in &self.plan.links {
            let Some(first) = self.plan.first(*first) else { continue };
            let (from, to) = (self.open(&mut opener, first.dir)?, self.open(&mut opener, named.dir)?);
            self.link(&from, &first.name, &to, &named.name).map_err(|e| self.failed("link", named, e))?;
        }
        for named in self.plan.directories.iter().rev() {
            let dir = self.open(&mut opener, named.dir)?;
            let Some(node) = self.node(named.id) else { continue };
            let own = dir.open_dir(&named.name).map_err(|e| self.failed("open", named, e))?;
            meta::apply(&own, node, self.options, true)
                .map(|left| self.leave_out(left))
                .map_err(|e| self.failed("set owner, mode, times or attributes of", named, e))?;
        }
        if let Some(node) = self.node(NodeId::ROOT) {
            // RAFS v6 has no time of the root.
            let timed = node.meta.mtime != Default::default();
            let left = meta::apply(&self.root, node, self.options, timed);
            let what = "set owner, mode, times or attributes of";
            self.leave_out(left.map_err(|e| Failed::Io(what, PathBuf::new(), e))?);
        }
        Ok(())
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.image.image.tree.get(id)
    }

    fn content(&self, id: NodeId) -> Option<&Content> {
        match &self.node(id)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    fn failed(&self, what: &'static str, named: &Named, source: std::io::Error) -> Failed {
        Failed::Io(what, self.plan.path(named), source)
    }

    fn leave_out(&self, count: u64) {
        self.left_out.fetch_add(count, Ordering::Relaxed);
    }

    fn open(&self, opener: &mut Opener<'_>, place: usize) -> Result<Arc<Dir>, Failed> {
        let way = opener.way(&self.plan.places, place);
        opener.open(way).map_err(|e| Failed::Io("open", self.plan.places.path(place), e))
    }

    /// Makes room for a name, where that is allowed.
    fn clear(&self, dir: &Dir, name: &CStr) -> std::io::Result<()> {
        if self.options.force {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
                    return crate::kernel::removal::remove_tree_at(std::os::fd::AsFd::as_fd(dir), name);
                }
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn directory(&self, dir: &Dir, name: &CStr) -> std::io::Result<()> {
        match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.options.force => {
                if dir.stat(name)?.is_dir() {
                    return Ok(());
                }
                self.clear(dir, name)?;
                Ok(rustix::fs::mkdirat(dir, name, Mode::RWXU)?)
            }
            result => Ok(result?),
        }
    }

    fn create(&self, opener: &mut Opener<'_>, named: &Named) -> Result<File, Failed> {
        let dir = self.open(opener, named.dir)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || {
            self.clear(&dir, &named.name)?;
            Ok(rustix::fs::openat(&*dir, &*named.name, flags, Mode::RUSR | Mode::WUSR)?)
        };
        make().map(File::from).map_err(|e| self.failed("create", named, e))
    }

    fn job(&self, opener: &mut Opener<'_>, decoder: &mut Decoder, job: &Job) -> Result<(), Failed> {
        match job {
            Job::Whole(range) => {
                for named in &self.plan.files[range.clone()] {
                    let file = self.create(opener, named)?;
                    let Some(content) = self.content(named.id) else { continue };
                    if content.size > 0 {
                        file.set_len(content.size).map_err(|e| self.failed("lengthen", named, e))?;
                    }
                    self.write(decoder, &file, named, content, 0..content.chunks.len())?;
                    self.finish(&file, named)?;
                }
                Ok(())
            }
            Job::Piece(file, chunks) => {
                let Some(named) = self.plan.files.get(*file) else { return Ok(()) };
                let dir = self.open(opener, named.dir)?;
                let file = existing(&dir, &named.name).map_err(|e| self.failed("open", named, e))?;
                let Some(content) = self.content(named.id) else { return Ok(()) };
                self.write(decoder, &File::from(file), named, content, chunks.clone())
            }
        }
    }

    fn write(
        &self,
        decoder: &mut Decoder,
        file: &File,
        named: &Named,
        content: &Content,
        chunks: std::ops::Range<usize>,
    ) -> Result<(), Failed> {
        let size = u64::from(self.image.image.superblock.format.chunk_size.bytes());
        let path = || std::os::unix::ffi::OsStringExt::into_vec(self.plan.path(named).into_os_string());
        for (number, name) in content.chunks.iter().enumerate().take(chunks.end).skip(chunks.start) {
            let raw = content::chunk(self.image, decoder, *name, &path)?;
            let written =
                sparse::write(file, number as u64 * size, raw).map_err(|e| self.failed("write", named, e))?;
            self.written.fetch_add(written, Ordering::Relaxed);
            let len = raw.len() as u64;
            (self.progress)(self.done.fetch_add(len, Ordering::Relaxed) + len, self.total);
        }
        Ok(())
    }

    fn finish(&self, file: &File, named: &Named) -> Result<(), Failed> {
        let Some(node) = self.node(named.id) else { return Ok(()) };
        let left = meta::apply(file, node, self.options, true)
            .map_err(|e| self.failed("set owner, mode, times or attributes of", named, e))?;
        self.leave_out(left);
        Ok(())
    }

    fn other(&self, dir: &Dir, named: &Named, node: &Node) -> std::io::Result<()> {
        let name = &*named.name;
        let made = |kind, device: u64| rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device);
        if self.options.unprivileged && matches!(node.kind, Kind::Char(_) | Kind::Block(_)) {
            self.leave_out(1);
            return Ok(());
        }
        self.clear(dir, name)?;
        match &node.kind {
            Kind::Symlink(target) => rustix::fs::symlinkat(&**target, dir, name)?,
            Kind::Char(rdev) => made(FileType::CharacterDevice, rdev.0)?,
            Kind::Block(rdev) => made(FileType::BlockDevice, rdev.0)?,
            Kind::Fifo => made(FileType::Fifo, 0)?,
            Kind::Socket => made(FileType::Socket, 0)?,
            // These have been made already.
            Kind::Dir(_) | Kind::File(_) => return Ok(()),
        }
        self.leave_out(meta::apply_at(dir, name, node, self.options)?);
        Ok(())
    }

    fn link(&self, from: &Dir, first: &CStr, to: &Dir, name: &CStr) -> std::io::Result<()> {
        self.clear(to, name)?;
        match rustix::fs::linkat(from, first, to, name, AtFlags::empty()) {
            // A device that was left out.
            Err(Errno::NOENT) if self.options.unprivileged => {
                self.leave_out(1);
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

/// A file that was made before, to write.
fn existing(dir: &Dir, name: &CStr) -> std::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}
