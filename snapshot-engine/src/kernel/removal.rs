//! Removing a tree of any depth: one directory of it is open at a time, and no function calls itself.
//!
//! `std::fs::remove_dir_all` recurses with a descriptor for each level: what a container made ten thousand directories deep would
//! end in a lack of descriptors, or of stack.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::beneath::Dir;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Removes the directory at `path` and everything below it. One that is not there is no error.
///
/// # Errors
/// As `unlinkat(2)`; `ENOTDIR` when it is no directory.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(Errno::INVAL)?;
    match rustix::fs::openat(CWD, above, OPEN.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Ok(above) => remove_tree_at(above.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// As [`remove_tree`], for a name in a directory. Directories that are found are moved up to the first level, and emptied there.
/// Another process may be removing the same tree: what is gone is gone.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let top = match rustix::fs::openat(parent, name, OPEN, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut serial = 0u64;
    loop {
        let mut any = false;
        for (name, directory) in names(top.as_fd())? {
            any = true;
            if !directory {
                gone(rustix::fs::unlinkat(&top, &name, AtFlags::empty()))?;
                continue;
            }
            let dir = match rustix::fs::openat(&top, &name, OPEN, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            for (name, directory) in names(dir.as_fd())? {
                if directory {
                    up(dir.as_fd(), &name, top.as_fd(), &mut serial)?;
                } else {
                    gone(rustix::fs::unlinkat(&dir, &name, AtFlags::empty()))?;
                }
            }
            gone(rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR))?;
        }
        if any {
            continue;
        }
        match gone(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)) {
            // The other one has just moved something up.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return Ok(result?),
        }
    }
}

/// Moves a directory up, under a name that nothing has: the tree's own names are not ours to choose.
fn up(from: BorrowedFd<'_>, name: &CString, top: BorrowedFd<'_>, serial: &mut u64) -> io::Result<()> {
    loop {
        *serial += 1;
        let free = format!("removed-{}-{serial}", std::process::id());
        // Renaming a directory elsewhere needs the right to write in it (`..` changes), which root has.
        match gone(rustix::fs::renameat_with(from, name, top, free, RenameFlags::NOREPLACE)) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
    }
}

fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// The names in a directory, and whether each is one itself.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<(CString, bool)>> {
    let dir = Dir::from(rustix::fs::openat(dir, c".", OPEN, Mode::empty())?);
    let mut names = Vec::new();
    for entry in dir.entries()? {
        let directory = match entry.kind {
            libc::DT_UNKNOWN => match dir.stat(&entry.name) {
                Ok(stat) => stat.is_dir(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            },
            kind => kind == libc::DT_DIR,
        };
        names.push((entry.name, directory));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_has_the_names_it_would_choose() -> io::Result<()> {
        let place = tempfile::tempdir()?;
        let tree = place.path().join("tree");
        for n in 1..20 {
            std::fs::create_dir_all(
                tree.join(format!("removed-{}-{n}/below/and/below", std::process::id())),
            )?;
            std::fs::write(tree.join(format!("removed-{}-{n}/below/file", std::process::id())), "x")?;
        }
        std::os::unix::fs::symlink(place.path(), tree.join("link"))?;
        std::fs::write(place.path().join("outside"), "stays")?;
        remove_tree(&tree)?;
        remove_tree(&tree)?;
        assert_eq!(std::fs::read_dir(place.path())?.count(), 1);
        Ok(())
    }
}
