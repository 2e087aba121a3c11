//! Handles that never leave the tree they were opened in.
//!
//! A container owns the tree we walk and changes it while we do: a directory may become a symbolic link to
//! `/etc` between two calls. So nothing here takes a path of more than the one component it opens, or it goes through
//! `openat2(2)` with `RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV`; files are opened `O_NOFOLLOW | O_NONBLOCK`
//! (a FIFO cannot hold us) and `O_NOATIME` (reading leaves no trace). No device is opened, which may rewind a tape or start a watchdog: an
//! `O_PATH` descriptor shows what something is before it is opened for reading, or the mount has no devices.
//!
//! The root of a container's tree is [enclosed](Dir::enclose): a mount of its own, where the kernel itself refuses whatever a bug here
//! might try.

use std::cell::LazyCell;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::enclosure;
use super::xattr_list::list_at;
pub use crate::model::inode::{Stat, Xattrs};

/// The most bytes one inode's attribute names may take (`XATTR_LIST_MAX`, linux/limits.h).
const XATTR_LIST_MAX: usize = 65536;
/// The most bytes of names and values read of one inode. XFS would take 65536 bytes for each of ten thousand names; no image format
/// does, RAFS ends at 256 KiB.
pub const XATTRS_MAX: usize = 1 << 20;
/// How often an open is tried that the kernel wants tried again, and after how many tries each one waits a millisecond first.
const TRIES: u32 = 1000;
const TRIES_AT_ONCE: u32 = 100;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: any bytes but NUL and `/`.
    pub name: CString,
    /// The inode number it leads to.
    pub ino: u64,
    /// `DT_*` of the entry; `DT_UNKNOWN` where the file system does not say.
    pub kind: u8,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// The mount is one of [`Dir::enclose`]: the kernel opens no device on it. What is opened beneath is on the same mount (`RESOLVE_NO_XDEV`).
    enclosed: bool,
}

