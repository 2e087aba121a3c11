//! A directory tree to a value: every inode's metadata, and which files are to be read.
//!
//! Several threads list directories; the result is put in order afterwards, so that it depends on the tree alone. Files are
//! not opened here. The tree is hostile: nothing is followed, nothing blocks, and counts are bounded.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::chunk::convert::Source;
use crate::kernel::beneath::{Dir, Stat, Xattrs, stat_fd, xattrs_fd};
use crate::kernel::descent::{Opener, Places};
use crate::model::globs::PathGlobs;
use crate::model::overlay::{Marks, Namespaces};
use crate::model::tree::{Content, Kind, Meta, Mtime, Node, NodeId, Rdev, Tree};

use super::ImageError;

/// The most entries of a layer.
const MAX_ENTRIES: u64 = 1 << 24;
/// The most bytes of attributes and link targets of a layer.
const MAX_BYTES: u64 = 1 << 30;
/// The most chunks a layer's files may have, holes included: what keeps a few sparse files of exabytes from filling the memory.
const MAX_CHUNKS: u64 = 1 << 25;

/// A walked tree.
pub struct Walked {
    pub(super) root: Dir,
    pub(super) tree: Tree,
    /// Its directories.
    pub(super) dirs: Places,
    /// The files whose content is here, in tree order.
    pub(super) sources: Vec<Source>,
    /// The node of each source.
    pub(super) nodes: Vec<NodeId>,
}

struct Found {
    name: CString,
    stat: Stat,
    xattrs: Xattrs,
    target: Vec<u8>,
    /// The listing of a directory.
    listing: Option<usize>,
}

#[derive(Default)]
struct Queue {
    todo: Vec<usize>,
    /// Directories being listed.
    busy: usize,
    listings: Vec<Vec<Found>>,
    /// Each directory has the number of its listing.
    places: Places,
    failure: Option<ImageError>,
}

struct Walk<'a> {
    layer: &'a Path,
    root: &'a Dir,
    without: Option<&'a PathGlobs>,
    queue: Mutex<Queue>,
    changed: Condvar,
    entries: AtomicU64,
    bytes: AtomicU64,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Walks the tree at `layer`, but for what is to be left out of it.
pub(super) fn walk(
    layer: &Path,
    chunk_size: crate::model::chunk::ChunkSize,
    namespaces: Namespaces,
    threads: usize,
    without: Option<&PathGlobs>,
) -> Result<Walked, ImageError> {
    let failed = |source| ImageError::Walk { path: layer.to_owned(), source };
    let root = Dir::enclose(layer).map_err(failed)?;
    let fd = std::os::fd::AsFd::as_fd(&root);
    let root_meta = meta(&stat_fd(fd).map_err(failed)?, xattrs_fd(fd).map_err(failed)?);
    let walk = Walk {
        layer,
        root: &root,
        without,
        queue: Mutex::new(Queue { todo: vec![0], listings: vec![Vec::new()], ..Queue::default() }),
        changed: Condvar::new(),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| walk.work());
        }
    });
    let queue = walk.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = queue.failure {
        return Err(error);
    }
    assemble(layer, root_meta, queue.listings, chunk_size, namespaces).map(|(tree, sources, nodes)| Walked {
        root,
        tree,
        dirs: queue.places,
        sources,
        nodes,
    })
}

impl Walk<'_> {
    fn work(&self) {
        let mut opener = Opener::new(self.root);
        loop {
            let mut queue = self
                .changed
                .wait_while(lock(&self.queue), |q| q.todo.is_empty() && q.busy > 0 && q.failure.is_none())
                .unwrap_or_else(PoisonError::into_inner);
            if queue.failure.is_some() {
                return;
            }
            let Some(index) = queue.todo.pop() else { return };
            queue.busy += 1;
            let way = opener.way(&queue.places, index);
            drop(queue);
            let listed = self.list(index, opener.open(way));
            let mut queue = lock(&self.queue);
            queue.busy -= 1;
            match listed {
                Err(error) => {
                    queue.failure.get_or_insert(error);
                }
                Ok(mut found) => {
                    for entry in found.iter_mut().filter(|e| e.stat.is_dir()) {
                        let number = queue.places.add(index, entry.name.clone());
                        entry.listing = Some(number);
                        queue.listings.push(Vec::new());
                        queue.todo.push(number);
                    }
                    queue.listings[index] = found;
                }
            }
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// Lists a directory. Of errors the path is built here, where nobody has the lock.
    fn list(&self, index: usize, dir: io::Result<Arc<Dir>>) -> Result<Vec<Found>, ImageError> {
        let path = || lock(&self.queue).places.path(index);
        let failed = |source| ImageError::Walk { path: path(), source };
        let dir = dir.map_err(failed)?;
        let mut entries = dir.entries_at_most(MAX_ENTRIES as usize).map_err(failed)?;
        if let Some(without) = self.without.filter(|without| !without.is_empty()) {
            let dir = if index == 0 { PathBuf::from("/") } else { Path::new("/").join(path()) };
            entries.retain(|entry| !without.matches(&dir.join(OsStr::from_bytes(entry.name.to_bytes()))));
        }
        let total = self.entries.fetch_add(entries.len() as u64, Ordering::Relaxed) + entries.len() as u64;
        let too_large = |what, most| ImageError::TooLarge { layer: self.layer.to_owned(), what, most };
        if total > MAX_ENTRIES {
            return Err(too_large("entries", MAX_ENTRIES));
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let failed = |source| ImageError::Walk {
                path: path().join(OsStr::from_bytes(entry.name.to_bytes())),
                source,
            };
            let stat = dir.stat(&entry.name).map_err(failed)?;
            let xattrs = dir.xattrs(&entry.name).map_err(failed)?;
            let target =
                if stat.is_symlink() { dir.read_link(&entry.name).map_err(failed)? } else { Vec::new() };
            let bytes = xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() + target.len();
            if self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) > MAX_BYTES {
                return Err(too_large("bytes of attributes and link targets", MAX_BYTES));
            }
            found.push(Found { name: entry.name, stat, xattrs, target, listing: None });
        }
        Ok(found)
    }
}

