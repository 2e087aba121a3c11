//! All there is to know of a tree, as lines that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// How much of an inode must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Type, mode, owner, times, attributes, content: what a copy has as well.
    Copy,
    /// Inode number, link count and change time too: nobody can have touched it without a trace.
    Untouched,
}

/// A tree's entries by path.
pub type Listing = BTreeMap<PathBuf, String>;

/// Lists a tree.
///
/// # Errors
/// When something in it cannot be read.
pub fn list(root: &Path, depth: Depth) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let full = root.join(&path);
        let stat = fs::symlink_metadata(&full)?;
        let kind = stat.file_type();
        let content = if kind.is_file() {
            format!("{} bytes {:016x}", stat.len(), hash(&fs::read(&full)?))
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&full)?.display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x}", stat.rdev())
        } else {
            String::new()
        };
        let mut line = format!(
            "{:o} {}:{} mtime {}.{:09} {content} {}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            attributes(&full)?
        );
        if depth == Depth::Untouched {
            line += &format!(
                " inode {} links {} ctime {}.{:09}",
                stat.ino(),
                stat.nlink(),
                stat.ctime(),
                stat.ctime_nsec()
            );
        }
        if kind.is_dir() {
            for entry in fs::read_dir(&full)? {
                stack.push(path.join(entry?.file_name()));
            }
        }
        listing.insert(path, line);
    }
    Ok(listing)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn attributes(path: &Path) -> io::Result<String> {
    let mut names = vec![0u8; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        found.push(format!("{}={}", name.escape_ascii(), value[..len].escape_ascii()));
    }
    found.sort();
    Ok(found.join(" "))
}

/// Two listings are equal.
///
/// # Errors
/// With the first few differences.
pub fn must_equal(before: &Listing, after: &Listing) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let mut lines = Vec::new();
    for path in before.keys().chain(after.keys().filter(|p| !before.contains_key(*p))) {
        let (b, a) = (before.get(path), after.get(path));
        if b != a {
            lines.push(format!("{}:\n  before {b:?}\n  after  {a:?}", path.display()));
        }
    }
    bail!("{} entries differ:\n{}", lines.len(), lines[..lines.len().min(5)].join("\n"))
}