impl From<OwnedFd> for Dir {
    /// A directory that is open already.
    fn from(fd: OwnedFd) -> Dir {
        Dir { fd, enclosed: false }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How anything of the container's is opened for reading.
pub(crate) const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME)
    .union(OFlags::NOCTTY);

/// How a name of the container's is resolved.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Dir {
    /// Opens the root of a tree. Links on the way are followed: the path is the operator's, not the container's.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Dir { fd, enclosed: false })
    }

    /// Opens the root of a container's tree through a private mount of it: read-only, without devices, without links that are followed, without
    /// access times, and without whatever is mounted below the tree. Nothing can be mounted into it, and it ends with the
    /// descriptors opened through it.
    ///
    /// Where the kernel refuses that (the tree can be reached through another mount namespace only, or its mount may not be cloned), the tree
    /// is opened as it is; everything else said above holds nevertheless.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn enclose(path: &Path) -> io::Result<Dir> {
        match enclosure::of_path(path) {
            Ok(fd) => Ok(Dir { fd, enclosed: true }),
            Err(error) => {
                tracing::debug!(?path, %error, "the tree is read without a mount of its own");
                Dir::open(path)
            }
        }
    }

    /// `openat2(2)` beneath this directory.
    ///
    /// The kernel asks for another try (`EAGAIN`) when a rename ran beside the walk, and when somebody holds a lease on the file. A
    /// lease is never ours to wait out: after a second the answer is that error.
    fn openat(&self, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
        self.openat_by(name, flags, BENEATH)
    }

    fn openat_by(&self, name: &CStr, mut flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // O_NOATIME is for owners and CAP_FOWNER only; a squashing file system may refuse it.
                Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => flags.remove(OFlags::NOATIME),
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => {
                    tries += 1;
                    if tries > TRIES_AT_ONCE {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Opens a directory below this one; `name` may have several components, none of which may be a link.
    ///
    /// # Errors
    /// As `openat2(2)`: `ENOTDIR` and `ELOOP` when it has become something else.
    pub fn open_dir(&self, name: &CStr) -> io::Result<Dir> {
        Ok(Dir { fd: self.openat(name, READ | OFlags::DIRECTORY)?, enclosed: self.enclosed })
    }

    /// Opens a regular file below this one for reading, and nothing else; what it is now. For trees that nobody changes: on an
    /// [enclosed](Dir::enclose) one a FIFO that has just taken the name is opened and closed again.
    ///
    /// # Errors
    /// As `openat2(2)`; `EINVAL` when it is no regular file, or `EACCES` for a device.
    pub fn open_file(&self, name: &CStr) -> io::Result<(OwnedFd, Stat)> {
        let regular = |stat: Stat| if stat.is_file() { Ok(stat) } else { Err(io::Error::from(Errno::INVAL)) };
        if self.enclosed {
            let fd = self.openat(name, READ)?;
            let stat = regular(stat_fd(fd.as_fd())?)?;
            return Ok((fd, stat));
        }
        let place = self.open_path(name)?;
        let stat = regular(stat_fd(place.as_fd())?)?;
        Ok((reopen(place.as_fd())?, stat))
    }

    /// Opens any inode below this one as a location only (`O_PATH`): nothing is read and no device is woken.
    ///
    /// # Errors
    /// As `openat2(2)`.
    pub fn open_path(&self, name: &CStr) -> io::Result<OwnedFd> {
        self.openat(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    /// As [`open_path`](Dir::open_path), but over mounts: for a path of several components whose mount is then looked at.
    ///
    /// # Errors
    /// As `openat2(2)`; `ELOOP` for a link on the way, or at its end.
    pub fn open_path_across(&self, name: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        self.openat_by(name, flags, BENEATH.difference(ResolveFlags::NO_XDEV))
    }

    /// The entries without `.` and `..`, in the order the file system gives them.
    ///
    /// # Errors
    /// As `getdents64(2)`.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        self.entries_at_most(usize::MAX)
    }

    /// As [`entries`](Dir::entries), but gives up soon after `limit` of them: more are returned than that, but not all.
    ///
    /// # Errors
    /// As `getdents64(2)`.
    pub fn entries_at_most(&self, limit: usize) -> io::Result<Vec<Entry>> {
        // A descriptor of its own, so that the position of this one is never shared.
        // O_NOATIME: an access time that changed would look like a change of the directory to the tracker.
        let fd = self.openat(c".", READ | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut raw = rustix::fs::RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            entries.push(Entry {
                name: name.to_owned(),
                ino: entry.ino(),
                kind: file_type_to_dt(entry.file_type()),
            });
            if entries.len() > limit {
                break;
            }
        }
        Ok(entries)
    }

    /// `statx(2)` of a name in this directory, not following a link.
    ///
    /// # Errors
    /// As `statx(2)`.
    pub fn stat(&self, name: &CStr) -> io::Result<Stat> {
        statx(self.fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The target of a symbolic link in this directory.
    ///
    /// # Errors
    /// As `readlinkat(2)`.
    pub fn read_link(&self, name: &CStr) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::with_capacity(256))?.into_bytes())
    }

    /// Sets an extended attribute of a name in this directory, not following a link.
    ///
    /// # Errors
    /// As `setxattr(2)`.
    pub fn set_xattr(&self, name: &CStr, key: &[u8], value: &[u8]) -> io::Result<()> {
        let path = in_proc(self.fd.as_fd(), Some(name));
        Ok(rustix::fs::lsetxattr(&path, key, value, rustix::fs::XattrFlags::empty())?)
    }

    /// Every extended attribute of a name in this directory, sorted by name, not following a link.
    ///
    /// # Errors
    /// As `listxattr(2)` and `getxattr(2)`; a file system without attributes has none.
    pub fn xattrs(&self, name: &CStr) -> io::Result<Xattrs> {
        let path = LazyCell::new(|| in_proc(self.fd.as_fd(), Some(name)));
        xattrs(
            |list| match list_at(self.fd.as_fd(), name, list) {
                Some(listed) => listed,
                None => rustix::fs::llistxattr(&**path, list),
            },
            |key, value| rustix::fs::lgetxattr(&**path, key, value),
        )
    }
}

/// `statx(2)` of an open descriptor, an `O_PATH` one too.
///
/// # Errors
/// As `statx(2)`.
pub fn stat_fd(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    statx(fd, c"", AtFlags::EMPTY_PATH)
}

/// Every extended attribute of an open file or directory, sorted by name.
///
/// # Errors
/// As `flistxattr(2)` and `fgetxattr(2)`.
pub fn xattrs_fd(fd: BorrowedFd<'_>) -> io::Result<Xattrs> {
    xattrs(|list| rustix::fs::flistxattr(fd, list), |key, value| rustix::fs::fgetxattr(fd, key, value))
}

/// Opens for reading what an `O_PATH` descriptor stands for. The caller has looked at its type with [`stat_fd`] before: so nothing but
/// a regular file or a directory is ever opened for reading, whatever the container puts under the name meanwhile (opening a
/// device may reset it, opening a FIFO lets a writer go on that was waiting for a reader).
///
/// # Errors
/// As `open(2)`.
pub fn reopen(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = in_proc(fd, None);
    // The last component is a magic link, which O_NOFOLLOW would refuse.
    let flags = READ.difference(OFlags::NOFOLLOW);
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(Errno::PERM) => Ok(rustix::fs::open(&path, flags.difference(OFlags::NOATIME), Mode::empty())?),
        fd => Ok(fd?),
    }
}

/// Every extended attribute of what an `O_PATH` descriptor stands for, sorted by name. Of a symbolic link these are the link's
/// own: a magic link in `/proc` jumps to the inode and is not followed any further (`nd_jump_link`, fs/namei.c).
///
/// # Errors
/// As `listxattr(2)` and `getxattr(2)`; a file system without attributes has none.
pub fn xattrs_path(fd: BorrowedFd<'_>) -> io::Result<Xattrs> {
    let path = in_proc(fd, None);
    xattrs(|list| rustix::fs::listxattr(&path, list), |key, value| rustix::fs::getxattr(&path, key, value))
}

/// The target of the symbolic link an `O_PATH` descriptor stands for.
///
/// # Errors
/// As `readlinkat(2)`.
pub fn read_link_fd(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(fd, c"", Vec::with_capacity(256))?.into_bytes())
}

