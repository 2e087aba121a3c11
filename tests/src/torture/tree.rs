//! What a thread's part of the tree must look like: inodes and names, as the container's processes see them.
//!
//! Nothing here knows of a writer or of a file system. A writer's operation is applied with the result that the kernel gave; what the kernel refused
//! changes nothing.
//!
//! ```text
//!   ""        the thread's root; its names are fixed:
//!   own/      a directory of its own: /torture/t3
//!   shared/   its names in a directory that all threads use: /torture/shared/t3.NAME
//!   log       its records in a log that all threads append to: /torture/log
//!   pages     its pages of a file that all threads write to: /torture/pages
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::post::Post;

/// Number of an inode of a model.
pub type Id = u64;
/// Number of an open file of a thread.
pub type Handle = u64;

/// The root.
pub const ROOT: Id = 0;

/// What an inode holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A file's content.
    File(Arc<Vec<u8>>),
    /// A directory's names.
    Directory(BTreeMap<String, Id>),
    /// Where a symbolic link leads.
    Link(String),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device and its number.
    Character(u64),
    /// A block device and its number.
    Block(u64),
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it holds.
    pub body: Body,
    /// Permissions: 0 to 7777.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its attributes, ACLs among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its modification time, if it was set and not changed since.
    pub mtime: Option<(i64, u32)>,
    /// Names that lead to it.
    pub links: u32,
    /// It must keep its size, because somebody has mapped it.
    pub pinned: bool,
}

impl Inode {
    /// A new one, as the kernel makes it for root with an empty umask.
    #[must_use]
    pub fn new(body: Body, mode: u32) -> Inode {
        let xattrs = BTreeMap::new();
        Inode { body, mode, uid: 0, gid: 0, xattrs, mtime: None, links: 1, pinned: false }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    /// Its content, if it is a file.
    #[must_use]
    pub fn content(&self) -> Option<&Vec<u8>> {
        match &self.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// Its size, if it is a file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.content().map_or(0, |content| content.len() as u64)
    }
}

/// How much a thread may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Names, about.
    pub names: usize,
    /// Bytes, about.
    pub bytes: u64,
}

