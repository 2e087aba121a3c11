//! Two images, name by name.
//!
//! Content is compared by the digests of the chunks where both images have chunks of one size and one kind of digest, otherwise byte by
//! byte. So are plain layers, whose contents are cut as a Nydus image's are by default. Not compared: the root's time, which RAFS v6 has not.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::iter::{Flatten, Peekable};
use std::option::IntoIter;
use std::path::PathBuf;

use serde::Serialize;

use crate::model::chunk::ChunkRef;
use crate::model::paths;
use crate::model::tree::{Content, Kind, Name, Node, NodeId};

use super::data::Decoder;
use super::walk::to_path;
use super::{Opened, ReaderError, content};

/// How a name differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only in the second image.
    Added,
    /// Only in the first image.
    Removed,
    /// In both.
    Changed,
}

/// A name that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// From the root.
    #[serde(with = "paths")]
    pub path: PathBuf,
    /// How.
    pub change: Change,
    /// What has changed: `type`, `mode`, `owner`, `mtime`, `attributes`, `target`, `device`, `size`, `content`, `links`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<Field>,
}

/// A changed property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Which.
    pub name: &'static str,
    /// In the first image.
    pub from: String,
    /// In the second.
    pub to: String,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether there is no difference.
    pub equal: bool,
    /// Names compared, each counted once.
    pub entries: u64,
    /// By path, in the order of their bytes within each directory.
    pub differences: Vec<Difference>,
}

/// Compares two images.
///
/// # Errors
/// When data is needed for it and cannot be read.
pub fn diff(first: &Opened, second: &Opened) -> Result<Report, ReaderError> {
    let mut diff = Diff {
        first,
        second,
        sides: (Side::default(), Side::default()),
        by_digest: {
            let (a, b) = (first.image.superblock.format, second.image.superblock.format);
            a.chunk_size == b.chunk_size && a.digester == b.digester
        },
        there: HashMap::new(),
        back: HashMap::new(),
    };
    let mut differences = Vec::new();
    let mut entries = 0;
    let mut path = Vec::new();
    let mut open = Vec::new();
    let mut pair = (Some(NodeId::ROOT), Some(NodeId::ROOT));
    loop {
        entries += 1;
        let what = match pair {
            (Some(a), Some(b)) => diff.entry(&path, a, b)?,
            _ => Vec::new(),
        };
        let change = match pair {
            (Some(_), Some(_)) => Change::Changed,
            (Some(_), None) => Change::Removed,
            _ => Change::Added,
        };
        if change != Change::Changed || !what.is_empty() {
            differences.push(Difference { path: to_path(&path), change, what });
        }
        open.push(Names::of(first, second, pair, path.len()));
        pair = loop {
            let Some(names) = open.last_mut() else {
                return Ok(Report { equal: differences.is_empty(), entries, differences });
            };
            path.truncate(names.len);
            if let Some((name, pair)) = names.next() {
                path.push(b'/');
                path.extend_from_slice(name);
                break pair;
            }
            open.pop();
        };
    }
}

type Children<'a> = Peekable<Flatten<IntoIter<&'a BTreeMap<Name, NodeId>>>>;

/// The names of two directories, or of one, in one order.
struct Names<'a> {
    first: Children<'a>,
    second: Children<'a>,
    /// Length of the directories' path.
    len: usize,
}

type Pair = (Option<NodeId>, Option<NodeId>);

impl<'a> Names<'a> {
    fn of(first: &'a Opened, second: &'a Opened, pair: Pair, len: usize) -> Names<'a> {
        let names = |image: &'a Opened, id: Option<NodeId>| {
            id.and_then(|id| image.image.tree.children(id)).into_iter().flatten().peekable()
        };
        Names { first: names(first, pair.0), second: names(second, pair.1), len }
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = (&'a Name, Pair);

    fn next(&mut self) -> Option<(&'a Name, Pair)> {
        let order = match (self.first.peek(), self.second.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let a = if order == Ordering::Greater { None } else { self.first.next() };
        let b = if order == Ordering::Less { None } else { self.second.next() };
        let name = a.or(b)?.0;
        Some((name, (a.map(|(_, id)| *id), b.map(|(_, id)| *id))))
    }
}

struct Diff<'a> {
    first: &'a Opened,
    second: &'a Opened,
    sides: (Side, Side),
    by_digest: bool,
    /// Which inode of the second goes with one of the first, and the other way round.
    there: HashMap<NodeId, NodeId>,
    back: HashMap<NodeId, NodeId>,
}

/// The chunk of an image that is being compared: chunks of the other one may be smaller.
#[derive(Default)]
struct Side {
    decoder: Decoder,
    name: Option<ChunkRef>,
    raw: Vec<u8>,
}

