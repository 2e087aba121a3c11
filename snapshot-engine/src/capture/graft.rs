//! Trees beside the upperdir that a snapshot has as well, and where in the frozen upperdir they go.
//!
//! ```text
//!   upper root: srv, etc        rounds, window, sweep: as many roots as there are trees, one index, one tracker
//!   graft root: db, log
//!                               freeze:  srv           as in the upperdir; made, as the container sees it, if the upperdir has none
//!                                        `- data       the graft's root, opaque: nothing below the mount point shines through
//!                                           |- db
//!                                           `- log
//! ```
//!
//! All inodes lie on one file system, so that a number is an inode whichever tree it is in, and what reads, watches and captures inodes asks
//! for no tree. Only here, when the frozen upperdir is built, the trees become one: [`Shape`] is the index with the difference, which leaves the
//! index as it is for the next round.
//!
//! What was rejected: frozen trees side by side, put together by each image format. Every reader of a frozen upperdir (both formats, the
//! comparison with an earlier one, `--without-path`, the tests' judges) would have to know.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::index::{Body, Index, Known};
use crate::kernel::beneath::{Dir, Stat, Xattrs};
use crate::model::dirty::Ino;
use crate::model::overlay::Namespaces;

/// A tree beside the upperdir, on its file system.
#[derive(Debug, Clone)]
pub struct Graft {
    /// Where it goes, from the upperdir's root; not empty, and without `.` and `..`.
    pub at: PathBuf,
    /// Its root.
    pub root: Arc<Dir>,
    /// The metadata of the directories above it, the highest first, for those that the upperdir does not have.
    pub above: Vec<(Stat, Xattrs)>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Grafts {
    /// In any order; one may lie in another.
    pub list: Vec<Graft>,
    /// Which attributes overlayfs reads in the upperdir. In a graft they are not its marks, so they are left out.
    pub namespaces: Namespaces,
}

type Entries = BTreeMap<Arc<CStr>, Ino>;

/// The index with the grafts where they go.
#[derive(Debug)]
pub(super) struct Shape<'a> {
    index: &'a Index,
    /// Directories whose entries are others than in the index.
    entries: HashMap<Ino, Entries>,
    /// Inodes whose metadata is another, and directories that are in no tree.
    known: HashMap<Ino, Known>,
    /// The next number for such a directory: from the top down, where no file system has any.
    next: u64,
    namespaces: Namespaces,
    /// Devices 0/0, which an overlay takes for whiteouts.
    pub(super) left_out: u64,
}

impl<'a> Shape<'a> {
    pub(super) fn of(index: &'a Index, grafts: &Grafts, roots: &[Ino]) -> Shape<'a> {
        let mut shape = Shape {
            index,
            entries: HashMap::new(),
            known: HashMap::new(),
            next: u64::MAX - 1,
            namespaces: grafts.namespaces,
            left_out: 0,
        };
        let mut all: Vec<(&Graft, Ino)> = grafts.list.iter().zip(roots.iter().copied()).collect();
        // One that lies in another finds that in its place.
        all.sort_by_key(|(graft, _)| graft.at.components().count());
        for (graft, root) in all {
            shape.strip(root);
            shape.place(graft, root);
        }
        shape
    }

    pub(super) fn index(&self) -> &'a Index {
        self.index
    }

    pub(super) fn known(&self, ino: Ino) -> Option<&Known> {
        self.known.get(&ino).or_else(|| self.index.known(ino))
    }

    pub(super) fn entries(&self, ino: Ino) -> Option<&Entries> {
        self.entries.get(&ino).or_else(|| self.index.get(ino)?.entries.as_ref())
    }

    fn entries_mut(&mut self, ino: Ino) -> &mut Entries {
        let index = self.index;
        let copy = || index.get(ino).and_then(|node| node.entries.clone()).unwrap_or_default();
        self.entries.entry(ino).or_insert_with(copy)
    }

    /// Takes out of a graft what an overlay would take for its marks.
    fn strip(&mut self, root: Ino) {
        let index = self.index;
        let (mut stack, mut seen) = (vec![root], HashSet::from([root]));
        self.cleanse(root);
        while let Some(dir) = stack.pop() {
            for (name, child) in index.get(dir).and_then(|node| node.entries.as_ref()).into_iter().flatten() {
                let Some(known) = index.known(*child) else { continue };
                if known.body == Body::Special
                    && known.stat.file_type() == libc::S_IFCHR
                    && known.stat.rdev == 0
                {
                    self.entries_mut(dir).remove(name);
                    self.left_out += 1;
                } else if seen.insert(*child) {
                    self.cleanse(*child);
                    if known.body == Body::Directory {
                        stack.push(*child);
                    }
                }
            }
        }
    }

