//! Directories of a container outside its own layer (volumes, bind mounts) that a snapshot is to have as well.
//!
//! ```text
//!   /srv/db, as the container has it --► its mount table: which mount? --► openat2 from the container's root --► is it that mount? --► enclosed
//! ```
//!
//! One cut needs one tracker, and that watches inodes of one file system by their numbers: so what is added must lie on the file system of the
//! upperdir, in the same subvolume. Everything else is refused here, before anything is attached.
//!
//! The container may change its mounts while we look. What counts is what was opened: its mount number and its device, not what the table says of the
//! path. No link is followed on the way, and the directory is then the root of a mount of our own (`kernel/enclosure.rs`), which holds neither the
//! container's mount nor what is mounted below it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::mountinfo::{self, Mount};
use super::{Target, locate, process};
use crate::kernel::beneath::{Dir, Stat, Xattrs, reopen, stat_fd, xattrs_path};
use crate::kernel::enclosure;
use crate::model::pid::Pid;

/// A directory to add.
#[derive(Debug)]
pub struct Added {
    /// Where the container has it.
    pub path: PathBuf,
    /// The directory, opened.
    pub root: Dir,
    /// Metadata of the directories above it, from the one in the container's root down, as the container sees them.
    pub above: Vec<(Stat, Xattrs)>,
}

/// Why a path cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// It is below the overlay.
    #[error("it lies in the container's own layers, so the image has it anyway; leave out this --with-path")]
    InImage,
    /// It is somewhere else.
    #[error(
        "it lies on {fs_type} ({source_}), and the container's layer on {upper_fs}: only what lies on one file system can be captured at one instant; keep \
         that volume on the file system of the runtime's storage, or copy it into the container before"
    )]
    Elsewhere {
        /// The type of its file system.
        fs_type: String,
        /// What is mounted there.
        source_: String,
        /// The type of the upper's file system.
        upper_fs: String,
    },
    /// On btrfs, numbers of inodes are a subvolume's own.
    #[error(
        "it lies in another btrfs subvolume than the container's layer, where other files have the same inode numbers; use a volume in the same \
         subvolume"
    )]
    Subvolume,
    /// It is not there.
    #[error("the container has no such directory")]
    Missing,
    /// A link.
    #[error(
        "it leads through a symbolic link, and links of a container are not followed; name where it leads"
    )]
    Link,
    /// A file, or something stranger.
    #[error("it is not a directory; name the directory that holds it, if that is a volume")]
    NoDirectory,
    /// Nothing is mounted.
    #[error(
        "the container {reference:?} does not run, so nothing is mounted there; start it, or make the snapshot without --with-path"
    )]
    Stopped {
        /// The container.
        reference: String,
    },
    /// It holds the upperdir or another added directory, or is held by one.
    #[error("it shares a directory with {other}; leave one of them out")]
    Overlap {
        /// The other, as the user knows it.
        other: String,
    },
    /// Whose are the files?
    #[error(
        "the container's layer is mounted with its ids mapped, so that owners in it and in a volume are not of one kind; this is not supported"
    )]
    MappedIds,
}

/// Opens what is to be added.
///
/// # Errors
/// [`Error::Added`] for the first that cannot be, with the reason.
pub fn added(target: &Target, paths: &[PathBuf]) -> Result<Vec<Added>, Error> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let init = target.init;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |e| Error::io(&path, e)
    };
    let (table, place) = (process::dir(init).join("mountinfo"), process::root(init));
    let scene = Scene {
        target,
        mounts: process::mounts(init).map_err(io(&table))?,
        namespace: std::fs::File::open(process::dir(init).join("ns/mnt")).map_err(io(&place))?.into(),
        root: Dir::open(&place).map_err(io(&place))?,
    };
    // Places in the file system, to compare: what they are called by whom.
    let mut taken: Vec<(PathBuf, String)> =
        upper_place(target).into_iter().map(|place| (place, "the container's layer".to_owned())).collect();
    let mut all = Vec::new();
    for path in paths {
        let refuse = |why| Error::Added { path: path.clone(), why };
        let (added, place) = scene.open(path).map_err(|e| match e {
            Refused::Because(why) => refuse(why),
            Refused::Io(e) => Error::io(path, e),
        })?;
        if let Some((_, other)) = taken.iter().find(|(t, _)| t.starts_with(&place) || place.starts_with(t)) {
            return Err(refuse(Why::Overlap { other: other.clone() }));
        }
        taken.push((place, path.display().to_string()));
        all.push(added);
    }
    // Whatever was read of a number that changed hands meanwhile is somebody else's.
    if target.is_alive() {
        return Ok(all);
    }
    let (reference, kept) = (target.reference.clone(), process::dir(init));
    Err(Error::NotRunning { reference, init, kept })
}