impl Side {
    fn chunk(&mut self, image: &Opened, name: ChunkRef, path: &[u8]) -> Result<&[u8], ReaderError> {
        if self.name != Some(name) {
            self.name = None;
            let raw = content::chunk(image, &mut self.decoder, name, &|| path.to_vec())?;
            self.raw.clear();
            self.raw.extend_from_slice(raw);
            self.name = Some(name);
        }
        Ok(&self.raw)
    }
}

impl Diff<'_> {
    fn entry(&mut self, path: &[u8], a: NodeId, b: NodeId) -> Result<Vec<Field>, ReaderError> {
        let (Some(x), Some(y)) = (self.first.image.tree.get(a), self.second.image.tree.get(b)) else {
            return Ok(Vec::new());
        };
        let mut what = Vec::new();
        let mut field = |name, from: String, to: String| {
            if from != to {
                what.push(Field { name, from, to });
            }
        };
        field("type", kind(x).to_owned(), kind(y).to_owned());
        field("mode", format!("{:o}", x.meta.mode), format!("{:o}", y.meta.mode));
        let owner = |n: &Node| format!("{}:{}", n.meta.uid, n.meta.gid);
        field("owner", owner(x), owner(y));
        if a != NodeId::ROOT {
            let time = |n: &Node| format!("{}.{:09}", n.meta.mtime.sec, n.meta.mtime.nsec);
            field("mtime", time(x), time(y));
        }
        if x.meta.xattrs != y.meta.xattrs {
            let (from, to) = (attributes(x), attributes(y));
            what.push(Field { name: "attributes", from, to });
        }
        match (&x.kind, &y.kind) {
            (Kind::Symlink(p), Kind::Symlink(q)) if p != q => {
                let text = |t: &[u8]| String::from_utf8_lossy(t).into_owned();
                what.push(Field { name: "target", from: text(p), to: text(q) });
            }
            (Kind::Char(p), Kind::Char(q)) | (Kind::Block(p), Kind::Block(q)) if p != q => {
                what.push(Field { name: "device", from: p.0.to_string(), to: q.0.to_string() });
            }
            (Kind::File(p), Kind::File(q)) if p.size != q.size => {
                what.push(Field { name: "size", from: p.size.to_string(), to: q.size.to_string() });
            }
            (Kind::File(p), Kind::File(q)) => {
                if let Some(at) = self.content(path, p, q)? {
                    let text = format!("from byte {at} on");
                    what.push(Field { name: "content", from: text.clone(), to: text });
                }
            }
            _ => {}
        }
        let there = *self.there.entry(a).or_insert(b) == b;
        let back = *self.back.entry(b).or_insert(a) == a;
        if !there || !back {
            let text = |same| if same { "one inode" } else { "another inode" }.to_owned();
            what.push(Field { name: "links", from: text(back), to: text(there) });
        }
        Ok(what)
    }

    /// Where two files of one size begin to differ: to the chunk if digests are compared, else to the byte.
    fn content(&mut self, path: &[u8], a: &Content, b: &Content) -> Result<Option<u64>, ReaderError> {
        if self.by_digest {
            let size = u64::from(self.first.image.superblock.format.chunk_size.bytes());
            let digest = |image: &Opened, name| image.image.chunks.get(name).map(|c| c.info.digest);
            let other = a.chunks.iter().zip(&b.chunks).position(|(x, y)| {
                let (x, y) = (digest(self.first, *x), digest(self.second, *y));
                x.is_none() || x != y
            });
            return Ok(other.map(|n| n as u64 * size));
        }
        let mut at = 0;
        while at < a.size {
            let (p, q) = (content::place(self.first, at), content::place(self.second, at));
            let (Some(x), Some(y)) = (a.chunks.get(p.number), b.chunks.get(q.number)) else {
                return Ok(Some(at));
            };
            let x = &self.sides.0.chunk(self.first, *x, path)?[p.within..];
            let y = &self.sides.1.chunk(self.second, *y, path)?[q.within..];
            let len = x.len().min(y.len());
            if len == 0 {
                return Ok(Some(at));
            }
            if let Some(first) = x[..len].iter().zip(&y[..len]).position(|(x, y)| x != y) {
                return Ok(Some(at + first as u64));
            }
            at += len as u64;
        }
        Ok(None)
    }
}

fn kind(node: &Node) -> &'static str {
    match node.kind {
        Kind::Dir(_) => "directory",
        Kind::File(_) => "file",
        Kind::Symlink(_) => "symlink",
        Kind::Char(_) => "char",
        Kind::Block(_) => "block",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

fn attributes(node: &Node) -> String {
    let one =
        |(name, value): &(Vec<u8>, Vec<u8>)| format!("{}({})", String::from_utf8_lossy(name), value.len());
    node.meta.xattrs.iter().map(one).collect::<Vec<_>>().join(" ")
}
