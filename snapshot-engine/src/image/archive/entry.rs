//! The head of an entry in a layer: what tar says of a file before its content (POSIX.1-2001, pax; image-spec, `layer.md`).
//!
//! ```text
//!   x  path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*     only what the next block cannot hold
//!   512 bytes: name, mode, ids, size, mtime, type, link, device
//! ```
//!
//! Equal files give equal bytes: no clock is read, no names of users are looked up, records have one order.

use std::fmt::Write as _;

use tar::{EntryType, Header};

use crate::model::tree::{Kind, Meta, Mtime, Rdev, Xattrs};

/// What the fields of a header can hold: octal digits and a NUL (`ustar`).
const MAX_ID: u64 = 0o777_7777;
const MAX_NUMBER: u64 = 0o777_7777_7777;
/// The owner that a reader sees who does not know pax, of an owner that does not fit.
const NOBODY: u64 = 65534;
const NAME: usize = 100;

/// Attributes of overlayfs' in any namespace: whoever unpacks a layer for an overlay would have them taken for marks.
const PRIVATE: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What an entry is about.
pub(super) struct Entry<'a> {
    /// From the root, without a slash before it; of a directory with one behind it.
    pub(super) path: &'a [u8],
    /// Its metadata.
    pub(super) meta: &'a Meta,
    /// What it is.
    pub(super) what: What<'a>,
}

