//! Two trees on disk, entry by entry.
//!
//! Compared are type, mode, owner, device number, size, modification time, attributes, link targets, content, and which names
//! are links of one inode. Not compared: the root's time (RAFS has none), link counts as numbers (overlayfs counts names
//! that a whiteout hides), sizes of directories, and overlayfs' private attributes.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::kernel::beneath::{Dir, Entry, Stat, Xattrs, stat_fd, xattrs_fd};

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, from the root.
    pub path: PathBuf,
    /// What, with both values.
    pub what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Entries looked at, the root included.
    pub entries: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// What differs, at most as many as asked for.
    pub differences: Vec<Difference>,
}

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot compare `{}`", path.display())]
pub struct CompareError {
    /// Where.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

type Inode = (u64, u64);

struct Compare {
    left: Dir,
    right: Dir,
    most: usize,
    result: Comparison,
    /// Which inode of the right goes with one of the left that has several names, and the other way round.
    links: HashMap<Inode, Inode>,
    back: HashMap<Inode, Inode>,
}

/// Compares the trees at two paths and stops after `most` differences.
///
/// # Errors
/// When something in either cannot be read.
pub fn compare(left: &Path, right: &Path, most: usize) -> Result<Comparison, CompareError> {
    let open = |path: &Path| Dir::open(path).map_err(|source| CompareError { path: path.to_owned(), source });
    let mut compare = Compare {
        left: open(left)?,
        right: open(right)?,
        most: most.max(1),
        result: Comparison::default(),
        links: HashMap::new(),
        back: HashMap::new(),
    };
    compare.root().map_err(|source| CompareError { path: left.to_owned(), source })?;
    let mut todo = vec![c".".to_owned()];
    while let Some(path) = todo.pop() {
        let at = || PathBuf::from(OsStr::from_bytes(path.to_bytes()));
        compare.dir(&path, &mut todo).map_err(|source| CompareError { path: at(), source })?;
        if compare.full() {
            break;
        }
    }
    Ok(compare.result)
}

impl Compare {
    fn full(&self) -> bool {
        self.result.differences.len() >= self.most
    }

    fn differ(&mut self, path: &[u8], what: String) {
        if !self.full() {
            let path = PathBuf::from(OsStr::from_bytes(path));
            self.result.differences.push(Difference { path, what });
        }
    }

    fn root(&mut self) -> io::Result<()> {
        let (left, right) = (stat_fd(self.left.as_fd())?, stat_fd(self.right.as_fd())?);
        let time = |s: Stat| Stat { mtime: (0, 0), ..s };
        self.result.entries += 1;
        self.stats(b".", &time(left), &time(right));
        let (left, right) = (xattrs_fd(self.left.as_fd())?, xattrs_fd(self.right.as_fd())?);
        self.attributes(b".", &left, &right);
        Ok(())
    }

