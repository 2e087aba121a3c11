//! An image as a FUSE file system: read-only, so the kernel may keep all it has seen; every byte is verified before it is given out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};

use super::cache::Cache;
use crate::model::tree::{Content, Kind, Mtime, Name, Node, NodeId};
use crate::reader::{Opened, content};

/// Nothing ever changes: the kernel may believe what it was told for as long as it likes.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The subtype in the table of mounts.
pub(super) const SUBTYPE: &str = "snapshot-engine";

/// Mounts an image and serves it from threads of its own, until it is unmounted or what is returned is dropped.
pub(super) fn serve(image: Opened, at: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        // The kernel checks modes and owners as on any other file system.
        MountOption::DefaultPermissions,
        MountOption::Subtype(SUBTYPE.to_owned()),
        MountOption::FSName("image".to_owned()),
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16));
    let links = image.image.tree.link_counts();
    let fs = Fs { image, links, cache: Cache::default(), lists: Mutex::default(), next: AtomicU64::new(1) };
    Session::new(fs, at, &config)?.spawn()
}

/// Where the reading of a directory stopped, so that the next call need not count from the start.
type Cursor = Option<(u64, Name)>;

struct Fs {
    image: Opened,
    links: Vec<u32>,
    cache: Cache,
    /// Directories that are being read, by handle.
    lists: Mutex<HashMap<u64, Cursor>>,
    next: AtomicU64,
}

/// Node 0 is the root, whose inode number is 1.
fn number(id: NodeId) -> INodeNo {
    INodeNo(u64::from(id.0) + 1)
}

fn kind(node: &Node) -> FileType {
    match node.kind {
        Kind::Dir(_) => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Char(_) => FileType::CharDevice,
        Kind::Block(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn time(mtime: Mtime) -> SystemTime {
    let whole = Duration::from_secs(mtime.sec.unsigned_abs());
    let base = if mtime.sec < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(mtime.nsec))))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Fs {
    fn node(&self, ino: INodeNo) -> Result<(NodeId, &Node), Errno> {
        let id = ino.0.checked_sub(1).and_then(|n| u32::try_from(n).ok()).map(NodeId).ok_or(Errno::ENOENT)?;
        self.image.image.tree.get(id).map(|node| (id, node)).ok_or(Errno::ENOENT)
    }

    fn attr(&self, id: NodeId, node: &Node) -> FileAttr {
        let (size, rdev) = match &node.kind {
            Kind::File(content) => (content.size, 0),
            Kind::Symlink(target) => (target.len() as u64, 0),
            Kind::Dir(children) => (children.len() as u64, 0),
            // The kernel's own packing has 32 bits.
            Kind::Char(rdev) | Kind::Block(rdev) => (0, rdev.0 as u32),
            Kind::Fifo | Kind::Socket => (0, 0),
        };
        let mtime = time(node.meta.mtime);
        let nlink = match &node.kind {
            // One for each subdirectory is asked for by nobody any more; 1 means "not counted".
            Kind::Dir(_) => 1,
            _ => self.links.get(id.index()).copied().unwrap_or(1),
        };
        FileAttr {
            ino: number(id),
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: kind(node),
            perm: (node.meta.mode & 0o7777) as u16,
            nlink,
            uid: node.meta.uid,
            gid: node.meta.gid,
            rdev,
            blksize: 4096,
            flags: 0,
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let (_, node) = self.node(parent)?;
        let Kind::Dir(children) = &node.kind else { return Err(Errno::ENOTDIR) };
        let id = *children.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
        let node = self.image.image.tree.get(id).ok_or(Errno::EIO)?;
        Ok(self.attr(id, node))
    }

    fn bytes(&self, ino: INodeNo, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let (_, node) = self.node(ino)?;
        let Kind::File(file) = &node.kind else { return Err(Errno::EISDIR) };
        let end = file.size.min(offset.saturating_add(u64::from(size)));
        let mut out = Vec::with_capacity(usize::try_from(end.saturating_sub(offset)).unwrap_or(0));
        let mut at = offset;
        while at < end {
            let part = self.part(file, at)?;
            let place = content::place(&self.image, at);
            let rest = part.get(place.within..).filter(|rest| !rest.is_empty()).ok_or(Errno::EIO)?;
            let len = rest.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            out.extend_from_slice(&rest[..len]);
            at += len as u64;
        }
        Ok(out)
    }

    fn part(&self, file: &Content, at: u64) -> Result<std::sync::Arc<[u8]>, Errno> {
        let name = file.chunks.get(content::place(&self.image, at).number).ok_or(Errno::EIO)?;
        self.cache.chunk(&self.image, *name).map_err(|error| {
            tracing::error!(%error, "the image is damaged");
            Errno::EIO
        })
    }

    fn list(&self, ino: INodeNo, handle: u64, offset: u64, reply: &mut ReplyDirectory) -> Result<(), Errno> {
        let (id, node) = self.node(ino)?;
        let Kind::Dir(children) = &node.kind else { return Err(Errno::ENOTDIR) };
        // The parent's number is nobody's business: the kernel resolves `..` by itself.
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && reply.add(number(id), at, FileType::Directory, name) {
                return Ok(());
            }
        }
        let skip = offset.saturating_sub(2);
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lists.get(&handle).and_then(Option::as_ref).filter(|(at, _)| *at == skip && skip > 0);
        let mut rest: Box<dyn Iterator<Item = (&Name, &NodeId)>> = match known {
            Some((_, last)) => Box::new(children.range::<Name, _>((Excluded(last), Unbounded))),
            None => Box::new(children.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))),
        };
        let mut at = skip;
        let mut last = None;
        for (name, id) in rest.by_ref() {
            let Some(node) = self.image.image.tree.get(*id) else { continue };
            if reply.add(number(*id), at + 3, kind(node), OsStr::from_bytes(name)) {
                break;
            }
            at += 1;
            last = Some(name);
        }
        drop(rest);
        if let Some(last) = last {
            lists.insert(handle, Some((at, last.clone())));
        }
        Ok(())
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_CACHE_SYMLINKS] {
            // An older kernel does without.
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attr) => reply.entry(&FOR_EVER, &attr, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok((id, node)) => reply.attr(&FOR_EVER, &self.attr(id, node)),
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino) {
            Ok((_, Node { kind: Kind::Symlink(target), .. })) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(ino, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.list(ino, fh.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks =
            self.image.image.chunks.as_slice().iter().map(|c| u64::from(c.info.size).div_ceil(4096)).sum();
        reply.statfs(blocks, 0, 0, self.links.len() as u64, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.node(ino).and_then(|(_, node)| {
            let found = node.meta.xattrs.iter().find(|(key, _)| key == name.as_bytes());
            found.map(|(_, value)| value.as_slice()).ok_or(Errno::ENODATA)
        });
        answer(value, size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.node(ino).map(|(_, node)| {
            node.meta.xattrs.iter().flat_map(|(key, _)| key.iter().copied().chain([0])).collect::<Vec<u8>>()
        });
        answer(names.as_deref().map_err(|e| *e), size, reply);
    }
}

/// The protocol of sizes: 0 asks for the length.
fn answer(value: Result<&[u8], Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(e) => reply.error(e),
    }
}