fn meta(stat: &Stat, xattrs: Xattrs) -> Meta {
    Meta {
        mode: stat.mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        mtime: Mtime { sec: stat.mtime.0, nsec: stat.mtime.1 },
        xattrs,
    }
}

type Assembled = (Tree, Vec<Source>, Vec<NodeId>);

/// Breadth first, names sorted: the order of nodes, and of the chunks in the blob.
fn assemble(
    layer: &Path,
    root: Meta,
    mut listings: Vec<Vec<Found>>,
    chunk_size: crate::model::chunk::ChunkSize,
    namespaces: Namespaces,
) -> Result<Assembled, ImageError> {
    let mut nodes = vec![Node { meta: root, kind: Kind::Dir(BTreeMap::new()) }];
    let mut sources = Vec::new();
    let mut source_nodes = Vec::new();
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut chunks = 0u64;
    let mut order = vec![(NodeId::ROOT, 0usize)];
    let mut at = 0;
    while let Some(&(dir, listing)) = order.get(at) {
        at += 1;
        let found = std::mem::take(&mut listings[listing]);
        // Sorted already: the map is then built in one go.
        let mut children = Vec::with_capacity(found.len());
        for entry in found {
            let Found { name, stat, xattrs, target, listing: below } = entry;
            let key = (stat.dev, stat.ino);
            let linkable = stat.nlink > 1 && !stat.is_dir();
            if let Some(id) = linked.get(&key).filter(|_| linkable) {
                children.push((name.to_bytes().into(), *id));
                continue;
            }
            let id =
                NodeId(u32::try_from(nodes.len()).map_err(|_| crate::model::tree::TreeError::TooManyNodes)?);
            let kind = match stat.file_type() {
                libc::S_IFDIR => Kind::Dir(BTreeMap::new()),
                libc::S_IFREG => {
                    if stat.size > 0 && !Marks::is_metacopy(&xattrs, namespaces) {
                        chunks = chunks.saturating_add(chunk_size.count(stat.size));
                        if chunks > MAX_CHUNKS {
                            return Err(ImageError::TooLarge {
                                layer: layer.to_owned(),
                                what: "chunks",
                                most: MAX_CHUNKS,
                            });
                        }
                        let sparse = stat.blocks.saturating_mul(512) < stat.size;
                        let source = Source {
                            dir: listing,
                            name: name.clone(),
                            size: stat.size,
                            ino: stat.ino,
                            sparse,
                        };
                        sources.push(source);
                        source_nodes.push(id);
                    }
                    Kind::File(Content { size: stat.size, chunks: Vec::new() })
                }
                libc::S_IFLNK => Kind::Symlink(target.into()),
                libc::S_IFCHR => Kind::Char(Rdev(stat.rdev)),
                libc::S_IFBLK => Kind::Block(Rdev(stat.rdev)),
                libc::S_IFIFO => Kind::Fifo,
                _ => Kind::Socket,
            };
            if let Some(below) = below {
                order.push((id, below));
            }
            nodes.push(Node { meta: meta(&stat, xattrs), kind });
            if linkable {
                linked.insert(key, id);
            }
            children.push((name.to_bytes().into(), id));
        }
        nodes[dir.index()].kind = Kind::Dir(BTreeMap::from_iter(children));
    }
    Ok((Tree::from_nodes(nodes)?, sources, source_nodes))
}
