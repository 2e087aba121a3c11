//! Directories by number, opened from the root of their tree down, whatever their depth.
//!
//! ```text
//!   Places   0 "" <- 1 usr <- 2 lib <- 7 python3 ...     a number and a name each, never a path
//!   Opener   root, and a few open directories
//! ```
//!
//! A tree may be deeper than the kernel takes in one path (`PATH_MAX`) and than there are descriptors; paths of all its directories
//! would take memory by the square of the depth. So a directory is opened from the nearest one that is still open, by as
//! many names at a time as a path may have, and none of them may be a link ([`Dir::open_dir`]).

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::beneath::Dir;

/// How many directories an opener keeps open.
const OPEN: usize = 128;
/// The most bytes of a path in one call, its NUL left out (`PATH_MAX`, linux/limits.h).
const PATH_BYTES: usize = 4095;

/// The directories of a tree; number 0 is its root.
#[derive(Debug)]
pub struct Places {
    nodes: Vec<(usize, CString)>,
}

impl Default for Places {
    fn default() -> Places {
        Places { nodes: vec![(0, CString::default())] }
    }
}

impl Places {
    /// Adds a directory below another one; gives its number.
    pub fn add(&mut self, above: usize, name: CString) -> usize {
        self.nodes.push((above, name));
        self.nodes.len() - 1
    }

    /// The path from the root, for messages: `.` for the root itself.
    #[must_use]
    pub fn path(&self, place: usize) -> PathBuf {
        let mut names = Vec::new();
        let mut at = place;
        while at != 0
            && let Some((above, name)) = self.nodes.get(at)
        {
            names.push(OsStr::from_bytes(name.to_bytes()));
            at = *above;
        }
        if names.is_empty() { PathBuf::from(".") } else { names.into_iter().rev().collect() }
    }
}

/// The way to a directory from one that is open.
#[derive(Debug)]
pub struct Way {
    from: usize,
    /// From the top down.
    steps: Vec<(usize, CString)>,
}

/// Opens the directories of a tree.
#[derive(Debug)]
pub struct Opener<'a> {
    root: &'a Dir,
    open: HashMap<usize, Arc<Dir>>,
}

impl<'a> Opener<'a> {
    /// An opener with nothing open but the root.
    #[must_use]
    pub fn new(root: &'a Dir) -> Opener<'a> {
        Opener { root, open: HashMap::new() }
    }

    /// The way to a directory. A value of its own, so that places behind a lock are held for this long only.
    #[must_use]
    pub fn way(&self, places: &Places, place: usize) -> Way {
        let mut steps = Vec::new();
        let mut at = place;
        while at != 0 && !self.open.contains_key(&at) {
            let Some((above, name)) = places.nodes.get(at) else { break };
            steps.push((at, name.clone()));
            at = *above;
        }
        steps.reverse();
        Way { from: at, steps }
    }

    /// Goes that way, and keeps the directory and the one above it open.
    ///
    /// # Errors
    /// As [`Dir::open_dir`].
    pub fn open(&mut self, way: Way) -> io::Result<Arc<Dir>> {
        let Way { from, steps } = way;
        let mut dir = match self.open.get(&from) {
            Some(dir) => Arc::clone(dir),
            None => Arc::new(self.root.open_dir(c".")?),
        };
        let last = steps.len().saturating_sub(1);
        let mut path: Vec<u8> = Vec::new();
        for (n, (place, name)) in steps.iter().enumerate() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let room =
                steps.get(n + 1).is_some_and(|(_, next)| path.len() + 1 + next.count_bytes() <= PATH_BYTES);
            if room && n + 1 != last {
                continue;
            }
            // No name has an inner NUL: they came from the kernel.
            dir = Arc::new(dir.open_dir(&CString::new(std::mem::take(&mut path))?)?);
            if n + 1 >= last {
                self.keep(*place, &dir);
            }
        }
        Ok(dir)
    }

    fn keep(&mut self, place: usize, dir: &Arc<Dir>) {
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        self.open.insert(place, Arc::clone(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use crate::kernel::beneath::stat_fd;

    #[test]
    fn opens_what_no_path_can_name() -> io::Result<()> {
        const DEPTH: usize = 300;
        let tree = tempfile::tempdir()?;
        let root = Dir::open(tree.path())?;
        let mut places = Places::default();
        let mut at = 0;
        let mut inos = vec![stat_fd(root.as_fd())?.ino];
        let mut opener = Opener::new(&root);
        for n in 0..DEPTH {
            let name = CString::new(format!("{n:0100}"))?;
            let dir = opener.open(opener.way(&places, at))?;
            rustix::fs::mkdirat(&*dir, &name, rustix::fs::Mode::RWXU)?;
            at = places.add(at, name.clone());
            inos.push(dir.stat(&name)?.ino);
        }
        assert!(places.path(at).as_os_str().len() > 7 * 4096);
        // Also without anything that is open already, in any order.
        for place in [at, 0, 1, 41, 42, at - 1, 150] {
            for opener in [&mut opener, &mut Opener::new(&root)] {
                let dir = opener.open(opener.way(&places, place))?;
                assert_eq!(stat_fd(dir.as_fd())?.ino, inos[place], "place {place}");
            }
        }
        crate::kernel::removal::remove_tree(tree.path())
    }
}
