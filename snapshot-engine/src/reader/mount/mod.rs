//! An image on a directory.
//!
//! ```text
//! every chunk raw, and where its slot is?  --yes--> the kernel's EROFS reads the blobs: no process of ours, nothing verified
//!                                          '-no---> FUSE: a process serves it, every byte is verified
//! --rw:  an overlay on top; its upper and work directories are the user's, or ours and gone with it
//! ```
//!
//! A read-only mount is undone by umount(8) as well: the serving process ends with it. With an overlay, `image unmount` undoes both.

mod cache;
mod fuse;
mod room;

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::{Opened, ReaderError};
use crate::image::mount::mount_persistent;
use crate::kernel::beneath::{Dir, stat_fd, xattrs_fd};
use crate::kernel::signals;
use crate::model::chunk::FsVersion;
use room::{Room, State};

/// Who reads the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// The kernel's EROFS.
    Kernel,
    /// A process of ours.
    Fuse,
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Who shall read it; the kernel if it can, when nothing is said.
    pub through: Option<Through>,
    /// Make it writable by an overlay.
    pub rw: bool,
    /// Where the overlay keeps what is written: `upper/` and `work/` in here.
    pub rw_dir: Option<PathBuf>,
}

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    #[serde(with = "crate::model::paths")]
    pub at: PathBuf,
    /// Who reads it.
    pub through: Through,
    /// Whether it can be written.
    pub rw: bool,
    /// The process that serves it.
    pub pid: Option<u32>,
}

/// Whether the kernel can read the blobs as they are: RAFS v6, and every chunk raw in the place of its slot.
#[must_use]
pub fn kernel_reads(image: &Opened) -> bool {
    image.image.superblock.version == FsVersion::V6
        && image.image.chunks.as_slice().iter().all(|c| !c.compressed && c.info.offset == c.info.slot)
}

/// Who would read this image for these options.
///
/// # Errors
/// [`ReaderError::Unfit`] when the kernel is asked for and cannot.
pub fn reader_for(image: &Opened, options: &Options) -> Result<Through, ReaderError> {
    match (options.through, kernel_reads(image)) {
        (Some(Through::Fuse), _) | (None, false) => Ok(Through::Fuse),
        (Some(Through::Kernel) | None, true) => Ok(Through::Kernel),
        (Some(Through::Kernel), false) => Err(ReaderError::Unfit {
            what: "read by the kernel: its chunks are compressed, or not where the kernel looks for them",
            remedy: "leave out `--through kernel`, export it and mount the file, or build it with compressor `none`",
        }),
    }
}

/// The canonical path of a place to mount on.
///
/// # Errors
/// When it is no directory, or has an image of ours already.
pub fn place(at: &Path) -> Result<PathBuf, ReaderError> {
    let at = at.canonicalize().map_err(ReaderError::io("find the directory", at))?;
    let known = Room::of(&at).read().map_err(ReaderError::io("read the state of", &at))?.is_some();
    if is_mount(&at) && (known || is_image(&at)) {
        return Err(ReaderError::Mounted(at));
    }
    Ok(at)
}

/// The log of the process that serves a mount.
#[must_use]
pub fn log(at: &Path) -> PathBuf {
    Room::of(at).path("log")
}

/// Makes room for a mount, and gives the file for the log of the process that will serve it.
///
/// # Errors
/// When that cannot be made.
pub fn prepare(at: &Path) -> Result<PathBuf, ReaderError> {
    let room = Room::of(at);
    room.make().map_err(ReaderError::io("make", &room.dir))?;
    Ok(room.path("log"))
}

/// Mounts an image that the kernel reads.
///
/// # Errors
/// When the kernel refuses; then nothing is left mounted.
pub fn mount_kernel(image: &Opened, at: &Path, options: &Options) -> Result<Report, ReaderError> {
    let path = boot_file(image)?;
    let blobs: Vec<&Path> = image.files.iter().map(|file| file.path.as_path()).collect();
    let room = Room::of(at);
    let lower = lower(&room, at, options)?;
    let result = mount_persistent(path.path(), &blobs, &lower)
        .map_err(|e| ReaderError::Mount { at: at.to_owned(), source: io::Error::other(e) });
    finish(result, &room, at, options, None)?;
    Ok(Report { at: at.to_owned(), through: Through::Kernel, rw: options.rw, pid: None })
}

