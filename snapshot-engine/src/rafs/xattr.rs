//! Extended attributes, inline behind their inode.
//!
//! ```text
//! | header, 12 bytes | { name_len, prefix number, value_len, name without prefix, value } padded to 4 | ...
//! ```

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::model::tree::Xattrs;

use super::layout::{XattrEntry, XattrHeader};

/// `EROFS_XATTR_INDEX_*`. A prefix that is a whole name comes with an empty rest.
pub(super) const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why attributes cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// No number for this name, or a part of it that is too long.
    Name(Vec<u8>),
    /// Too many bytes in all.
    Size,
}

/// The attributes as they lie behind the inode; empty if there are none.
pub(super) fn encode(xattrs: &Xattrs) -> Result<Vec<u8>, Bad> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = XattrHeader::default().as_bytes().to_vec();
    for (name, value) in xattrs {
        let bad = || Bad::Name(name.clone());
        let (rest, index) = PREFIXES
            .iter()
            .find_map(|(prefix, index)| {
                let rest = name.strip_prefix(*prefix)?;
                // The ACLs are whole names, the others are true prefixes.
                (prefix.ends_with(b".") != rest.is_empty()).then_some((rest, *index))
            })
            .ok_or_else(bad)?;
        let entry = XattrEntry {
            name_len: u8::try_from(rest.len()).map_err(|_| bad())?,
            name_index: index,
            value_size: U16::new(u16::try_from(value.len()).map_err(|_| bad())?),
        };
        out.extend_from_slice(entry.as_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    if count(out.len()).is_none() { Err(Bad::Size) } else { Ok(out) }
}

/// `i_xattr_icount` of so many bytes; `None` if it does not fit.
pub(super) fn count(bytes: usize) -> Option<u16> {
    match bytes.checked_sub(size_of::<XattrHeader>()) {
        None => Some(0),
        Some(entries) => u16::try_from(entries / 4 + 1).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8]) -> Xattrs {
        vec![(name.as_bytes().to_vec(), value.to_vec())]
    }

    #[test]
    fn prefixes_become_numbers() {
        let got = encode(&one("user.a", b"xyz")).unwrap();
        assert_eq!(got[12..], [1, 1, 3, 0, b'a', b'x', b'y', b'z']);
        assert_eq!(count(got.len()), Some(3));
        let got = encode(&one("system.posix_acl_access", b"x")).unwrap();
        assert_eq!(got[12..], [0, 2, 1, 0, b'x', 0, 0, 0]);
        assert_eq!(encode(&Vec::new()), Ok(Vec::new()));
        assert_eq!(count(0), Some(0));
    }

    #[test]
    fn what_has_no_number_is_refused() {
        for name in ["system.nfs4_acl", "user.", "btrfs.compression", "", "system.posix_acl_accessx"] {
            assert_eq!(encode(&one(name, b"")), Err(Bad::Name(name.as_bytes().to_vec())), "{name}");
        }
        assert!(encode(&one("user.a", &vec![0; 65535])).is_ok());
        assert!(encode(&one("user.a", &vec![0; 65536])).is_err());
        let many: Xattrs = (0..5).map(|i| (format!("user.{i}").into_bytes(), vec![0; 65535])).collect();
        assert_eq!(encode(&many), Err(Bad::Size));
    }
}
