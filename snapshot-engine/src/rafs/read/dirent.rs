//! Blocks of directory entries, read as `erofs_fill_dentries` does (fs/erofs/dir.c). The drawing is in `rafs/dirent.rs`.

use crate::model::chunk::BLOCK;
use crate::model::tree::NAME_MAX;

use super::super::dirent::Entry;
use super::super::layout::DirentHead;
use super::bytes::Bytes;

const HEAD: usize = size_of::<DirentHead>();

/// The entries of a directory's bytes, in their order; an error ends them.
pub(super) fn entries(data: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, &'static str>> {
    let mut failed = false;
    data.chunks(BLOCK as usize)
        .flat_map(|block| {
            let count = count(block);
            let bad = count.is_none().then_some(Err("the first entry of a block of names"));
            (0..count.unwrap_or(0)).map(move |i| entry(block, i, count.unwrap_or(0))).chain(bad)
        })
        .take_while(move |entry| !std::mem::replace(&mut failed, entry.is_err()))
}

/// The first name begins where the heads end.
fn count(block: &[u8]) -> Option<usize> {
    let first: &DirentHead = Bytes(block).one("", 0).ok()?;
    let heads = usize::from(first.name_offset.get());
    (heads >= HEAD && heads.is_multiple_of(HEAD) && heads <= block.len()).then_some(heads / HEAD)
}

fn entry(block: &[u8], index: usize, count: usize) -> Result<Entry<'_>, &'static str> {
    let bad = "the place of a name";
    let head = |i: usize| Bytes(block).one::<DirentHead>("", (i * HEAD) as u64).map_err(|_| bad);
    let this = head(index)?;
    let start = usize::from(this.name_offset.get());
    let last = index + 1 == count;
    let end = if last { block.len() } else { usize::from(head(index + 1)?.name_offset.get()) };
    let mut name = block.get(start..end).ok_or(bad)?;
    if last {
        // The last name of a block ends at its padding.
        name = name.split(|b| *b == 0).next().unwrap_or_default();
    }
    if name.is_empty() || name.len() > NAME_MAX || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err("a name that cannot be one");
    }
    Ok(Entry { name, nid: this.nid.get(), file_type: this.file_type })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;
    use crate::rafs::dirent::encode;

    proptest! {
        #[test]
        fn what_is_written_is_read(names in prop::collection::btree_set(
            prop::collection::vec(prop_oneof![1u8..b'/', b'0'..=255], 1..=255), 1..200)) {
            let names: BTreeSet<Vec<u8>> = names;
            let all: Vec<_> = names.iter().enumerate()
                .map(|(i, name)| Entry { name, nid: i as u64, file_type: 1 }).collect();
            let bytes = encode(&all);
            let read: Vec<_> = entries(&bytes).map(|e| e.unwrap()).map(|e| (e.name.to_vec(), e.nid)).collect();
            let want: Vec<_> = all.iter().map(|e| (e.name.to_vec(), e.nid)).collect();
            prop_assert_eq!(read, want);
        }

        #[test]
        fn anything_ends(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(entries(&bytes).count() <= bytes.len() / HEAD + 3);
        }
    }
}
