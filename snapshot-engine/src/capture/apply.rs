//! Taking in the window's residual, once the gate is down.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use super::copy::{Fault, data_name, write_all};
use super::index::{Body, Known};
use super::residual::{CapturedInode, Residual};
use super::rounds::{just_now, young};
use super::{Error, Shadow};
use crate::model::dirty::Ino;

impl Shadow {
    /// Brings the shadow to the cut. What it does not check here (an inode that is named and was never captured, a
    /// directory in two places) [`freeze`](Shadow::freeze) does.
    ///
    /// Returns the inodes that have left the tree: there is nothing left to watch of them.
    ///
    /// # Errors
    /// When the residual does not fit what the shadow has, or the shadow cannot be written. The shadow is then of no use
    /// any more: it is neither the state before nor the one at the cut.
    pub fn apply(&mut self, residual: &Residual<'_>) -> Result<Vec<Ino>, Error> {
        // Listings first: they make the nodes that the inodes then fill, and take the names of what is gone.
        for listing in &residual.listings {
            let entries =
                listing.entries.iter().map(|(name, ino, kind)| (CStr::to_owned(name), Ino(*ino), *kind));
            if self.index.get(Ino(listing.ino)).is_none() {
                // Listed before the listing that names it: its entries wait in a node that nothing leads to yet.
                self.index.insert(Ino(listing.ino));
            }
            self.index.set_entries(Ino(listing.ino), entries);
        }
        for captured in &residual.inodes {
            let ino = Ino(captured.stat.ino);
            if captured.stat.nlink == 0 || self.index.get(ino).is_none() {
                continue;
            }
            self.take_in(ino, captured)?;
        }
        let mut gone = Vec::new();
        for (ino, serial) in self.index.drop_orphans(true) {
            gone.push(ino);
            self.hot.close(ino);
            self.walker.close(ino);
            if let Some(serial) = serial {
                self.discard(ino, serial)?;
            }
        }
        Ok(gone)
    }

    fn take_in(&mut self, ino: Ino, captured: &CapturedInode<'_>) -> Result<(), Error> {
        let stat = captured.stat;
        let incomplete = |shadow: &Shadow, what| Error::Incomplete { path: shadow.index.path(ino), what };
        let known = self.index.known(ino);
        if !captured.fresh {
            match known {
                None => return Err(incomplete(self, "changes were captured of an inode it never read")),
                // Not `is`: whether it is young was for the window to ask.
                Some(k) if k.stat.btime != stat.btime || k.stat.file_type() != stat.file_type() => {
                    return Err(incomplete(self, "another inode took the number of the one it read"));
                }
                Some(_) => {}
            }
        }
        let xattrs = match (&captured.xattrs, known) {
            (Some(xattrs), _) => xattrs.clone(),
            (None, Some(known)) if !captured.fresh => known.xattrs.clone(),
            (None, _) => return Err(incomplete(self, "the attributes of a new inode were not captured")),
        };
        let body = if stat.is_dir() {
            if self.index.get(ino).is_none_or(|node| node.entries.is_none()) {
                return Err(incomplete(self, "the entries of a new directory were not captured"));
            }
            Body::Directory
        } else if stat.is_symlink() {
            match known.map(|known| &known.body) {
                Some(Body::Symlink(link)) if !captured.fresh => Body::Symlink(link.clone()),
                _ => Body::Symlink(captured.link.to_vec()),
            }
        } else if stat.is_file() {
            let old = if captured.fresh { None } else { self.index.serial(ino) };
            let serial = old.unwrap_or_else(|| self.next_serial());
            self.write(ino, serial, captured)?;
            if just_now(stat.ctime) {
                self.hasty.insert(ino);
            }
            Body::File { serial }
        } else {
            Body::Special
        };
        self.know(ino, Known { young: young(&stat), stat, xattrs, body, steady: false })
    }

    fn write(&self, ino: Ino, serial: u64, captured: &CapturedInode<'_>) -> Result<(), Error> {
        let name = data_name(ino, serial);
        let fail = |op, e| Error::shadow(op, self.disk.shadow_path("data").join(&name), e);
        let mut flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if captured.fresh {
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        let target = rustix::fs::openat(&*self.disk.data, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| fail("open", e.into()))?;
        // First the size, as in the rounds: what lay behind it is gone.
        rustix::fs::ftruncate(&target, captured.stat.size).map_err(|e| fail("truncate", e.into()))?;
        for (at, bytes) in &captured.data {
            let room = usize::try_from(captured.stat.size.saturating_sub(*at)).unwrap_or(usize::MAX);
            match write_all(target.as_fd(), &bytes[..bytes.len().min(room)], *at) {
                Ok(()) => {}
                Err(Fault::Upper(op, e) | Fault::Shadow(op, e)) => return Err(fail(op, e)),
            }
        }
        Ok(())
    }
}
