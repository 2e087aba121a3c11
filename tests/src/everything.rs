//! A tree of everything a file system can hold, to compare with what an image shows of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A mount that goes away with the test.
#[derive(Debug)]
pub struct Mount(pub PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Mount {
    /// An empty file system in memory: quick for very many entries, and without a small limit for attributes.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn memory(at: &Path) -> Result<Mount> {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).context("mount a tmpfs (needs root)")?;
        Ok(Mount(at.to_owned()))
    }
}

/// A directory.
///
/// # Errors
/// When it cannot be made.
pub fn make(parent: &Path, name: &str) -> Result<PathBuf> {
    let path = parent.join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Bytes that do not compress.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// Sets a modification time.
///
/// # Errors
/// The kernel's.
pub fn mtime(path: &Path, sec: i64, nsec: i64) -> Result<()> {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets an attribute.
///
/// # Errors
/// The kernel's.
pub fn xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("{name} on {}", path.display()))
}

/// Makes a device, FIFO or socket.
///
/// # Errors
/// The kernel's.
pub fn node(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), rustix::fs::makedev(major, minor))?;
    Ok(())
}

/// What needs no privilege to make: files of sizes round the borders of blocks and of chunks up to 1 MiB, holes, links, odd names,
/// attributes and times.
///
/// # Errors
/// The kernel's.
pub fn plain(root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for size in
        [0usize, 1, 4095, 4096, 4097, 65535, 65536, 65537, 131_072, (1 << 20) - 1, 1 << 20, (1 << 20) + 1]
    {
        fs::write(root.join(format!("size-{size}")), noise(size as u64, size))?;
    }
    fs::write(root.join("text"), b"the quick brown fox ".repeat(200_000))?;
    fs::write(root.join("same-a"), noise(7, 300_000))?;
    fs::write(root.join("same-b"), noise(7, 300_000))?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(20 << 20)?;
    sparse.write_all_at(b"in the middle", 9_000_000)?;
    File::create(root.join("all-hole"))?.set_len(3_000_001)?;

    fs::write(root.join(OsStr::from_bytes(b"not\xffutf8\x01")), "bytes")?;
    fs::write(root.join("n".repeat(255)), "long name")?;
    fs::write(root.join("!before-the-dots"), "x")?;
    fs::write(root.join(".-between"), "x")?;
    symlink("text", root.join("link"))?;
    symlink("x".repeat(4000), root.join("long-link"))?;
    symlink(OsStr::from_bytes(b"/nowhere/\xfe"), root.join("odd-link"))?;
    node(&root.join("fifo"), FileType::Fifo, 0, 0)?;

    make(root, "empty-dir")?;
    let mut deep = root.to_owned();
    for i in 0..60 {
        deep = make(&deep, &format!("level-{i}"))?;
    }
    fs::write(deep.join("bottom"), "deep")?;

    let linked = make(root, "linked")?;
    fs::write(linked.join("a"), noise(1, 70_000))?;
    fs::hard_link(linked.join("a"), linked.join("b"))?;
    fs::hard_link(linked.join("a"), root.join("c"))?;

    xattr(&root.join("text"), "user.large", &[b'v'; 3900])?;
    xattr(&root.join("size-1"), "user.b", b"2")?;
    xattr(&root.join("size-1"), "user.a", b"")?;
    xattr(&root.join("empty-dir"), "user.dir", &[1; 200])?;
    odd_times(root)
}

fn odd_times(root: &Path) -> Result<()> {
    mtime(&root.join("same-b"), -1_000_000_000, 999_999_999)?;
    mtime(&root.join("link"), 1, 5)?;
    mtime(&root.join("empty-dir"), 4_000_000_000, 1)
}

/// Adds to a [`plain`] tree what needs root: owners, devices, a socket, set-id bits, attributes of every kind.
///
/// # Errors
/// The kernel's.
pub fn privileged(root: &Path) -> Result<()> {
    node(&root.join("char"), FileType::CharacterDevice, 5, 300)?;
    node(&root.join("block"), FileType::BlockDevice, 259, 70_000)?;
    node(&root.join("socket"), FileType::Socket, 0, 0)?;
    xattr(&root.join("size-1"), "trusted.t", b"\0binary\xff")?;
    xattr(&root.join("link"), "trusted.on-a-link", b"1")?;
    // vfs_cap_data, revision 2: cap_net_raw, effective.
    let caps = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr(&root.join("size-4096"), "security.capability", &caps)?;
    rustix::fs::chown(root.join("same-b"), Some(Uid::from_raw(4_000_000_000)), Some(Gid::from_raw(70_000)))?;
    fs::set_permissions(root.join("same-b"), fs::Permissions::from_mode(0o6755))?;
    fs::set_permissions(root.join("empty-dir"), fs::Permissions::from_mode(0o1777))?;
    odd_times(root)
}

/// Every kind of entry, name, attribute and time: [`plain`], [`privileged`], and several names of a link. `acls`: with access control
/// lists.
///
/// # Errors
/// The kernel's.
pub fn everything(root: &Path, acls: bool) -> Result<()> {
    plain(root)?;
    fs::hard_link(root.join("link"), root.join("linked/link-too"))?;
    privileged(root)?;
    if acls {
        give_acls(root)?;
    }
    odd_times(root)
}

fn give_acls(root: &Path) -> Result<()> {
    // posix_acl_xattr_header and five entries: user::rw- user:1000:r-- group::r-- mask::r-- other::r--
    let acl: Vec<u8> = [2u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain(
            [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)]
                .map(|(tag, perm, id)| {
                    [tag.to_le_bytes().to_vec(), perm.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()]
                        .concat()
                }),
        )
        .flatten()
        .collect();
    xattr(&root.join("same-a"), "system.posix_acl_access", &acl)?;
    xattr(&root.join("empty-dir"), "system.posix_acl_default", &acl)?;
    Ok(())
}