/// Where the upper is in its file system, if our own mount table tells. If not, an overlap shows while the trees are read.
fn upper_place(target: &Target) -> Option<PathBuf> {
    let upper = &target.overlay.upper;
    let dir = Dir::open(upper).ok()?;
    let id = locate::statx(dir.as_fd()).ok()?.stx_mnt_id;
    let mounts = process::mounts(Pid::own()).ok()?;
    mounts.iter().find(|mount| mount.id == id)?.inside(upper)
}

enum Refused {
    Because(Why),
    Io(io::Error),
}

impl From<Why> for Refused {
    fn from(why: Why) -> Refused {
        Refused::Because(why)
    }
}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Refused {
        match e.raw_os_error() {
            Some(libc::ENOENT) => Refused::Because(Why::Missing),
            Some(libc::ENOTDIR) => Refused::Because(Why::NoDirectory),
            Some(libc::ELOOP) => Refused::Because(Why::Link),
            _ => Refused::Io(e),
        }
    }
}

struct Scene<'a> {
    target: &'a Target,
    mounts: Vec<Mount>,
    namespace: OwnedFd,
    root: Dir,
}

impl Scene<'_> {
    /// A directory to add, and where it is in its file system.
    fn open(&self, path: &Path) -> Result<(Added, PathBuf), Refused> {
        let overlay = &self.target.overlay;
        // By the table first: a file system that does not answer is not even asked.
        if let Some(mount) = mountinfo::covering(path, &self.mounts)
            && mount.device() != overlay.device
        {
            self.must_fit(mount)?;
        }
        let fd = self.at(path)?;
        let stat = locate::statx(fd.as_fd())?;
        let mount = self.mounts.iter().find(|mount| mount.id == stat.stx_mnt_id);
        let mount = mount.ok_or_else(|| io::Error::other("its mounts have changed just now; try again"))?;
        self.must_fit(mount)?;
        let found = stat_fd(fd.as_fd())?;
        if !found.is_dir() {
            return Err(Why::NoDirectory.into());
        }
        if found.dev != overlay.upper_identity.0 {
            return Err(Why::Subvolume.into());
        }
        if self.upper_is_mapped()? {
            return Err(Why::MappedIds.into());
        }
        let above: Result<Vec<_>, Refused> = above(path).into_iter().map(|path| self.look(path)).collect();
        let place = mount.inside(path).unwrap_or_else(|| mount.root.clone());
        let root = match enclosure::in_namespace(self.namespace.as_fd(), fd.as_fd()) {
            Ok(root) => root,
            Err(error) => {
                tracing::debug!(?path, %error, "the tree is read without a mount of its own");
                reopen(fd.as_fd())?
            }
        };
        let root = Dir::from(root);
        let opened = stat_fd(root.as_fd())?;
        if (opened.dev, opened.ino) != (found.dev, found.ino) {
            return Err(io::Error::other("it is another directory than a moment ago; try again").into());
        }
        Ok((Added { path: path.to_owned(), root, above: above? }, place))
    }

    /// Whether a mount is of the upper's file system.
    fn must_fit(&self, mount: &Mount) -> Result<(), Why> {
        let overlay = &self.target.overlay;
        if mount.device() == overlay.device {
            return Err(Why::InImage);
        }
        if mount.device() != overlay.upper_device {
            return Err(Why::Elsewhere {
                fs_type: mount.fs_type.clone(),
                source_: mount.source.display().to_string(),
                upper_fs: overlay.upper_fs.clone(),
            });
        }
        Ok(())
    }

    /// A path of the container's, as a location.
    fn at(&self, path: &Path) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        self.root.open_path_across(&CString::new(relative.as_os_str().as_bytes())?)
    }

    fn look(&self, path: &Path) -> Result<(Stat, Xattrs), Refused> {
        let fd = self.at(path)?;
        Ok((stat_fd(fd.as_fd())?, xattrs_path(fd.as_fd())?))
    }

    /// Whether the upper has the container's ids on the disk already (`model/ids.rs`).
    fn upper_is_mapped(&self) -> io::Result<bool> {
        let ids = &self.target.ids;
        if ids.is_the_hosts() {
            return Ok(false);
        }
        let upper = Dir::open(&self.target.overlay.upper)?;
        Ok(ids.users.inside(stat_fd(upper.as_fd())?.uid).is_none())
    }
}

/// The directories above a path, without the root, the highest first.
fn above(path: &Path) -> Vec<&Path> {
    let mut all: Vec<&Path> = path.ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
    all.reverse();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_is_without_the_root_and_the_path_itself() {
        assert_eq!(above(Path::new("/a/b/c")), [Path::new("/a"), Path::new("/a/b")]);
        assert!(above(Path::new("/a")).is_empty());
    }
}
