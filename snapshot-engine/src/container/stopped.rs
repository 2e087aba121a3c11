//! A container that does not run: its upperdir lies there and nobody writes to it.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::error::Error;
use super::{Candidate, Config, ImageRef, Layers, Places, SnapshotKey, resolver};
use crate::model::pid::Pid;
use crate::model::reference::{ContainerRef, Runtime};

/// A container that was made but does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// What the user called it.
    pub reference: String,
    /// Who knows it.
    pub runtime: Runtime,
    /// Its name at its runtime, or its id there.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its layers, as the runtime keeps them.
    pub layers: Layers,
    /// `st_dev` and inode number of the upper directory.
    pub identity: (u64, u64),
    /// How it was started, if its runtime says.
    pub config: Config,
    /// What it was made from, if its runtime says.
    pub image: Option<ImageRef>,
    /// Its snapshot, if it is containerd's.
    pub snapshot: Option<SnapshotKey>,
    kept: std::path::PathBuf,
    mounted: Option<Mounted>,
}

/// What the last mount of an overlay has left in its work directory: inode, birth and change.
type Mounted = (u64, (i64, u32), (i64, u32));

impl Stopped {
    /// The stopped container that a candidate with layers is.
    ///
    /// # Errors
    /// [`Error::LayersElsewhere`] and [`Error::NotRunning`] without layers; [`Error::Io`] or [`Error::Permission`] when its upperdir is not there.
    pub fn of(reference: &str, candidate: Candidate) -> Result<Stopped, Error> {
        let name = candidate.shown().to_owned();
        let Some(layers) = candidate.layers else {
            let reference = reference.to_owned();
            return Err(match candidate.snapshot {
                Some(at) if at.address.as_os_str().is_empty() => {
                    Error::LayersElsewhere { reference, snapshotter: at.snapshotter, namespace: at.namespace }
                }
                _ => Error::NotRunning { reference, init: Pid(0), kept: candidate.kept },
            });
        };
        let identity = identity(&layers.upper).map_err(|e| Error::io(&layers.upper, e))?;
        Ok(Stopped {
            reference: reference.to_owned(),
            runtime: candidate.runtime,
            name,
            id: candidate.id,
            mounted: mounted(&layers.work),
            layers,
            identity,
            config: candidate.config.unwrap_or_default(),
            image: candidate.image,
            snapshot: candidate.snapshot,
            kept: candidate.kept,
        })
    }

    /// Whether it has stayed stopped since it was found: its overlay was not mounted, and its runtime says that it does not run.
    ///
    /// # Errors
    /// [`Error::Changed`] if it has not; and when the runtime cannot be asked again.
    pub fn still(&self, places: &Places) -> Result<(), Error> {
        let changed = || Error::Changed { reference: self.reference.clone() };
        let itself = ContainerRef::At { runtime: self.runtime, name: self.id.clone() };
        let now = resolver::one(&itself, places)?;
        let same = identity(&self.layers.upper).is_ok_and(|found| found == self.identity);
        if now.is_alive() || !same || mounted(&self.layers.work) != self.mounted {
            return Err(changed());
        }
        Ok(())
    }

    /// For whoever needs a running one.
    #[must_use]
    pub fn not_running(&self) -> Error {
        Error::NotRunning { reference: self.reference.clone(), init: Pid(0), kept: self.kept.clone() }
    }
}

/// `st_dev` and inode number of a directory.
pub(super) fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::stat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A writable mount makes the directory `work` in the work directory anew (`ovl_workdir_create`, fs/overlayfs/super.c), and copying up goes through it.
/// `None`: it was never mounted, or its file system shows nothing.
fn mounted(work: &Path) -> Option<Mounted> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, work.join("work"), AtFlags::SYMLINK_NOFOLLOW, mask).ok()?;
    let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
    Some((stat.stx_ino, time(stat.stx_btime), time(stat.stx_ctime)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_leaves_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mounted(dir.path()), None);
        // What the kernel does at every mount.
        std::fs::create_dir(dir.path().join("work")).unwrap();
        let first = mounted(dir.path());
        assert!(first.is_some());
        assert_eq!(mounted(dir.path()), first);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::remove_dir(dir.path().join("work")).unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        assert_ne!(mounted(dir.path()), first);
    }
}