/// The bootstrap as a file: that of a layout is packed.
fn boot_file(image: &Opened) -> Result<tempfile::NamedTempFile, ReaderError> {
    let failed = |e| ReaderError::io("write the bootstrap to", &std::env::temp_dir())(e);
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    io::Write::write_all(&mut file, &image.bootstrap).map_err(failed)?;
    Ok(file)
}

/// Serves an image until it is unmounted or a signal asks this process to end, and undoes everything then. `ready` is called when it can
/// be used.
///
/// # Errors
/// When it cannot be mounted, and what `ready` returns; then nothing is left mounted.
pub fn serve<E: From<ReaderError>>(
    image: Opened,
    at: &Path,
    options: &Options,
    ready: impl FnOnce(&Report) -> Result<(), E>,
) -> Result<(), E> {
    let room = Room::of(at);
    let lower = lower(&room, at, options)?;
    let mount = |source| ReaderError::Mount { at: at.to_owned(), source };
    let session = fuse::serve(image, &lower).map_err(mount)?;
    let pid = std::process::id();
    let serving = Serving { room: &room, at, options };
    let report = Report { at: at.to_owned(), through: Through::Fuse, rw: options.rw, pid: Some(pid) };
    // Dropped on the way out: the overlay goes first, then the session, then the room.
    let result = finish(Ok(()), &room, at, options, Some(pid)).map_err(E::from).and_then(|()| ready(&report));
    if result.is_ok() {
        while !session.guard.is_finished() && signals::caught().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    drop(serving);
    if session.guard.is_finished() {
        let _ = session.join();
    } else {
        // Whoever still has something of it open is not waited for.
        let _ = rustix::mount::unmount(&lower, UnmountFlags::DETACH);
        drop(session);
    }
    let _ = room.remove();
    result
}

struct Serving<'a> {
    room: &'a Room,
    at: &'a Path,
    options: &'a Options,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if self.options.rw && self.room.path("lower").exists() && is_mount(self.at) {
            let _ = rustix::mount::unmount(self.at, UnmountFlags::DETACH);
        }
    }
}

/// Where the image itself goes.
fn lower(room: &Room, at: &Path, options: &Options) -> Result<PathBuf, ReaderError> {
    if !options.rw {
        return Ok(at.to_owned());
    }
    if !room.dir.is_dir() {
        room.make().map_err(ReaderError::io("make", &room.dir))?;
    }
    room.directory("lower").map_err(ReaderError::io("make", &room.dir))
}

/// The overlay, and the note of what was done. On failure everything is undone.
fn finish(
    mounted: Result<(), ReaderError>,
    room: &Room,
    at: &Path,
    options: &Options,
    pid: Option<u32>,
) -> Result<(), ReaderError> {
    let result = mounted.and_then(|()| {
        if options.rw {
            overlay(room, &room.path("lower"), at, options.rw_dir.as_deref())?;
        }
        if options.rw || pid.is_some() {
            if !room.dir.is_dir() {
                room.make().map_err(ReaderError::io("make", &room.dir))?;
            }
            room.write(&State { at: at.to_owned(), rw: options.rw, pid })
                .map_err(ReaderError::io("write", &room.dir))?;
        }
        Ok(())
    });
    if result.is_err() && options.rw {
        let _ = rustix::mount::unmount(room.path("lower"), UnmountFlags::DETACH);
        if pid.is_none() {
            let _ = room.remove();
        }
    }
    result
}

/// Puts an overlay over a directory. What is written goes to `upper/` in `rw_dir`; [`unmount`] undoes it.
///
/// # Errors
/// When the kernel refuses; then nothing is mounted.
pub fn over(tree: &Path, at: &Path, rw_dir: &Path) -> Result<(), ReaderError> {
    let at = place(at)?;
    let room = Room::of(&at);
    room.make().map_err(ReaderError::io("make", &room.dir))?;
    let state = State { at: at.clone(), rw: true, pid: None };
    let noted = room.write(&state).map_err(ReaderError::io("write", &room.dir));
    let result = noted.and_then(|()| overlay(&room, tree, &at, Some(rw_dir)));
    if result.is_err() {
        let _ = room.remove();
    }
    result
}

