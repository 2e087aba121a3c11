//! What there is to see of a tree: of a frozen one, mounted over the container's lower layers, and of a model. The two are compared name by name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountFlags, UnmountFlags};

use super::op::{PAGE, RECORD};
use super::tree::{Body, Tree};

/// An inode under one of its names.
#[derive(Debug, Clone)]
pub struct Seen {
    body: Body,
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<String, Vec<u8>>,
    mtime: Option<(i64, u32)>,
    /// How many names it has; `None`: not compared.
    links: Option<u64>,
    /// The first of its names.
    first: String,
}

/// Every name of a thread with its inode.
pub type Listing = BTreeMap<String, Seen>;

/// What a model looks like.
#[must_use]
pub fn of_model(tree: &Tree) -> Listing {
    let mut names = tree.list();
    names.sort();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut listing = Listing::new();
    for (path, id) in names {
        let Some(inode) = tree.get(id) else { continue };
        let first = first.entry(id).or_insert_with(|| path.clone()).clone();
        let body = match &inode.body {
            // Its names are names of the listing.
            Body::Directory(_) => Body::Directory(BTreeMap::new()),
            other => other.clone(),
        };
        let links = (!inode.is_dir()).then_some(u64::from(inode.links));
        let (owner, xattrs) = ((inode.uid, inode.gid), inode.xattrs.clone());
        listing
            .insert(path, Seen { body, mode: inode.mode, owner, xattrs, mtime: inode.mtime, links, first });
    }
    listing
}

/// How a thing differs from what the model says, in words; `None`: it does not.
#[must_use]
pub fn difference(model: &Seen, seen: &Seen) -> Option<String> {
    let two = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        Some(format!("its {what} should be {a:?} and is {b:?}"))
    };
    match (&model.body, &seen.body) {
        (Body::File(a), Body::File(b)) if a != b => {
            let at = a.iter().zip(b.iter()).position(|(a, b)| a != b);
            let at = at.unwrap_or(a.len().min(b.len()));
            let count = a.iter().zip(b.iter()).filter(|(a, b)| a != b).count();
            return Some(format!(
                "its content should have {} bytes and has {}; {count} bytes differ, the first at {at}",
                a.len(),
                b.len()
            ));
        }
        (a, b) if a != b => return two("body", a, b),
        _ => {}
    }
    if model.mode != seen.mode {
        return Some(format!("its mode should be {:o} and is {:o}", model.mode, seen.mode));
    }
    if model.owner != seen.owner {
        return two("owner", &model.owner, &seen.owner);
    }
    if model.xattrs != seen.xattrs {
        let short = |xattrs: &BTreeMap<String, Vec<u8>>| -> Vec<(String, usize, Vec<u8>)> {
            xattrs.iter().map(|(k, v)| (k.clone(), v.len(), v[..v.len().min(8)].to_vec())).collect()
        };
        return two("attributes", &short(&model.xattrs), &short(&seen.xattrs));
    }
    if model.mtime.is_some() && model.mtime != seen.mtime {
        return two("modification time", &model.mtime, &seen.mtime);
    }
    if model.links.is_some() && model.links != seen.links {
        return two("number of links", &model.links, &seen.links);
    }
    if model.first != seen.first {
        return two("first name", &model.first, &seen.first);
    }
    None
}

/// Every name in which a tree differs from a model, with the difference in words.
#[must_use]
pub fn differences(model: &Listing, seen: &Listing, most: usize) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (path, inode) in model {
        match seen.get(path) {
            None => found.push((path.clone(), "it is missing".to_owned())),
            Some(other) => found.extend(difference(inode, other).map(|what| (path.clone(), what))),
        }
        if found.len() >= most {
            return found;
        }
    }
    for path in seen.keys().filter(|path| !model.contains_key(*path)) {
        found.push((path.clone(), "it should not be there".to_owned()));
        if found.len() >= most {
            break;
        }
    }
    found
}