    fn cleanse(&mut self, ino: Ino) {
        let Some(known) = self.index.known(ino) else { return };
        if known.xattrs.iter().any(|(name, _)| self.is_mark(name)) {
            let xattrs = self.clean(&known.xattrs);
            self.known.insert(ino, Known { xattrs, ..known.clone() });
        }
    }

    /// Whether an attribute would be taken for a mark, or may not be in an image.
    fn is_mark(&self, name: &[u8]) -> bool {
        self.namespaces.is_mark(name) || Namespaces::Trusted.is_mark(name)
    }

    fn clean(&self, xattrs: &Xattrs) -> Xattrs {
        xattrs.iter().filter(|(name, _)| !self.is_mark(name)).cloned().collect()
    }

    /// Puts a graft where it goes, and makes what is missing above it.
    fn place(&mut self, graft: &Graft, root: Ino) {
        let names: Vec<CString> =
            graft.at.iter().filter_map(|name| CString::new(name.as_bytes()).ok()).collect();
        let Some((last, above)) = names.split_last() else { return };
        let mut at = self.index.root();
        for (depth, name) in above.iter().enumerate() {
            let there = self.entries(at).and_then(|entries| entries.get(name.as_c_str())).copied();
            at = match there {
                Some(ino) if self.known(ino).is_some_and(|known| known.body == Body::Directory) => ino,
                // A whiteout, or something else since: what is below stays hidden.
                there => self.make(at, name, graft.above.get(depth), there.is_some()),
            };
        }
        self.entries_mut(at).insert(Arc::from(last.as_c_str()), root);
        if let Some(known) = self.known(root) {
            let known = Known { xattrs: self.opaque(&known.xattrs), ..known.clone() };
            self.known.insert(root, known);
        }
    }

    /// A directory that no tree has.
    fn make(&mut self, dir: Ino, name: &CStr, like: Option<&(Stat, Xattrs)>, opaque: bool) -> Ino {
        let ino = Ino(self.next);
        self.next -= 1;
        if let Some((stat, xattrs)) = like {
            let xattrs = self.clean(xattrs);
            let xattrs = if opaque { self.opaque(&xattrs) } else { xattrs };
            let known = Known { stat: *stat, xattrs, body: Body::Directory, young: false, steady: false };
            self.known.insert(ino, known);
        }
        self.entries.insert(ino, Entries::new());
        self.entries_mut(dir).insert(Arc::from(name), ino);
        ino
    }

    fn opaque(&self, xattrs: &Xattrs) -> Xattrs {
        let mut xattrs = xattrs.clone();
        xattrs.push((self.namespaces.opaque(), b"y".to_vec()));
        xattrs.sort();
        xattrs
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Error, Shadow, ShadowOptions};
    use super::*;
    use crate::model::dirty::Still;
    use crate::model::progress::Quiet;

    const UPPER: Ino = Ino(1);
    const GRAFT: Ino = Ino(10);

    fn stat(ino: u64, mode: u32) -> Stat {
        let (time, btime) = ((7, 0), (5, 0));
        Stat {
            ino,
            dev: 1,
            mode,
            nlink: 1,
            uid: 3,
            gid: 4,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime,
        }
    }

    fn attributes(names: &[&str]) -> Xattrs {
        names.iter().map(|name| (name.as_bytes().to_vec(), b"v".to_vec())).collect()
    }

    fn directory(index: &mut Index, ino: Ino, names: &[&str], entries: &[(&str, u64)]) {
        let listing = entries.iter().map(|(name, ino)| (CString::new(*name).unwrap(), Ino(*ino), 0));
        index.set_entries(ino, listing);
        know(index, ino, libc::S_IFDIR | 0o750, Body::Directory, names);
    }

    fn know(index: &mut Index, ino: Ino, mode: u32, body: Body, names: &[&str]) {
        let stat = stat(ino.0, mode);
        let known = Known { stat, xattrs: attributes(names), body, young: false, steady: false };
        index.set_known(ino, known);
    }

    /// An upperdir with /srv and a deleted /gone, and a tree with a file, a link of it and what an overlay takes for marks.
    fn index(at: &str) -> Index {
        let mut index = Index::new(UPPER, vec![(GRAFT, at.into())]);
        directory(&mut index, UPPER, &[], &[("srv", 2), ("gone", 3)]);
        directory(&mut index, Ino(2), &[], &[("old", 4)]);
        know(&mut index, Ino(3), libc::S_IFCHR, Body::Special, &[]);
        know(&mut index, Ino(4), libc::S_IFIFO, Body::Special, &[]);
        directory(&mut index, GRAFT, &["user.a"], &[("sub", 11), ("file", 12)]);
        directory(
            &mut index,
            Ino(11),
            &["trusted.overlay.redirect", "user.overlay.x"],
            &[("white", 13), ("file", 12)],
        );
        know(&mut index, Ino(12), libc::S_IFIFO, Body::Special, &["trusted.overlay.origin"]);
        know(&mut index, Ino(13), libc::S_IFCHR, Body::Special, &[]);
        index
    }