fn statx(fd: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> io::Result<Stat> {
    Ok(Stat::from(&rustix::fs::statx(fd, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

impl From<&rustix::fs::Statx> for Stat {
    fn from(s: &rustix::fs::Statx) -> Stat {
        let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
        Stat {
            ino: s.stx_ino,
            dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            mode: u32::from(s.stx_mode),
            nlink: s.stx_nlink,
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: rustix::fs::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            blocks: s.stx_blocks,
            atime: time(s.stx_atime),
            mtime: time(s.stx_mtime),
            ctime: time(s.stx_ctime),
            btime: if s.stx_mask & StatxFlags::BTIME.bits() == 0 { (0, 0) } else { time(s.stx_btime) },
        }
    }
}

/// The path of a descriptor, or of a name in it, in `/proc/self/fd`: for calls that have no `*at` form. Only the last component
/// is resolved in the container's tree, and the callers' `l*` calls do not follow it.
fn in_proc(fd: BorrowedFd<'_>, name: Option<&CStr>) -> CString {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
    }
    // Neither part has an inner NUL, so the cut never happens.
    CString::new(path).unwrap_or_default()
}

fn xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Xattrs> {
    // Most have few names or none.
    let (mut few, mut many) = ([0; 256], Vec::new());
    let mut names: &mut [u8] = &mut few;
    let len = loop {
        match list(names) {
            Ok(len) => break len,
            Err(Errno::RANGE) if names.len() < XATTR_LIST_MAX => {
                many.resize(XATTR_LIST_MAX, 0);
                names = &mut many;
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    };
    let mut all = Vec::new();
    let mut total = len;
    for name in names[..len].split_inclusive(|b| *b == 0) {
        let Ok(key) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0; 256];
        let len = loop {
            match get(key, &mut value) {
                Ok(len) => break Some(len),
                // XATTR_SIZE_MAX (linux/limits.h).
                Err(Errno::RANGE) if value.len() < 65536 => value.resize(65536, 0),
                // Gone since it was listed.
                Err(Errno::NODATA) => break None,
                Err(e) => return Err(e.into()),
            }
        };
        if let Some(len) = len {
            total += len;
            if total > XATTRS_MAX {
                return Err(Errno::TOOBIG.into());
            }
            value.truncate(len);
            value.shrink_to_fit();
            all.push((key.to_bytes().to_vec(), value));
        }
    }
    all.sort();
    Ok(all)
}

fn file_type_to_dt(kind: rustix::fs::FileType) -> u8 {
    use rustix::fs::FileType as T;
    match kind {
        T::RegularFile => libc::DT_REG,
        T::Directory => libc::DT_DIR,
        T::Symlink => libc::DT_LNK,
        T::Fifo => libc::DT_FIFO,
        T::Socket => libc::DT_SOCK,
        T::CharacterDevice => libc::DT_CHR,
        T::BlockDevice => libc::DT_BLK,
        T::Unknown => libc::DT_UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_leaves_the_tree() -> io::Result<()> {
        let tree = tempfile::tempdir()?;
        std::os::unix::fs::symlink("/etc", tree.path().join("link"))?;
        std::fs::create_dir(tree.path().join("dir"))?;
        std::fs::write(tree.path().join("dir/file"), "x")?;
        let root = Dir::open(tree.path())?;
        assert!(root.open_dir(c"link").is_err());
        assert!(root.open_file(c"link/passwd").is_err());
        assert!(root.open_dir(c"..").is_err());
        assert!(root.open_file(c"dir/file").is_ok());
        assert_eq!(root.read_link(c"link")?, b"/etc");
        assert!(root.stat(c"link")?.is_symlink());
        assert_eq!(root.entries()?.len(), 2);
        Ok(())
    }

    #[test]
    fn neither_a_fifo_nor_a_device_is_opened() -> io::Result<()> {
        let tree = tempfile::tempdir()?;
        let at = |name: &str| tree.path().join(name);
        let make = |name, kind, dev| {
            rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, Mode::RUSR | Mode::WUSR, dev)
        };
        make("fifo", rustix::fs::FileType::Fifo, 0)?;
        std::fs::write(at("file"), "x")?;
        // /dev/null; root's privilege.
        let device = make("device", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)).is_ok();
        for root in [Dir::open(tree.path())?, Dir::enclose(tree.path())?] {
            let refused = |name| root.open_file(name).unwrap_err().raw_os_error();
            assert_eq!(refused(c"fifo"), Some(libc::EINVAL));
            if device {
                assert_eq!(refused(c"device"), Some(if root.enclosed { libc::EACCES } else { libc::EINVAL }));
            }
            let (_, stat) = root.open_file(c"file")?;
            assert_eq!((stat.ino, stat.size), (root.stat(c"file")?.ino, 1));
        }
        Ok(())
    }

    #[test]
    fn attributes_are_listed_with_and_without_the_newer_call() -> io::Result<()> {
        let tree = tempfile::tempdir_in(".")?;
        std::fs::write(tree.path().join("file"), "x")?;
        std::os::unix::fs::symlink("file", tree.path().join("link"))?;
        let dir = Dir::open(tree.path())?;
        assert!(dir.xattrs(c"file")?.is_empty());
        for (name, size) in [("user.long-enough-to-need-a-second-call", 300), ("user.a", 0)] {
            dir.set_xattr(c"file", name.as_bytes(), &vec![b'v'; size])?;
        }
        let long: Vec<String> = (0..8).map(|n| format!("user.{n}{}", "-".repeat(40))).collect();
        for name in &long {
            dir.set_xattr(c"file", name.as_bytes(), b"v")?;
        }
        let here = dir.xattrs(c"file")?;
        assert_eq!(here.len(), 2 + long.len());
        let place = dir.open_path(c"file")?;
        assert_eq!(here, xattrs_path(place.as_fd())?);
        assert!(dir.xattrs(c"link")?.iter().all(|(name, _)| !name.starts_with(b"user.")), "the link's own");
        assert_eq!(dir.xattrs(c"none").unwrap_err().raw_os_error(), Some(libc::ENOENT));
        Ok(())
    }

    #[test]
    fn a_lease_is_an_error_and_no_endless_loop() -> io::Result<()> {
        let tree = tempfile::tempdir()?;
        std::fs::write(tree.path().join("leased"), "x")?;
        let holder = std::fs::File::open(tree.path().join("leased"))?;
        // fcntl(2), F_SETSIG: the usual signal of a broken lease would end the test, this one is ignored.
        const SET_SIGNAL: i32 = 10;
        // SAFETY: takes no pointers; the descriptor is open.
        let quiet = unsafe { libc::fcntl(holder.as_raw_fd(), SET_SIGNAL, libc::SIGURG) } == 0;
        // SAFETY: as above.
        let leased =
            quiet && unsafe { libc::fcntl(holder.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } == 0;
        if !leased {
            return Ok(());
        }
        let refused = Dir::open(tree.path())?.openat(c"leased", READ).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
        Ok(())
    }
}
