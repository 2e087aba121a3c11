//! The overlay that is a container's root.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::mountinfo::{self, Mount};
use super::{complete, locate, options, process};
use crate::model::pid::Pid;

/// The layers of the target's root and where they lie. Paths are reachable by the engine: in its own mount
/// namespace, or else through some `/proc/PID/root`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The live writable layer.
    pub upper: PathBuf,
    /// Overlayfs' work directory; as the mount options have it if it cannot be reached.
    pub work: PathBuf,
    /// The read-only layers, top first; as the mount options have them if they cannot be reached.
    pub lowers: Vec<PathBuf>,
    /// Data-only layers (`::` and `datadir+`), reached through metacopy redirects.
    pub data: Vec<PathBuf>,
    /// Whether overlayfs keeps its marks in `user.overlay.*` instead of `trusted.overlay.*`.
    pub userxattr: bool,
    /// `s_dev` of the overlay's superblock, as the kernel packs it ([`mountinfo::kernel_device`]).
    pub device: u64,
    /// `s_dev` of the upper's superblock, as the kernel packs it. On btrfs it is not `st_dev`, which is the subvolume's.
    pub upper_device: u64,
    /// `st_dev` and inode number of the upper directory. Its path may lead through directories of the container's: what is opened by it must still be this.
    pub upper_identity: (u64, u64),
    /// The upper's file system type: `ext4`, `xfs`, `btrfs`, `tmpfs` ...
    pub upper_fs: String,
    /// The other mount options: `redirect_dir`, `metacopy`, `index` ...; flags have an empty value.
    pub options: Vec<(String, String)>,
}

impl Overlay {
    /// The value of an option (`Some("")` for a flag).
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The overlay that is the root of `init`.
    ///
    /// # Errors
    /// [`Error::NotOverlay`], [`Error::ReadOnlyOverlay`], [`Error::NestedUpper`], [`Error::UpperMissing`], [`Error::LayerMissing`], and whatever reading
    /// `/proc` gives.
    pub fn of(init: Pid) -> Result<Overlay, Error> {
        let table = process::dir(init).join("mountinfo");
        let mounts = process::mounts(init).map_err(|e| Error::io(&table, e))?;
        let mount = mountinfo::root(&mounts).ok_or_else(|| not_overlay(init, "not in its mount table"))?;
        if mount.fs_type != "overlay" {
            return Err(not_overlay(init, &mount.fs_type));
        }
        if mount.root != Path::new("/") {
            return Err(not_overlay(init, "a directory inside an overlay"));
        }
        Overlay::from_mount(init, mount)
    }

    fn from_mount(init: Pid, mount: &Mount) -> Result<Overlay, Error> {
        let options = options::parse(&mount.super_options);
        let Some(upper) = &options.upper else { return Err(Error::ReadOnlyOverlay { init }) };
        let meanings = options::meanings(upper);
        let layers: Vec<&[u8]> = meanings.iter().chain(&options.lowers).map(Vec::as_slice).collect();
        let views = locate::views(init, mount, &layers);
        let found = find_upper(init, &meanings, &views)?;
        let (upper_device, upper_fs) = superblock(&found, &views);
        if upper_fs == "overlay" {
            return Err(Error::NestedUpper { upper: found.path });
        }
        let reach = |layer: &Vec<u8>| {
            let written = || PathBuf::from(OsString::from_vec(layer.clone()));
            locate::layer(&views, layer).unwrap_or_else(written)
        };
        let lowers: Vec<PathBuf> = options.lowers.iter().map(reach).collect();
        let layers = || std::iter::once(found.path.as_path()).chain(lowers.iter().map(PathBuf::as_path));
        let root = process::root(init);
        if let Some(name) = complete::missing(&root, layers()).map_err(|e| Error::io(&root, e))? {
            let name = name.to_string_lossy().into_owned();
            return Err(Error::LayerMissing { init, name, layers: layers().map(Path::to_owned).collect() });
        }
        let work = options.work.as_deref().map(options::meanings).unwrap_or_default();
        Ok(Overlay {
            upper: found.path,
            work: work.first().map(reach).unwrap_or_default(),
            lowers,
            data: options.data.iter().map(reach).collect(),
            userxattr: options.userxattr,
            device: mount.device(),
            upper_device,
            upper_identity: (rustix::fs::makedev(found.dev.0, found.dev.1), found.ino),
            upper_fs,
            options: options.rest,
        })
    }
}

fn not_overlay(init: Pid, fs_type: &str) -> Error {
    Error::NotOverlay { init, fs_type: fs_type.to_owned() }
}

fn find_upper(init: Pid, meanings: &[Vec<u8>], views: &[locate::View]) -> Result<locate::Upper, Error> {
    let mut detail = "no such directory".to_owned();
    for view in views {
        match locate::upper(view, meanings, init) {
            Ok(Ok(upper)) => return Ok(upper),
            Ok(Err(other)) => detail = format!("{} is another directory", other.display()),
            Err(e) if process::is_gone(&e) => {}
            Err(e) => return Err(Error::io(&process::root(init), e)),
        }
    }
    let upper = PathBuf::from(OsString::from_vec(meanings.first().cloned().unwrap_or_default()));
    Err(Error::UpperMissing { init, upper, detail })
}

/// Device and type of the superblock the upper lies on. Mount numbers are unique over all namespaces, so any table that holds
/// the mount will do (`mnt_id_ida`, fs/namespace.c).
fn superblock(upper: &locate::Upper, views: &[locate::View]) -> (u64, String) {
    let mount = views.iter().flat_map(|v| &v.mounts).find(|m| m.id == upper.mount);
    match mount {
        Some(mount) => (mount.device(), mount.fs_type.clone()),
        // Not below the root directory of any process looked at: what statfs says, and st_dev, which is right but on btrfs.
        None => (mountinfo::kernel_device(upper.dev.0, upper.dev.1), statfs_type(&upper.path)),
    }
}

fn statfs_type(path: &Path) -> String {
    // Magic numbers of linux/magic.h.
    match rustix::fs::statfs(path).map(|s| s.f_type as u64) {
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x9123_683e) => "btrfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794c_7630) => "overlay".to_owned(),
        Ok(other) => format!("{other:#x}"),
        Err(_) => "unknown".to_owned(),
    }
}
