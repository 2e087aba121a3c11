//! What is to be made, sorted by how.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::kernel::descent::Places;
use crate::model::tree::{Kind, NodeId};
use crate::rafs::read::Image;

/// Files larger than this are written in pieces of about this many bytes.
const LARGE: u64 = 8 << 20;
/// The most small files of a job.
const FILES: usize = 64;

/// A name to be made.
#[derive(Debug)]
pub(super) struct Named {
    /// The directory's place.
    pub(super) dir: usize,
    pub(super) name: CString,
    pub(super) id: NodeId,
}

/// Work for one worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Small files, by position.
    Whole(Range<usize>),
    /// Some chunks of a large file.
    Piece(usize, Range<usize>),
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) places: Places,
    /// Each after the one that it is in.
    pub(super) directories: Vec<Named>,
    pub(super) files: Vec<Named>,
    pub(super) others: Vec<Named>,
    /// Further names, and the inode they are names of.
    pub(super) links: Vec<(Named, NodeId)>,
    pub(super) jobs: Vec<Job>,
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Positions of large files.
    large: Vec<usize>,
    /// The first name of each inode: in `files` or in `others`.
    firsts: HashMap<NodeId, (bool, usize)>,
}

impl Plan {
    pub(super) fn new(image: &Image) -> Plan {
        let mut plan = Plan::default();
        let mut todo = vec![(0, NodeId::ROOT)];
        while let Some((dir, id)) = todo.pop() {
            let Some(children) = image.tree.children(id) else { continue };
            for (name, id) in children {
                // The reader has refused names with a NUL.
                let named = Named { dir, name: CString::new(name.to_vec()).unwrap_or_default(), id: *id };
                match image.tree.get(*id).map(|node| &node.kind) {
                    Some(Kind::Dir(_)) => {
                        todo.push((plan.places.add(dir, named.name.clone()), *id));
                        plan.directories.push(named);
                    }
                    Some(_) if plan.firsts.contains_key(id) => plan.links.push((named, *id)),
                    Some(Kind::File(_)) => {
                        plan.firsts.insert(*id, (true, plan.files.len()));
                        plan.files.push(named);
                    }
                    Some(_) => {
                        plan.firsts.insert(*id, (false, plan.others.len()));
                        plan.others.push(named);
                    }
                    None => {}
                }
            }
        }
        plan.divide(image);
        plan
    }

    fn divide(&mut self, image: &Image) {
        let chunk = u64::from(image.superblock.format.chunk_size.bytes());
        let per_piece = usize::try_from((LARGE / chunk).max(1)).unwrap_or(1);
        let (mut start, mut bytes) = (0, 0);
        for (at, named) in self.files.iter().enumerate() {
            let Some(Kind::File(content)) = image.tree.get(named.id).map(|node| &node.kind) else { continue };
            self.bytes = self.bytes.saturating_add(content.size);
            let large = content.size > LARGE;
            if large || bytes + content.size > LARGE || at - start >= FILES {
                if start < at {
                    self.jobs.push(Job::Whole(start..at));
                }
                (start, bytes) = (at, 0);
            }
            bytes += content.size;
            if large {
                self.large.push(at);
                let count = content.chunks.len();
                let pieces = (0..count).step_by(per_piece);
                self.jobs.extend(pieces.map(|from| Job::Piece(at, from..count.min(from + per_piece))));
                (start, bytes) = (at + 1, 0);
            }
        }
        if start < self.files.len() {
            self.jobs.push(Job::Whole(start..self.files.len()));
        }
    }

    pub(super) fn large(&self) -> impl Iterator<Item = &Named> {
        self.large.iter().filter_map(|at| self.files.get(*at))
    }

    /// The first name of an inode.
    pub(super) fn first(&self, id: NodeId) -> Option<&Named> {
        let (file, at) = self.firsts.get(&id)?;
        if *file { self.files.get(*at) } else { self.others.get(*at) }
    }

    /// The path of a name from the root.
    pub(super) fn path(&self, named: &Named) -> PathBuf {
        let dir = self.places.path(named.dir);
        let name = OsStr::from_bytes(named.name.to_bytes());
        if named.dir == 0 { PathBuf::from(name) } else { dir.join(name) }
    }
}