/// A frozen upperdir mounted read-only over the lowers of its container; unmounted on drop.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts it at the directory `at`, which is made. `lowers`: the topmost first.
    ///
    /// # Errors
    /// As `mount(2)`.
    pub fn new(frozen: &Path, lowers: &[PathBuf], at: &Path) -> io::Result<Mounted> {
        if !at.is_dir() {
            fs::create_dir(at)?;
        }
        let layers: Vec<String> = std::iter::once(frozen)
            .chain(lowers.iter().map(PathBuf::as_path))
            .map(|p| p.display().to_string())
            .collect();
        let options = format!("lowerdir={},redirect_dir=follow", layers.join(":"));
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount("torture", at, "overlay", MountFlags::RDONLY, options.as_c_str())?;
        Ok(Mounted(at.to_owned()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if rustix::mount::unmount(&self.0, UnmountFlags::empty()).is_err() {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

/// What there is to see of each of `threads` threads in the directory `home` of a mounted tree.
///
/// # Errors
/// When something cannot be read, or belongs to nobody.
pub fn of_tree(home: &Path, threads: u64) -> io::Result<Vec<Listing>> {
    let mut all = Vec::new();
    // The parts of the shared files.
    let log = fs::read(home.join("log"))?;
    if log.len() % RECORD != 0 {
        return Err(io::Error::other(format!("the shared log has {} bytes: a record is torn", log.len())));
    }
    let pages = fs::read(home.join("pages"))?;
    let mut logs = vec![Vec::new(); index(threads)];
    for record in log.chunks_exact(RECORD) {
        let thread = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
        let of = logs.get_mut(thread as usize);
        of.ok_or_else(|| io::Error::other("a record of the shared log is nobody's"))?.extend(record);
    }
    for (thread, log) in logs.into_iter().enumerate() {
        let mut listing = Listing::new();
        let mut groups = BTreeMap::new();
        let mine = pages.chunks(PAGE).skip(thread).step_by(index(threads)).flatten().copied().collect();
        for (name, content) in [("log", log), ("pages", mine)] {
            listing.insert(name.into(), part(Body::File(Arc::new(content)), 0o644, name));
        }
        listing.insert("shared".into(), part(Body::Directory(BTreeMap::new()), 0o755, "shared"));
        walk(home.join(format!("t{thread}")), "own".into(), &mut listing, &mut groups)?;
        all.push((listing, groups));
    }
    for entry in fs::read_dir(home.join("shared"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let (thread, name) = name.strip_prefix('t').and_then(|n| n.split_once('.')).unwrap_or(("", ""));
        let of = thread.parse().ok().and_then(|t: usize| all.get_mut(t));
        let (listing, groups) =
            of.ok_or_else(|| io::Error::other("a name in the shared directory is nobody's"))?;
        walk(entry.path(), format!("shared/{name}"), listing, groups)?;
    }
    Ok(all.into_iter().map(|(listing, groups)| finish(listing, groups)).collect())
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A part of something shared: only its body is the thread's.
fn part(body: Body, mode: u32, name: &str) -> Seen {
    let links = if matches!(body, Body::File(_)) { Some(1) } else { None };
    Seen { body, mode, owner: (0, 0), xattrs: BTreeMap::new(), mtime: None, links, first: name.into() }
}

/// Names by inode number.
type Groups = BTreeMap<u64, Vec<String>>;

/// Every inode knows the first of its names.
fn finish(mut listing: Listing, groups: Groups) -> Listing {
    for names in groups.into_values() {
        let first = names.iter().min().cloned().unwrap_or_default();
        for name in names {
            if let Some(seen) = listing.get_mut(&name) {
                seen.first.clone_from(&first);
            }
        }
    }
    listing
}

fn walk(real: PathBuf, path: String, listing: &mut Listing, groups: &mut Groups) -> io::Result<()> {
    let mut stack = vec![(real, path)];
    while let Some((real, path)) = stack.pop() {
        let stat = fs::symlink_metadata(&real)?;
        let kind = stat.file_type();
        let body = if kind.is_file() {
            Body::File(Arc::new(fs::read(&real)?))
        } else if kind.is_dir() {
            for entry in fs::read_dir(&real)? {
                let entry = entry?;
                let name = entry.file_name();
                stack.push((entry.path(), format!("{path}/{}", name.to_string_lossy())));
            }
            Body::Directory(BTreeMap::new())
        } else if kind.is_symlink() {
            Body::Link(fs::read_link(&real)?.to_string_lossy().into_owned())
        } else if kind.is_fifo() {
            Body::Fifo
        } else if kind.is_socket() {
            Body::Socket
        } else if kind.is_char_device() {
            Body::Character(stat.rdev())
        } else {
            Body::Block(stat.rdev())
        };
        groups.entry(stat.ino()).or_default().push(path.clone());
        let seen = Seen {
            links: (!kind.is_dir()).then_some(stat.nlink()),
            body,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            xattrs: attributes(&real)?,
            mtime: Some((stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap_or(0))),
            first: String::new(),
        };
        listing.insert(path, seen);
    }
    Ok(())
}

fn attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = [0u8; 4096];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = BTreeMap::new();
    // XFS lists an ACL a second time, as it stores it.
    let of_xfs: &[u8] = b"trusted.SGI_ACL";
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty() && !n.starts_with(of_xfs)) {
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}
