//! `/proc/PID/mountinfo`, parsed without I/O.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! id parent dev root point options  optional* - type source   super options
//! ```
//!
//! The mount table of a container is written by the container: a line that does not parse is left out, never trusted.
//! Format: proc_pid_mountinfo(5); escapes: `mangle` and `seq_show_option` (fs/proc_namespace.c, include/linux/seq_file.h).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount number, as `statx` gives it in `stx_mnt_id`.
    pub id: u64,
    /// The mount it is mounted on.
    pub parent: u64,
    /// Major number of the superblock's device.
    pub major: u32,
    /// Minor number of the superblock's device.
    pub minor: u32,
    /// The directory of the file system that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, as the process sees it.
    pub point: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// What is mounted: often a device.
    pub source: PathBuf,
    /// Options of the superblock, **still escaped**: an escaped comma is no separator.
    pub super_options: Vec<u8>,
}

impl Mount {
    /// The superblock's `s_dev` as the kernel packs it: `MKDEV`, 20 bits of minor (include/linux/kdev_t.h). It is not
    /// the `dev_t` of user space.
    #[must_use]
    pub fn device(&self) -> u64 {
        kernel_device(self.major, self.minor)
    }

    /// Where in the file system lies what has this path, if it is below this mount.
    #[must_use]
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.point).ok()?;
        // Not joined with nothing: that would end it with a slash.
        Some(if rest.as_os_str().is_empty() { self.root.clone() } else { self.root.join(rest) })
    }
}

/// `MKDEV(major, minor)` of include/linux/kdev_t.h.
#[must_use]
pub fn kernel_device(major: u32, minor: u32) -> u64 {
    (u64::from(major) << 20) | u64::from(minor)
}

/// Every line that parses, in the kernel's order.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// The mount that a path lies on, if no link leads elsewhere. Of two mounts on one place the later one is on top.
#[must_use]
pub fn covering<'m>(path: &Path, mounts: &'m [Mount]) -> Option<&'m Mount> {
    let over = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    over.max_by_key(|mount| mount.point.components().count())
}

/// A path in a mount namespace as a path from the root of the overlay with this device that it lies on; as it is if it lies elsewhere.
#[must_use]
pub fn from_root(path: Vec<u8>, mounts: &[Mount], overlay: u64) -> Vec<u8> {
    let whole = Path::new(std::ffi::OsStr::from_bytes(&path));
    let on = covering(whole, mounts).filter(|m| m.fs_type == "overlay" && m.device() == overlay);
    match on.and_then(|mount| mount.inside(whole)) {
        Some(inside) => inside.into_os_string().into_vec(),
        None => path,
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = || fields.next();
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let device = next()?;
    let colon = device.iter().position(|b| *b == b':')?;
    let major = u32::try_from(number(&device[..colon])?).ok()?;
    let minor = u32::try_from(number(&device[colon + 1..])?).ok()?;
    let root = path(next()?);
    let point = path(next()?);
    let _mount_options = next()?;
    // Any number of optional fields, up to a lone hyphen.
    while next()? != b"-" {}
    let fs_type = String::from_utf8(unescape(next()?)).ok()?;
    let source = path(next()?);
    // A file system may have no options at all.
    let super_options = next().unwrap_or_default().to_vec();
    Some(Mount { id, parent, major, minor, root, point, fs_type, source, super_options })
}

fn number(field: &[u8]) -> Option<u64> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the octal escapes. What is not a whole escape stays as it is.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(rest) {
            Some(value) => {
                out.push(value);
                rest = &rest[4..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// The byte of an escape `\ooo` that `text` starts with.
pub(super) fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = text else { return None };
    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
}

/// The mount that is the root directory: of several at `/`, the one that no other covers.
#[must_use]
pub fn root(mounts: &[Mount]) -> Option<&Mount> {
    let at_root = |m: &&Mount| m.point == Path::new("/");
    mounts
        .iter()
        .rev()
        .filter(at_root)
        .find(|m| !mounts.iter().filter(at_root).any(|over| over.parent == m.id && over.id != m.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
not a line
40 22 0:41 / / rw shared:1 master:2 propagate_from:3 - overlay overlay rw,lowerdir=/a:/b,upperdir=/u\\040v,workdir=/w
41 40 0:42 /sub\\040dir /proc/a\\134b rw - proc proc rw
42 40 x:1 / /dev rw - tmpfs tmpfs rw
43 40 0:9 / /none rw - tmpfs none
";

    #[test]
    fn reads_optional_fields_and_escapes() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].fs_type, "overlay");
        assert_eq!(mounts[1].super_options, b"rw,lowerdir=/a:/b,upperdir=/u\\040v,workdir=/w");
        assert_eq!(mounts[2].root, Path::new("/sub dir"));
        assert_eq!(mounts[2].point, Path::new("/proc/a\\b"));
        assert_eq!(mounts[3].super_options, b"");
        assert_eq!(mounts[0].device(), 254 << 20);
    }

    #[test]
    fn the_uncovered_root_is_the_root() {
        let mut mounts = parse(TABLE);
        assert_eq!(root(&mounts).map(|m| m.id), Some(40));
        mounts.swap(0, 1);
        assert_eq!(root(&mounts).map(|m| m.id), Some(40));
        mounts.clear();
        assert_eq!(root(&mounts), None);
    }

    fn escape(bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                b => vec![*b],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn never_panics(table in prop::collection::vec(any::<u8>(), 0..400)) {
            let mounts = parse(&table);
            let _ = root(&mounts);
        }

        #[test]
        fn any_path_survives(name in prop::collection::vec(1u8.., 1..40)) {
            let mut line = b"1 0 0:1 / ".to_vec();
            line.extend(escape(&name));
            line.extend(b" rw - overlay overlay rw");
            let mounts = parse(&line);
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(mounts[0].point.as_os_str().as_encoded_bytes(), &name[..]);
        }
    }

    #[test]
    fn a_path_through_another_mount_of_the_tree_is_found_in_the_tree() {
        let mounts = parse(
            b"36 35 0:47 / / rw - overlay o rw\n37 36 0:47 /srv/data /mnt/d rw - overlay o rw\n38 36 254:0 /v /vol rw - ext4 /dev/vda rw\n",
        );
        let found = |path: &str| from_root(path.as_bytes().to_vec(), &mounts, kernel_device(0, 47));
        assert_eq!(found("/srv/db"), b"/srv/db");
        assert_eq!(found("/mnt/d/db"), b"/srv/data/db");
        assert_eq!(found("/mnt/dd"), b"/mnt/dd");
        assert_eq!(found("/vol/db"), b"/vol/db");
    }
}
