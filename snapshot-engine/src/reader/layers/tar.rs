//! A layer's tar, entry by entry (pax, ustar, and GNU's long names; image-spec, `layer.md`).
//!
//! ```text
//!   x, L, K   a block of 512 bytes, then records or a name, 1 MiB at most: about the entry that follows
//!   entry     a block of 512 bytes, its content, zeros up to the next block
//!   end       two blocks of zeros, or the end of the stream
//! ```
//!
//! The fields of a block are read by the `tar` crate. The blocks are followed here: its iterator keeps records of any length in memory and takes a
//! newline within an attribute for the end of a record; without its handling of records it knows no size above 8 GiB. Where readers differ, what
//! is done is what Go's `archive/tar` does, which nearly every runtime unpacks with.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::model::tree::{Meta, Mtime, NAME_MAX, Rdev};

const BLOCK: usize = 512;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// The most bytes of records or of a long name (`maxSpecialFileSize` in Go's `archive/tar`).
const MAX_RECORDS: u64 = 1 << 20;
/// The longest path that is read: sixteen times what a system call takes.
const MAX_PATH: usize = 64 << 10;
/// The longest value of an attribute (`XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 64 << 10;
/// The namespaces of attributes that Linux has. Others, such as those of macOS, cannot be set.
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
/// Overlayfs' own attributes: below an overlay they would be taken for marks of its own.
const PRIVATE: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Why nothing more of a stream can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Its bytes cannot be had.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Its bytes are no tar.
    #[error("it is no tar: {0}")]
    Form(&'static str),
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    Dir,
    /// A regular file, with its length. Its content is read from the [`Tar`].
    File(u64),
    Symlink(Box<[u8]>),
    /// Another name of what has this one.
    Link(Box<[u8]>),
    Char(Rdev),
    Block(Rdev),
    Fifo,
}

/// An entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it is written.
    pub(super) path: Box<[u8]>,
    pub(super) what: What,
    pub(super) meta: Meta,
}

/// An entry that means nothing here, which does not keep the next ones from being read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) path: Box<[u8]>,
    pub(super) what: &'static str,
}

/// A stream. Reading from it gives the content of the entry that was returned last.
pub(super) struct Tar<R> {
    from: R,
    /// Bytes of content that have not been read.
    content: u64,
    /// Zeros behind it.
    padding: u64,
}

impl<R: Read> Tar<R> {
    pub(super) fn new(from: R) -> Tar<R> {
        Tar { from, content: 0, padding: 0 }
    }