fn overlay(room: &Room, lower: &Path, at: &Path, rw_dir: Option<&Path>) -> Result<(), ReaderError> {
    let make = |path: PathBuf| match std::fs::create_dir(&path) {
        Ok(()) => Ok((path, true)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok((path, false)),
        Err(e) => Err(ReaderError::io("make", &path)(e)),
    };
    let dir = match rw_dir {
        Some(dir) => dir.canonicalize().map_err(ReaderError::io("find the directory", dir))?,
        None => room.dir.clone(),
    };
    let ((upper, new), (work, _)) = (make(dir.join("upper"))?, make(dir.join("work"))?);
    if new {
        as_root_of(lower, &upper).map_err(ReaderError::io("give the image's attributes to", &upper))?;
    }
    let refused = |source: rustix::io::Errno| ReaderError::Mount { at: at.to_owned(), source: source.into() };
    let mut data = Vec::new();
    for (key, path) in [("lowerdir=", lower), (",upperdir=", &upper), (",workdir=", &work)] {
        data.extend_from_slice(key.as_bytes());
        data.extend(escaped(path));
    }
    let data = CString::new(data).map_err(|_| refused(rustix::io::Errno::INVAL))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount("overlay", at, "overlay", flags, Some(data.as_c_str())).map_err(refused)
}

/// Makes a new upperdir look like the root of what lies below it: an overlay shows its upper's owner, mode, attributes and time there (`ovl_getattr`), which
/// would else be those of whoever mounts it.
fn as_root_of(lower: &Path, upper: &Path) -> io::Result<()> {
    let root = Dir::open(lower)?;
    let stat = stat_fd(root.as_fd())?;
    let attributes = xattrs_fd(root.as_fd())?;
    rustix::fs::chown(upper, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
    rustix::fs::chmod(upper, Mode::from_raw_mode(stat.mode & 0o7777))?;
    for (name, value) in attributes {
        match rustix::fs::setxattr(upper, name, &value, XattrFlags::empty()) {
            // Some file systems in memory cannot hold all. overlayfs' own copies go without them, too (`ovl_copy_xattr`).
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let time = Timespec { tv_sec: stat.mtime.0, tv_nsec: i64::from(stat.mtime.1) };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, upper, &times, AtFlags::empty())?)
}

/// What overlayfs would take for the end of a path or an option.
fn escaped(path: &Path) -> Vec<u8> {
    let special = |b: &u8| matches!(b, b'\\' | b',' | b':');
    path.as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|b| special(b).then_some(b'\\').into_iter().chain([*b]))
        .collect()
}

/// Whether something is mounted exactly there.
fn is_mount(at: &Path) -> bool {
    rustix::fs::statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether a process is there and no zombie: the first process of a container may not reap.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// `EROFS_SUPER_MAGIC_V1` and `FUSE_SUPER_MAGIC` (linux/magic.h).
const MAGICS: [i64; 2] = [0xE0F5_E1E2, 0x6573_5546];

/// Whether it is of a kind that images are mounted as.
fn is_image(at: &Path) -> bool {
    rustix::fs::statfs(at).is_ok_and(|s| MAGICS.contains(&s.f_type))
}

/// Undoes a mount of an image: overlay, image, and what was made for it.
///
/// # Errors
/// [`ReaderError::NotMounted`]; when something in it is in use.
pub fn unmount(at: &Path) -> Result<(), ReaderError> {
    let at = at.canonicalize().map_err(ReaderError::io("find the directory", at))?;
    let room = Room::of(&at);
    let state = room.read().map_err(ReaderError::io("read the state of", &at))?;
    let here = is_mount(&at);
    let gone = |result: rustix::io::Result<()>, path: &Path| match result {
        // Somebody was here before.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(ReaderError::Unmount { at: path.to_owned(), source: e.into() }),
    };
    let Some(state) = state else {
        if !here || !is_image(&at) {
            return Err(ReaderError::NotMounted(at));
        }
        return gone(rustix::mount::unmount(&at, UnmountFlags::empty()), &at);
    };
    if here {
        gone(rustix::mount::unmount(&at, UnmountFlags::empty()), &at)?;
    }
    if state.rw {
        let lower = room.path("lower");
        gone(rustix::mount::unmount(&lower, UnmountFlags::empty()), &lower)?;
    }
    if let Some(pid) = state.pid {
        // A process that serves nothing any more ends at once.
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_running(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    room.remove().map_err(ReaderError::io("remove", &room.dir))
}
