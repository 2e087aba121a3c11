//! The names of an inode: one or two as a rule, as many as the file system allows in a farm of hard links.
//!
//! In a vector a name is found by looking at each, which for a farm of `n` links that is removed, or moved, takes `n` times `n` steps: with
//! a million links that is for ever. From [`FEW`] names on they are in a table.

use std::ffi::CStr;
use std::sync::Arc;

use indexmap::IndexSet;

use crate::model::dirty::Ino;

/// A directory and a name in it.
pub(super) type Link = (Ino, Arc<CStr>);

/// Up to here a vector is smaller, and as fast.
const FEW: usize = 32;

/// Every name of an inode, the newest last as long as none is removed.
#[derive(Debug)]
pub(super) enum Links {
    Few(Vec<Link>),
    Many(Box<IndexSet<Link>>),
}

impl Default for Links {
    fn default() -> Links {
        Links::Few(Vec::new())
    }
}

impl Links {
    pub(super) fn len(&self) -> usize {
        match self {
            Links::Few(links) => links.len(),
            Links::Many(links) => links.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, at: usize) -> Option<&Link> {
        match self {
            Links::Few(links) => links.get(at),
            Links::Many(links) => links.get_index(at),
        }
    }

    pub(super) fn last(&self) -> Option<&Link> {
        self.get(self.len().checked_sub(1)?)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Link> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Adds a name that is not there yet.
    pub(super) fn push(&mut self, directory: Ino, name: Arc<CStr>) {
        match self {
            Links::Few(links) if links.len() < FEW => links.push((directory, name)),
            Links::Few(links) => {
                let mut many: IndexSet<Link> = links.drain(..).collect();
                many.insert((directory, name));
                *self = Links::Many(Box::new(many));
            }
            Links::Many(links) => {
                links.insert((directory, name));
            }
        }
    }

    /// Removes a name, if it is there.
    pub(super) fn remove(&mut self, directory: Ino, name: &Arc<CStr>) {
        match self {
            Links::Few(links) => {
                if let Some(at) = links.iter().rposition(|(d, n)| *d == directory && n == name) {
                    links.swap_remove(at);
                }
            }
            Links::Many(links) => {
                links.swap_remove(&(directory, Arc::clone(name)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn name(n: usize) -> Arc<CStr> {
        Arc::from(CString::new(n.to_string()).unwrap())
    }

    #[test]
    fn few_and_many_behave_alike() {
        let mut links = Links::default();
        for n in 0..100 {
            links.push(Ino(7), name(n));
            assert_eq!(links.last(), Some(&(Ino(7), name(n))));
        }
        links.remove(Ino(8), &name(3));
        assert_eq!(links.len(), 100);
        for n in 0..100 {
            links.remove(Ino(7), &name(n));
            assert_eq!(links.iter().count(), 99 - n);
            assert!(links.iter().all(|(_, left)| *left != name(n)));
        }
        assert!(links.is_empty() && links.last().is_none());
    }
}