    /// The next entry.
    ///
    /// # Errors
    /// [`Broken`]: the stream is not to be used any further.
    pub(super) fn entry(&mut self) -> Result<Option<Result<Entry, Unfit>>, Broken> {
        self.skip()?;
        let mut ahead = Ahead::default();
        loop {
            let Some(block) = self.block()? else { return ahead.end() };
            if block == ZEROS {
                return match self.block()? {
                    Some(next) if next != ZEROS => Err(Broken::Form("it goes on after a block of zeros")),
                    _ => ahead.end(),
                };
            }
            let header = Header::from_byte_slice(&block);
            if !is_sound(header) {
                return Err(Broken::Form("the checksum of a header is wrong"));
            }
            match header.entry_type() {
                EntryType::XHeader => ahead.records = Some(Records::read(&self.small(header)?)?),
                EntryType::GNULongName => ahead.path = Some(until_nul(&self.small(header)?)),
                EntryType::GNULongLink => ahead.link = Some(until_nul(&self.small(header)?)),
                // Of no consequence to a runtime (git writes one with a comment).
                EntryType::XGlobalHeader => {
                    self.expect(size_of(header)?)?;
                    self.skip()?;
                }
                EntryType::GNUSparse => return Err(Broken::Form("it has a sparse entry of GNU's old form")),
                _ => {
                    let (size, entry) = ahead.entry(header)?;
                    self.expect(size)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// A block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Broken> {
        let mut block = ZEROS;
        let mut have = 0;
        while have < BLOCK {
            match self.from.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(Broken::Form("it is cut off within a header")),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(block))
    }

    fn expect(&mut self, size: u64) -> Result<(), Broken> {
        let end = size.checked_next_multiple_of(BLOCK as u64).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or(Broken::Form("an entry is larger than any file"))?;
        (self.content, self.padding) = (size, end - size);
        Ok(())
    }

    /// Goes to the end of the entry.
    fn skip(&mut self) -> Result<(), Broken> {
        let left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        match io::copy(&mut self.from.by_ref().take(left), &mut io::sink())? {
            n if n == left => Ok(()),
            _ => Err(Broken::Form("it is cut off within an entry")),
        }
    }

    /// What belongs to the next entry.
    fn small(&mut self, header: &Header) -> Result<Vec<u8>, Broken> {
        let size = size_of(header)?;
        if size > MAX_RECORDS {
            return Err(Broken::Form("the records of an entry are longer than 1 MiB"));
        }
        self.expect(size)?;
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        self.skip()?;
        Ok(bytes)
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(out.len());
        let n = self.from.read(&mut out[..most])?;
        self.content -= n as u64;
        Ok(n)
    }
}

/// What was said of the next entry.
#[derive(Default)]
struct Ahead {
    records: Option<Records>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Ahead {
    fn end(&self) -> Result<Option<Result<Entry, Unfit>>, Broken> {
        match self {
            Ahead { records: None, path: None, link: None } => Ok(None),
            _ => Err(Broken::Form("it ends before the entry that its last records are about")),
        }
    }

    /// The entry, and the length of what comes behind its block.
    fn entry(self, header: &Header) -> Result<(u64, Result<Entry, Unfit>), Broken> {
        let Records { path, link, size, uid, gid, mtime, xattrs, unfit } = self.records.unwrap_or_default();
        let path = self.path.or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self.link.or(link).or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let link = link.unwrap_or_default();
        let old = header.as_old();
        let kind = match header.entry_type() {
            // As it was before there was a type for directories.
            EntryType::Regular if old.linkflag == [0] && path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        // These have no content, whatever the field says.
        let only_header = matches!(
            kind,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo
        );
        let size = match size {
            _ if only_header => 0,
            Some(size) => size,
            None => size_of(header)?,
        };
        let owner = |record: Option<u64>, field: &[u8], parsed| match record {
            Some(id) => Ok(id),
            None => number(field, parsed),
        };
        let (uid, gid) = (owner(uid, &old.uid, header.uid())?, owner(gid, &old.gid, header.gid())?);
        let mode = number(&old.mode, header.mode().map(u64::from))?;
        // In base 256 it may be negative, and the bits are those of an `i64`.
        let sec = || number(&old.mtime, header.mtime()).map(|sec| Mtime { sec: sec as i64, nsec: 0 });
        let mtime = mtime.map_or_else(sec, Ok)?;

        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok(Rdev(rustix::fs::makedev(major, minor))),
            _ => Err("its device number is none"),
        };
        let what = || {
            let (Ok(uid), Ok(gid)) = (u32::try_from(uid), u32::try_from(gid)) else {
                return Err("its owner has more than 32 bits");
            };
            if let Some(unfit) = unfit {
                return Err(unfit);
            }
            if path.len() > MAX_PATH || link.len() > MAX_PATH {
                return Err("its path is longer than 64 KiB");
            }
            let what = match kind {
                EntryType::Directory => What::Dir,
                EntryType::Regular | EntryType::Continuous => What::File(size),
                EntryType::Symlink if link.is_empty() || link.contains(&0) => {
                    return Err("the link leads nowhere");
                }
                EntryType::Symlink => What::Symlink(link.as_slice().into()),
                EntryType::Link => What::Link(link.as_slice().into()),
                EntryType::Char => What::Char(device()?),
                EntryType::Block => What::Block(device()?),
                EntryType::Fifo => What::Fifo,
                _ => return Err("it is of a kind that images do not have"),
            };
            Ok((uid, gid, what))
        };
        let entry = match what() {
            Ok((uid, gid, what)) => {
                let meta = Meta {
                    mode: mode as u32 & 0o7777,
                    uid,
                    gid,
                    mtime,
                    xattrs: xattrs.into_iter().collect(),
                };
                Ok(Entry { path: path.into(), what, meta })
            }
            Err(what) => Err(Unfit { path: path.into(), what }),
        };
        Ok((size, entry))
    }
}

/// The pax records of an entry.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Mtime>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Why the entry cannot be understood.
    unfit: Option<&'static str>,
}

impl Records {
    fn read(mut bytes: &[u8]) -> Result<Records, Broken> {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let ((key, value), rest) = record(bytes).ok_or(Broken::Form("a record is malformed"))?;
            records.take(key, value).ok_or(Broken::Form("a number in a record is none"))?;
            bytes = rest;
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // A record without a value takes back what was said before.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let whole = || match value {
            [] => Some(None),
            digits => std::str::from_utf8(digits).ok()?.parse().ok().map(Some),
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = whole()?,
            b"uid" => self.uid = whole()?,
            b"gid" => self.gid = whole()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.unfit = Some("it is sparse, in GNU's form"),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(name, value);
                }
            }
        }
        Some(())
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) {
        let begins = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if !begins(&NAMESPACES) || begins(&PRIVATE) {
            return;
        }
        if name.len() > NAME_MAX || name.contains(&0) || value.len() > MAX_VALUE {
            self.unfit = Some("it has an attribute that no file can have");
            return;
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// `LENGTH KEY=VALUE\n`, and what comes behind it. The length counts all of it.
fn record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(8).position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    Some(((&pair[..equals], &pair[equals + 1..]), rest))
}

/// Seconds with a fraction, of which nanoseconds are kept.
fn time(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nsec = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nsec = nsec.fold(0, |nsec, digit| nsec * 10 + u32::from(digit - b'0'));
    match (whole.starts_with('-'), nsec) {
        (true, 1..) => Some(Mtime { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec }),
        _ => Some(Mtime { sec, nsec }),
    }
}

/// A field of a header. An empty one is 0.
fn number(field: &[u8], parsed: io::Result<u64>) -> Result<u64, Broken> {
    match parsed {
        Err(_) if field.iter().all(|b| matches!(b, 0 | b' ')) => Ok(0),
        parsed => parsed.map_err(|_| Broken::Form("a number in a header is none")),
    }
}

fn size_of(header: &Header) -> Result<u64, Broken> {
    number(&header.as_old().size, header.entry_size())
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// Whether the checksum is that of the block: the sum of its bytes, of which some have taken the eighth bit for a sign.
fn is_sound(header: &Header) -> bool {
    let own = 148..156;
    let bytes = || header.as_bytes().iter().enumerate();
    let value = |(at, byte): (usize, &u8)| if own.contains(&at) { b' ' } else { *byte };
    let unsigned: i64 = bytes().map(value).map(i64::from).sum();
    let signed: i64 = bytes().map(value).map(|byte| i64::from(byte as i8)).sum();
    header.cksum().is_ok_and(|sum| [unsigned, signed].contains(&i64::from(sum)))
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