    fn dir(&mut self, path: &CString, todo: &mut Vec<CString>) -> io::Result<()> {
        let (left, right) = (self.left.open_dir(path)?, self.right.open_dir(path)?);
        let names = |dir: &Dir| -> io::Result<Vec<Entry>> {
            let mut entries = dir.entries()?;
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        };
        let (ours, theirs) = (names(&left)?, names(&right)?);
        let (mut i, mut j) = (0, 0);
        while (i < ours.len() || j < theirs.len()) && !self.full() {
            let order = match (ours.get(i), theirs.get(j)) {
                (Some(a), Some(b)) => a.name.cmp(&b.name),
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            match order {
                std::cmp::Ordering::Less => {
                    self.differ(&join(path, &ours[i].name), "only on the left".to_owned());
                    i += 1;
                }
                std::cmp::Ordering::Greater => {
                    self.differ(&join(path, &theirs[j].name), "only on the right".to_owned());
                    j += 1;
                }
                std::cmp::Ordering::Equal => {
                    let name = &ours[i].name;
                    if self.entry(&left, &right, name, &join(path, name))? {
                        // Names have no NUL in them.
                        todo.push(CString::new(join(path, name)).unwrap_or_default());
                    }
                    i += 1;
                    j += 1;
                }
            }
        }
        Ok(())
    }

    /// Compares one name; whether it is a directory on both sides.
    fn entry(&mut self, left: &Dir, right: &Dir, name: &CString, path: &[u8]) -> io::Result<bool> {
        self.result.entries += 1;
        let (a, b) = (left.stat(name)?, right.stat(name)?);
        self.stats(path, &a, &b);
        if a.file_type() != b.file_type() {
            return Ok(false);
        }
        self.attributes(path, &left.xattrs(name)?, &right.xattrs(name)?);
        if !a.is_dir() && (a.nlink > 1 || b.nlink > 1) {
            self.links(path, (a.dev, a.ino), (b.dev, b.ino));
        }
        if a.is_symlink() && left.read_link(name)? != right.read_link(name)? {
            self.differ(path, "another link target".to_owned());
        }
        if a.is_file() && a.size == b.size && a.size > 0 {
            self.content(&left.open_file(name)?.0, &right.open_file(name)?.0, a.size, path)?;
        }
        Ok(a.is_dir())
    }

    fn stats(&mut self, path: &[u8], a: &Stat, b: &Stat) {
        let mut field = |name: &str, a: String, b: String| {
            if a != b {
                self.differ(path, format!("{name} {a} and {b}"));
            }
        };
        field("mode", format!("{:o}", a.mode), format!("{:o}", b.mode));
        field("uid", a.uid.to_string(), b.uid.to_string());
        field("gid", a.gid.to_string(), b.gid.to_string());
        field("mtime", format!("{:?}", a.mtime), format!("{:?}", b.mtime));
        if !a.is_dir() {
            field("size", a.size.to_string(), b.size.to_string());
        }
        if matches!(a.file_type(), libc::S_IFCHR | libc::S_IFBLK) {
            field("device", format!("{:x}", a.rdev), format!("{:x}", b.rdev));
        }
    }

    fn attributes(&mut self, path: &[u8], a: &Xattrs, b: &Xattrs) {
        let own = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        let (a, b): (Vec<_>, Vec<_>) =
            (a.iter().filter(|x| !own(&x.0)).collect(), b.iter().filter(|x| !own(&x.0)).collect());
        if a != b {
            let names = |list: &[&(Vec<u8>, Vec<u8>)]| {
                list.iter()
                    .map(|(n, v)| format!("{}({})", String::from_utf8_lossy(n), v.len()))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            self.differ(path, format!("attributes [{}] and [{}]", names(&a), names(&b)));
        }
    }

    fn links(&mut self, path: &[u8], a: Inode, b: Inode) {
        let same = |map: &mut HashMap<Inode, Inode>, from, to| match map.entry(from) {
            Slot::Occupied(known) => *known.get() == to,
            Slot::Vacant(slot) => {
                slot.insert(to);
                true
            }
        };
        let (there, back) = (same(&mut self.links, a, b), same(&mut self.back, b, a));
        if !there || !back {
            self.differ(path, "linked to other names".to_owned());
        }
    }

    fn content(&mut self, a: &OwnedFd, b: &OwnedFd, size: u64, path: &[u8]) -> io::Result<()> {
        const PART: usize = 256 << 10;
        let (mut left, mut right) = (vec![0u8; PART], vec![0u8; PART]);
        let mut at = 0;
        while at < size {
            let len = usize::try_from(size - at).unwrap_or(PART).min(PART);
            let (n, m) = (fill(a, &mut left[..len], at)?, fill(b, &mut right[..len], at)?);
            if n != len || m != len || left[..n] != right[..m] {
                let first = left[..n].iter().zip(&right[..m]).position(|(x, y)| x != y).unwrap_or(n.min(m));
                self.differ(path, format!("content from byte {} on", at + first as u64));
                return Ok(());
            }
            at += len as u64;
            self.result.bytes += len as u64;
        }
        Ok(())
    }
}

fn fill(fd: &OwnedFd, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < out.len() {
        match rustix::io::pread(fd, &mut out[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(have)
}

fn join(dir: &CString, name: &CString) -> Vec<u8> {
    if dir.as_c_str() == c"." {
        return name.to_bytes().to_vec();
    }
    [dir.to_bytes(), b"/", name.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "content").unwrap();
        fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
        std::os::unix::fs::symlink("d", dir.path().join("l")).unwrap();
        for name in ["d/f", "d"] {
            let file = fs::File::open(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        };
        let link = dir.path().join("l");
        rustix::fs::utimensat(rustix::fs::CWD, &link, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        dir
    }

    fn differences(change: impl FnOnce(&Path)) -> Vec<String> {
        let (a, b) = (tree(), tree());
        change(b.path());
        let result = compare(a.path(), b.path(), 10).unwrap();
        result.differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_trees_are_equal() {
        let (a, b) = (tree(), tree());
        let result = compare(a.path(), b.path(), 10).unwrap();
        assert_eq!((result.entries, result.bytes, result.differences.len()), (5, 14, 0));
    }

    #[test]
    fn every_change_is_seen() {
        let touch = |f: &fs::File| f.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let found = differences(|b| fs::remove_file(b.join("l")).unwrap());
        assert_eq!(found, ["l: only on the left"]);
        let found = differences(|b| {
            fs::write(b.join("g"), "contEnt").unwrap();
            touch(&fs::File::open(b.join("g")).unwrap());
        });
        assert_eq!(found, ["g: content from byte 4 on", "d/f: content from byte 4 on"]);
        let found = differences(|b| {
            fs::remove_file(b.join("g")).unwrap();
            fs::write(b.join("g"), "content").unwrap();
            touch(&fs::File::open(b.join("g")).unwrap());
        });
        assert_eq!(found, ["d/f: linked to other names"]);
        let mode = |m| std::os::unix::fs::PermissionsExt::from_mode(m);
        let found = differences(|b| fs::set_permissions(b.join("d"), mode(0o700)).unwrap());
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("d: mode"));
    }
}
