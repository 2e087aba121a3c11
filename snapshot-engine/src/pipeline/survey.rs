//! What is in an upperdir, in numbers.

use std::io;

use crate::capture::ShadowOptions;
use crate::kernel::beneath::Dir;
use crate::kernel::descent::{Opener, Places};
use crate::model::dirty::Ino;
use crate::track::tracker;

/// A tree in numbers. The container changes it meanwhile: sizes for tables and for people, no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Inodes; one with several names counts for each.
    pub(super) inodes: u64,
    /// Bytes of the regular files, holes included.
    pub(super) bytes: u64,
    /// Bytes in files that get a bit for each page.
    pub(super) large_bytes: u64,
}

/// Walks a tree; `each` is told every inode below its root, with the size of a regular file. It ends early where a tree has more entries than a snapshot
/// may have: the base copy refuses that, with the number.
pub(super) fn survey(root: &Dir, mut each: impl FnMut(Ino, u64)) -> io::Result<Survey> {
    let mut found = Survey { inodes: 1, ..Survey::default() };
    let most = ShadowOptions::default().max_entries;
    let mut places = Places::default();
    let mut opener = Opener::new(root);
    let mut stack = vec![0];
    while let Some(place) = stack.pop() {
        let Ok(dir) = opener.open(opener.way(&places, place)) else { continue };
        let Ok(entries) = dir.entries_at_most(most) else { continue };
        for entry in entries {
            found.inodes += 1;
            let mut size = 0;
            if entry.kind == libc::DT_DIR {
                stack.push(places.add(place, entry.name));
            } else if entry.kind == libc::DT_REG
                && let Ok(stat) = dir.stat(&entry.name)
            {
                size = stat.size;
                found.bytes = found.bytes.saturating_add(size);
                if size >= tracker::LARGE {
                    // Words are not shared: up to one is left over in each file.
                    found.large_bytes = found.large_bytes.saturating_add(size + tracker::LARGE);
                }
            }
            each(Ino(entry.ino), size);
        }
        if found.inodes > most as u64 {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/small"), [1; 100]).unwrap();
        fs::File::create(dir.path().join("a/b/large")).unwrap().set_len(tracker::LARGE).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let mut seen = Vec::new();
        let found = survey(&Dir::enclose(dir.path()).unwrap(), |ino, size| seen.push((ino, size))).unwrap();
        let large = 2 * tracker::LARGE;
        assert_eq!(found, Survey { inodes: 6, bytes: 100 + tracker::LARGE, large_bytes: large });
        assert_eq!((seen.len(), seen.iter().filter(|(_, size)| *size == 100).count()), (5, 1));
    }
}
