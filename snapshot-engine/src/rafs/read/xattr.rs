//! Extended attributes behind an inode of version 6. The drawing is in `rafs/xattr.rs`.

use crate::model::tree::Xattrs;

use super::super::layout::{XattrEntry, XattrHeader};
use super::super::xattr::PREFIXES;
use super::bytes::Bytes;

/// Bytes of attributes from `i_xattr_icount`.
pub(super) fn size(count: u16) -> u64 {
    match u64::from(count).checked_sub(1) {
        None => 0,
        Some(words) => size_of::<XattrHeader>() as u64 + words * 4,
    }
}

/// The attributes of these bytes, sorted by name; `None` when they are none.
pub(super) fn decode(bytes: &[u8]) -> Option<Xattrs> {
    let mut all = Xattrs::new();
    if bytes.is_empty() {
        return Some(all);
    }
    let bytes = Bytes(bytes);
    let header: &XattrHeader = bytes.one("", 0).ok()?;
    // Shared attributes are kept elsewhere; RAFS has none.
    if header.shared_count != 0 {
        return None;
    }
    let mut at = size_of::<XattrHeader>() as u64;
    while at < bytes.len() {
        let entry: &XattrEntry = bytes.one("", at).ok()?;
        let name_at = at + size_of::<XattrEntry>() as u64;
        let value_at = name_at + u64::from(entry.name_len);
        let rest = bytes.range("", name_at, u64::from(entry.name_len)).ok()?;
        let value = bytes.range("", value_at, u64::from(entry.value_size.get())).ok()?;
        let (prefix, _) = PREFIXES.iter().find(|(_, index)| *index == entry.name_index)?;
        // The ACLs are whole names, the others are true prefixes.
        if prefix.ends_with(b".") == rest.is_empty() || rest.contains(&0) {
            return None;
        }
        all.push(([prefix, rest].concat(), value.to_vec()));
        at = (value_at + value.len() as u64).next_multiple_of(4);
    }
    all.sort();
    let twice = all.windows(2).any(|pair| pair[0].0 == pair[1].0);
    (!twice).then_some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rafs::xattr::{count, encode};

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::btree_map("[a-z.]{1,30}", prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut all: Xattrs = values.into_iter().map(|(k, v)| (format!("user.{k}").into_bytes(), v)).collect();
            all.push((b"system.posix_acl_access".to_vec(), vec![2]));
            all.sort();
            let bytes = encode(&all).unwrap();
            prop_assert_eq!(size(count(bytes.len()).unwrap()), bytes.len() as u64);
            prop_assert_eq!(decode(&bytes), Some(all));
        }

        #[test]
        fn anything_ends(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode(&bytes);
        }
    }
}