    fn grafts(at: &str, namespaces: Namespaces) -> Grafts {
        let root = Arc::new(Dir::open("/".as_ref()).unwrap());
        let above =
            (0..4).map(|n| (stat(100 + n, libc::S_IFDIR | 0o711), attributes(&["user.above"]))).collect();
        Grafts { list: vec![Graft { at: at.into(), root, above }], namespaces }
    }

    fn at(shape: &Shape<'_>, path: &str) -> Ino {
        path.split('/')
            .fold(UPPER, |at, name| shape.entries(at).unwrap()[CString::new(name).unwrap().as_c_str()])
    }

    fn names(shape: &Shape<'_>, path: &str) -> Vec<String> {
        let known = shape.known(at(shape, path)).unwrap();
        known.xattrs.iter().map(|(name, _)| String::from_utf8(name.clone()).unwrap()).collect()
    }

    #[test]
    fn a_tree_goes_in_its_place_and_hides_what_is_below() {
        let index = index("srv/old");
        let shape = Shape::of(&index, &grafts("srv/old", Namespaces::Trusted), &[GRAFT]);
        assert_eq!((at(&shape, "srv/old"), at(&shape, "srv/old/sub/file")), (GRAFT, Ino(12)));
        assert_eq!(names(&shape, "srv/old"), ["trusted.overlay.opaque", "user.a"]);
        assert_eq!(names(&shape, "srv/old/sub"), ["user.overlay.x"], "user.overlay.* is no mark here");
        assert!(names(&shape, "srv/old/file").is_empty());
        assert_eq!((shape.left_out, shape.entries(Ino(11)).unwrap().len()), (1, 1));
        // The next round finds the index as it was.
        assert_eq!(index.get(Ino(2)).unwrap().entries.as_ref().unwrap().len(), 1);
        assert_eq!(index.path(Ino(12)), PathBuf::from("srv/old/sub/file"));

        let shape = Shape::of(&index, &grafts("srv/old", Namespaces::User), &[GRAFT]);
        assert_eq!(names(&shape, "srv/old"), ["user.a", "user.overlay.opaque"]);
        assert!(names(&shape, "srv/old/sub").is_empty());
    }

    #[test]
    fn directories_above_are_made_as_the_container_shows_them() {
        let index = index("new/way/to");
        let shape = Shape::of(&index, &grafts("new/way/to", Namespaces::Trusted), &[GRAFT]);
        assert_eq!(at(&shape, "new/way/to"), GRAFT);
        assert_eq!(names(&shape, "new/way"), ["user.above"], "what is below goes on showing");
        let made = shape.known(at(&shape, "new/way")).unwrap().stat;
        assert_eq!((made.mode & 0o7777, made.ino), (0o711, 101));
        // In the place of what the container has deleted.
        let shape = Shape::of(&index, &grafts("gone/to", Namespaces::Trusted), &[GRAFT]);
        assert_eq!(names(&shape, "gone"), ["trusted.overlay.opaque", "user.above"]);
    }

    #[test]
    fn no_tree_is_in_another_and_no_root_goes() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (upper, volume) = (make("upper"), make("volume"));
        make("upper/below");
        let shadow = |root: &std::path::Path, work: &str| {
            let root = Arc::new(Dir::open(root).unwrap());
            let list = vec![Graft { at: "srv".into(), root, above: Vec::new() }];
            let grafts = Grafts { list, namespaces: Namespaces::Trusted };
            Shadow::grafted(&upper, grafts, &dir.path().join(work), ShadowOptions::default())
        };
        let base = |shadow: &mut Shadow| shadow.base(&mut Still, &Quiet).map(drop);

        let mut apart = shadow(&volume, "work").unwrap();
        base(&mut apart).unwrap();
        for root in [&upper, &volume] {
            let ino = Ino(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(root).unwrap()));
            assert_eq!(apart.parents(ino), [ino], "a window would take a root without a descriptor for gone");
        }
        assert!(matches!(shadow(&upper, "same"), Err(Error::Overlap { .. })));
        assert!(matches!(base(&mut shadow(&upper.join("below"), "in").unwrap()), Err(Error::Overlap { .. })));
        assert!(matches!(base(&mut shadow(dir.path(), "over").unwrap()), Err(Error::Overlap { .. })));
        let inside = base(&mut shadow(&volume, "volume/work").unwrap());
        assert!(matches!(inside, Err(Error::NestedInGraft { .. })), "{inside:?}");
    }
}