/// What an entry is.
pub(super) enum What<'a> {
    /// An inode that is not in the archive yet.
    Node(&'a Kind),
    /// Another name of one that is, at this path.
    Link(&'a [u8]),
}

/// The head: the pax records, and the block behind them.
pub(super) struct Head {
    pub(super) records: Vec<(String, Vec<u8>)>,
    pub(super) header: Header,
    /// Attributes that were left out because they are overlayfs' own.
    pub(super) private: usize,
}

/// The head of an entry; the other value says what of it tar cannot hold.
pub(super) fn head(entry: &Entry<'_>) -> Result<Head, &'static str> {
    let Entry { path, meta, what } = entry;
    let (kind, size, link, device) = match what {
        What::Link(to) => (EntryType::Link, 0, Some(*to), None),
        What::Node(kind) => match kind {
            Kind::Dir(_) => (EntryType::Directory, 0, None, None),
            Kind::File(content) => (EntryType::Regular, content.size, None, None),
            Kind::Symlink(to) => (EntryType::Symlink, 0, Some(&**to), None),
            Kind::Char(device) => (EntryType::Char, 0, None, Some(*device)),
            Kind::Block(device) => (EntryType::Block, 0, None, Some(*device)),
            Kind::Fifo => (EntryType::Fifo, 0, None, None),
            Kind::Socket => return Err("tar has no sockets"),
        },
    };
    let mut head = Head { records: Vec::new(), header: Header::new_ustar(), private: 0 };
    let link = link.unwrap_or_default();
    if [path, link].iter().any(|text| std::str::from_utf8(text).is_err()) {
        // Otherwise records are UTF-8, and readers may convert them.
        head.record("hdrcharset", b"BINARY".to_vec());
    }
    head.name("path", path, |header| &mut header.name);
    head.name("linkpath", link, |header| &mut header.linkname);
    let number = |value: u64, most: u64, otherwise: u64| if value > most { otherwise } else { value };
    head.header.set_entry_type(kind);
    head.header.set_mode(meta.mode & 0o7777);
    if size > MAX_NUMBER {
        head.record("size", size.to_string().into_bytes());
    }
    head.header.set_size(number(size, MAX_NUMBER, 0));
    let (uid, gid) = (u64::from(meta.uid), u64::from(meta.gid));
    if uid > MAX_ID {
        head.record("uid", uid.to_string().into_bytes());
    }
    if gid > MAX_ID {
        head.record("gid", gid.to_string().into_bytes());
    }
    head.header.set_uid(number(uid, MAX_ID, NOBODY));
    head.header.set_gid(number(gid, MAX_ID, NOBODY));
    let whole = u64::try_from(meta.mtime.sec).ok().filter(|sec| *sec <= MAX_NUMBER);
    if whole.is_none() || meta.mtime.nsec != 0 {
        head.record("mtime", time(meta.mtime).into_bytes());
    }
    head.header.set_mtime(whole.unwrap_or(0));
    // Some readers want the fields of all entries filled.
    {
        let Rdev(device) = device.unwrap_or_default();
        let too_large = |_| "its device number is too large";
        head.header.set_device_major(rustix::fs::major(device)).map_err(too_large)?;
        head.header.set_device_minor(rustix::fs::minor(device)).map_err(too_large)?;
    }
    // Another name has the attributes of the first.
    if matches!(what, What::Node(_)) {
        head.attributes(&meta.xattrs)?;
    }
    head.header.set_cksum();
    Ok(head)
}

impl Head {
    fn record(&mut self, key: &str, value: Vec<u8>) {
        self.records.push((key.to_owned(), value));
    }

    /// A name in the block if it fits and is plain, else in a record, with what fits of it in the block.
    fn name(&mut self, key: &str, text: &[u8], field: fn(&mut tar::UstarHeader) -> &mut [u8; NAME]) {
        if text.len() > NAME || !text.is_ascii() {
            self.record(key, text.to_vec());
        }
        if let Some(header) = self.header.as_ustar_mut() {
            let fits = text.len().min(NAME);
            field(header)[..fits].copy_from_slice(&text[..fits]);
        }
    }

    fn attributes(&mut self, xattrs: &Xattrs) -> Result<(), &'static str> {
        for (name, value) in xattrs {
            if PRIVATE.iter().any(|prefix| name.starts_with(prefix)) {
                self.private += 1;
                continue;
            }
            let name = std::str::from_utf8(name).map_err(|_| "the name of an attribute is no text")?;
            if name.contains('=') {
                return Err("the name of an attribute has a `=`");
            }
            self.record(&format!("SCHILY.xattr.{name}"), value.clone());
        }
        Ok(())
    }
}

/// Seconds with a fraction; before the epoch it counts down: -1.75 is a quarter after the second -2.
fn time(mtime: Mtime) -> String {
    let Mtime { sec, nsec } = mtime;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match (sec < 0, nsec) {
        (_, 0) => write!(text, "{sec}"),
        (false, nsec) => write!(text, "{sec}.{nsec:09}"),
        (true, nsec) => write!(text, "-{}.{:09}", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
    };
    text.truncate(if text.contains('.') { text.trim_end_matches('0').len() } else { text.len() });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::Content;

    fn of(path: &[u8], meta: &Meta, kind: &Kind) -> Head {
        head(&Entry { path, meta, what: What::Node(kind) }).unwrap_or_else(|what| panic!("{what}"))
    }

    fn keys(head: &Head) -> Vec<&str> {
        head.records.iter().map(|(key, _)| key.as_str()).collect()
    }

    #[test]
    fn what_fits_needs_no_records() {
        let meta = Meta {
            mode: 0o6755,
            uid: 0o777_7777,
            gid: 1,
            mtime: Mtime { sec: 5, nsec: 0 },
            xattrs: Vec::new(),
        };
        let head = of(b"etc/passwd", &meta, &Kind::File(Content { size: 7, chunks: Vec::new() }));
        assert!(head.records.is_empty());
        let header = &head.header;
        assert_eq!(
            (header.mode().unwrap(), header.uid().unwrap(), header.size().unwrap()),
            (0o6755, 0o777_7777, 7)
        );
        assert_eq!(header.path_bytes().as_ref(), b"etc/passwd");
    }

    #[test]
    fn what_does_not_fit_has_a_record() {
        let meta = Meta {
            uid: 4_000_000_000,
            gid: 3_000_000,
            mtime: Mtime { sec: -2, nsec: 250_000_000 },
            ..Meta::default()
        };
        let size = MAX_NUMBER + 1;
        let head = of(&[b'n'; 101], &meta, &Kind::File(Content { size, chunks: Vec::new() }));
        assert_eq!(keys(&head), ["path", "size", "uid", "gid", "mtime"]);
        assert_eq!((head.header.size().unwrap(), head.header.uid().unwrap()), (0, NOBODY));
        assert_eq!(head.records[4].1, b"-1.75");
        let head = of(b"not\xffutf8", &Meta::default(), &Kind::Symlink("ä".as_bytes().into()));
        assert_eq!(keys(&head), ["hdrcharset", "path", "linkpath"]);
    }

    #[test]
    fn times_are_written_as_go_reads_them() {
        let of = |sec, nsec| time(Mtime { sec, nsec });
        assert_eq!(
            (of(0, 0), of(5, 1), of(5, 500_000_000)),
            ("0".into(), "5.000000001".into(), "5.5".into())
        );
        assert_eq!((of(-1, 0), of(-1, 999_999_999)), ("-1".into(), "-0.000000001".into()));
        assert_eq!(of(-1_000_000_000, 999_999_999), "-999999999.000000001");
        assert_eq!((of(10, 0), of(i64::MIN, 0)), ("10".into(), i64::MIN.to_string()));
    }

    #[test]
    fn attributes_are_records_and_those_of_overlayfs_are_left_out() {
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let xattrs = vec![
            pair("security.capability", b"\0\n="),
            pair("trusted.overlay.opaque", b"y"),
            pair("user.a", b""),
            pair("user.overlay.x", b"1"),
        ];
        let meta = Meta { xattrs, ..Meta::default() };
        let head = of(b"f", &meta, &Kind::Fifo);
        assert_eq!(
            (keys(&head), head.private),
            (vec!["SCHILY.xattr.security.capability", "SCHILY.xattr.user.a"], 2)
        );
        let bad = Meta { xattrs: vec![pair("user.a=b", b"")], ..Meta::default() };
        assert!(super::head(&Entry { path: b"f", meta: &bad, what: What::Node(&Kind::Fifo) }).is_err());
        let link = super::head(&Entry { path: b"l", meta: &meta, what: What::Link(b"f") })
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(link.records.is_empty() && link.header.entry_type() == EntryType::Link);
    }
}