/// A thread's part of the tree, and its open files.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: BTreeMap<Id, Inode>,
    next: Id,
    /// The open files.
    pub open: BTreeMap<Handle, Id>,
    next_handle: Handle,
    /// How much it may have.
    pub room: Room,
    /// The thread.
    pub thread: u64,
    /// Where it stands.
    pub post: Post,
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Tree {
    /// An empty root.
    #[must_use]
    pub fn new(thread: u64, room: Room) -> Tree {
        let root = Inode::new(Body::Directory(BTreeMap::new()), 0o755);
        Tree {
            inodes: BTreeMap::from([(ROOT, root)]),
            next: 1,
            open: BTreeMap::new(),
            next_handle: 1,
            room,
            thread,
            post: Post::Inside,
        }
    }

    /// The inode of a path.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Id> {
        let mut at = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            match &self.inodes.get(&at)?.body {
                Body::Directory(names) => at = *names.get(name)?,
                _ => return None,
            }
        }
        Some(at)
    }

    /// An inode by number.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<&Inode> {
        self.inodes.get(&id)
    }

    /// An inode by path.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&Inode> {
        self.get(self.find(path)?)
    }

    /// Changes an inode.
    pub fn change(&mut self, path: &str, how: impl FnOnce(&mut Inode)) {
        if let Some(inode) = self.find(path).and_then(|id| self.inodes.get_mut(&id)) {
            how(inode);
        }
    }

    /// Changes the inode of an open file.
    pub fn change_open(&mut self, handle: Handle, how: impl FnOnce(&mut Inode)) {
        if let Some(inode) = self.open.get(&handle).and_then(|id| self.inodes.get_mut(id)) {
            how(inode);
        }
    }

    /// Changes the content of a file: its modification time is then the kernel's.
    pub fn rewrite(&mut self, path: &str, how: impl FnOnce(&mut Vec<u8>)) {
        self.change(path, |inode| rewrite(inode, how));
    }

    /// The same through an open file.
    pub fn rewrite_open(&mut self, handle: Handle, how: impl FnOnce(&mut Vec<u8>)) {
        self.change_open(handle, |inode| rewrite(inode, how));
    }

    fn names(&mut self, directory: &str) -> Option<&mut BTreeMap<String, Id>> {
        let id = self.find(directory)?;
        let inode = self.inodes.get_mut(&id)?;
        inode.mtime = None;
        match &mut inode.body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }

    /// A new inode under a name that was free.
    pub fn make(&mut self, path: &str, inode: Inode) -> Id {
        let id = self.next;
        let (directory, name) = split(path);
        if let Some(names) = self.names(directory) {
            names.insert(name.to_owned(), id);
            self.next += 1;
            self.inodes.insert(id, inode);
        }
        id
    }

    /// Another name for an inode.
    pub fn link(&mut self, from: &str, to: &str) {
        let Some(id) = self.find(from) else { return };
        let (directory, name) = split(to);
        if let Some(names) = self.names(directory) {
            names.insert(name.to_owned(), id);
            self.change(from, |inode| inode.links += 1);
        }
    }

    /// Takes a name away; the inode goes with its last name, unless it is open.
    pub fn unlink(&mut self, path: &str) {
        let (directory, name) = split(path);
        if let Some(id) = self.names(directory).and_then(|names| names.remove(name)) {
            self.release(id);
        }
    }

    fn release(&mut self, id: Id) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.links = inode.links.saturating_sub(1);
        }
        self.forget(id);
    }

    fn forget(&mut self, id: Id) {
        if self.inodes.get(&id).is_some_and(|i| i.links == 0) && !self.open.values().any(|o| *o == id) {
            self.inodes.remove(&id);
        }
    }

    /// Renames; what had the name before is gone.
    pub fn rename(&mut self, from: &str, to: &str) {
        // Two names of one inode: rename(2) does nothing.
        if self.find(from) == self.find(to) {
            return;
        }
        let (directory, name) = split(from);
        let Some(id) = self.names(directory).and_then(|names| names.remove(name)) else { return };
        self.moved(id);
        let (directory, name) = split(to);
        if let Some(old) = self.names(directory).and_then(|names| names.insert(name.to_owned(), id)) {
            self.release(old);
        }
    }

    /// A directory that is elsewhere has another `..`: on XFS that is a modification (xfs_dir_replace).
    fn moved(&mut self, id: Id) {
        if let Some(inode) = self.inodes.get_mut(&id).filter(|inode| inode.is_dir()) {
            inode.mtime = None;
        }
    }

    /// Makes two names change places.
    pub fn exchange(&mut self, one: &str, other: &str) {
        let (Some(a), Some(b)) = (self.find(one), self.find(other)) else { return };
        for (path, id) in [(one, b), (other, a)] {
            self.moved(id);
            let (directory, name) = split(path);
            if let Some(names) = self.names(directory) {
                names.insert(name.to_owned(), id);
            }
        }
    }

    /// The number the next open file gets.
    #[must_use]
    pub fn next_handle(&self) -> Handle {
        self.next_handle
    }

    /// Opens a file.
    pub fn open(&mut self, path: &str) {
        if let Some(id) = self.find(path) {
            self.open.insert(self.next_handle, id);
            self.next_handle += 1;
        }
    }

    /// Closes one.
    pub fn close(&mut self, handle: Handle) {
        if let Some(id) = self.open.remove(&handle) {
            self.forget(id);
        }
    }

    /// Closes all of them.
    pub fn close_all(&mut self) {
        let handles: Vec<Handle> = self.open.keys().copied().collect();
        for handle in handles {
            self.change_open(handle, |inode| inode.pinned = false);
            self.close(handle);
        }
    }

    /// Every name below the root with its inode, parents first.
    #[must_use]
    pub fn list(&self) -> Vec<(String, Id)> {
        let mut found = Vec::new();
        let mut stack = vec![(String::new(), ROOT)];
        while let Some((path, id)) = stack.pop() {
            if let Some(Body::Directory(names)) = self.get(id).map(|i| &i.body) {
                for (name, child) in names {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    stack.push((path, *child));
                }
            }
            if !path.is_empty() {
                found.push((path, id));
            }
        }
        found
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inodes.values().map(Inode::size).sum()
    }
}

/// Changes a content; the modification time is then the kernel's.
fn rewrite(inode: &mut Inode, how: impl FnOnce(&mut Vec<u8>)) {
    inode.mtime = None;
    if let Body::File(content) = &mut inode.body {
        how(Arc::make_mut(content));
    }
}

/// Puts bytes into a content, which grows if it must.
pub fn put(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new(0, Room { names: 10, bytes: 1 << 20 });
        tree.make("own", Inode::new(Body::Directory(BTreeMap::new()), 0o755));
        tree.make("own/a", Inode::new(Body::File(Arc::default()), 0o644));
        tree
    }

    #[test]
    fn names_and_inodes_go_their_own_ways() {
        let mut tree = tree();
        tree.link("own/a", "own/b");
        tree.rewrite("own/b", |content| put(content, 2, b"xy"));
        assert_eq!(tree.at("own/a").unwrap().content().unwrap(), b"\0\0xy");
        tree.rename("own/a", "own/b");
        assert_eq!(tree.at("own/a").unwrap().links, 2, "two names of one inode: nothing happens");
        tree.open("own/a");
        tree.unlink("own/a");
        tree.unlink("own/b");
        tree.rewrite_open(1, |content| put(content, 0, b"z"));
        assert_eq!(tree.bytes(), 4, "it lives as long as it is open");
        tree.close(1);
        assert_eq!((tree.bytes(), tree.list().len()), (0, 1));
    }

    #[test]
    fn names_change_places() {
        let mut tree = tree();
        tree.make("own/d", Inode::new(Body::Directory(BTreeMap::new()), 0o700));
        tree.exchange("own/a", "own/d");
        assert!(tree.at("own/a").unwrap().is_dir() && !tree.at("own/d").unwrap().is_dir());
        tree.rename("own/d", "own/a/e");
        assert_eq!(
            tree.list().iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(),
            ["own", "own/a", "own/a/e"]
        );
    }
}
