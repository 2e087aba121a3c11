//! Who can be recognised in the next snapshot by what `statx(2)` says: a file whose content cannot have changed while that stayed as it is.
//!
//! Every way to change a file's content moves its change time (`file_update_time`, fs/inode.c): writes, truncation, `fallocate`, and the
//! first store through a mapping to a page that is clean (`page_mkwrite`). A container can neither set nor stop that clock. What would deceive
//! all the same is kept out, and such a file is read again by the next snapshot:
//!
//! | what could change without a new change time | why it is not here |
//! |---|---|
//! | a second change within one tick of the first | its change time must lie [`SETTLED`] before the session: nothing the session saw, and no tick, is that long |
//! | a store through a mapping whose page is dirty already | nobody had the file mapped shared and writable when it was copied; who maps it later faults first |
//! | direct I/O that lands after its call | none was under way when it was copied |
//! | a write that began before the session and went on after the cut | the file was read once only: no event came for it |
//! | a file system that does not ask at the first store (tmpfs) | only those that do have identities |
//! | no birth time, so that a successor has its number | none of it has an identity |
//! | a crash that loses the new change time and keeps the new bytes | [`Realm::boot`] |
//!
//! Who may set the machine's clock, or write to the block device below, is trusted not to.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, fstatfs, statat};
use rustix::time::{ClockId, clock_gettime};

use super::frozen::object_name;
use super::index::{Body, Known};
use super::{Error, Shadow};
use crate::kernel::beneath::{Dir, Stat, stat_fd};
use crate::model::dirty::Ino;
use crate::model::identity::{Identity, Place, Realm, Settled};

/// How long before the session a file must have been left alone. Time stamps are as coarse as a timer tick, 10 ms at most, or one second on
/// an ext4 whose inodes have 128 bytes.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// The file systems that ask for every first store to a clean page of a mapping, and move the change time then (`statfs.f_type`,
/// linux/magic.h).
const ASKING: [i64; 3] = [
    0xEF53,      // ext4: ext4_page_mkwrite, fs/ext4/inode.c
    0x5846_5342, // XFS: xfs_write_fault, fs/xfs/xfs_file.c
    0x9123_683E, // btrfs: btrfs_page_mkwrite, fs/btrfs/file.c
];

/// Who may have an identity.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) realm: Realm,
    /// Changes from this time on are too new.
    before: i128,
}

/// The inode number of a frozen file, and the identity of its original.
pub(super) type Recognised = (u64, Identity);

fn nanos((seconds, nanos): (i64, u32)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

impl Judge {
    /// For an upperdir about to be read; `None` where nothing there can be recognised.
    pub(super) fn new(root: &Dir, stat: &Stat, settled: Duration) -> Option<Judge> {
        let kind = fstatfs(root.as_fd()).ok()?.f_type;
        if !ASKING.contains(&kind) || stat.btime == (0, 0) {
            return None;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let now = clock_gettime(ClockId::Realtime);
        let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        let before = now - i128::try_from(settled.as_nanos()).ok()?;
        Some(Judge { realm: Realm { boot, dev: stat.dev, ino: stat.ino, btime: stat.btime }, before })
    }

    /// The identity of a file, if it may have one.
    pub(super) fn identity(&self, known: &Known) -> Option<Identity> {
        let stat = &known.stat;
        let may = matches!(known.body, Body::File { .. })
            && known.steady
            && !known.young
            && stat.btime != (0, 0)
            && nanos(stat.ctime) < self.before;
        may.then(|| Identity::from(stat))
    }
}

impl Shadow {
    /// A file that was just made in `data`, if its original can be recognised later.
    pub(super) fn recognised(
        &self,
        data: BorrowedFd<'_>,
        ino: Ino,
        known: &Known,
    ) -> Result<Option<Recognised>, Error> {
        let Some(identity) = self.judge.as_ref().and_then(|judge| judge.identity(known)) else {
            return Ok(None);
        };
        let stat = statat(data, object_name(ino, known), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::shadow("look at", self.index.path(ino), e))?;
        Ok(Some((stat.st_ino, identity)))
    }

    /// All of them, of the frozen upperdir at `frozen`. Without them the next snapshot reads everything, and that is all.
    pub(super) fn settled(&self, frozen: &Path, files: Vec<Recognised>) -> Option<Settled> {
        let realm = self.judge.as_ref()?.realm.clone();
        let root = Dir::open(frozen).and_then(|dir| stat_fd(dir.as_fd())).ok()?;
        Some(Settled::new(realm, Place::from(&root), files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let stat = Stat {
            ino: 7,
            dev: 1,
            mode: libc::S_IFREG | 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 9,
            blocks: 8,
            atime: (0, 0),
            mtime: (0, 0),
            ctime: (999, 5),
            btime: (5, 0),
        };
        Known { stat, xattrs: Vec::new(), body: Body::File { serial: 1 }, young: false, steady: true }
    }

    #[test]
    fn only_who_was_left_alone_has_an_identity() {
        let realm = Realm { boot: "b".into(), dev: 1, ino: 2, btime: (1, 0) };
        let judge = Judge { realm, before: 1_000_000_000_000 };
        let ok = known();
        assert_eq!(judge.identity(&ok), Some(Identity { ino: 7, btime: (5, 0), ctime: (999, 5), size: 9 }));
        let with = |change: fn(&mut Known)| {
            let mut known = known();
            change(&mut known);
            judge.identity(&known)
        };
        assert_eq!(with(|k| k.stat.ctime = (1000, 0)), None);
        assert_eq!(with(|k| k.stat.btime = (0, 0)), None);
        assert_eq!(with(|k| k.steady = false), None);
        assert_eq!(with(|k| k.young = true), None);
        assert_eq!(with(|k| k.body = Body::Special), None);
        // The modification time is the container's to choose and says nothing.
        assert_eq!(with(|k| k.stat.mtime = (5, 5)), judge.identity(&ok));
    }
}
