//! Directories: blocks of entries, then their names (`struct erofs_dirent`, fs/erofs/dir.c `erofs_fill_dentries`).
//!
//! ```text
//! block: | head | head | head | name name name 0 ... |     sorted by name, "." and ".." among them
//! ```
//!
//! The last block is as long as its entries; an entry that would not fit begins the next block.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use crate::model::chunk::BLOCK;

use super::layout::DirentHead;

const HEAD: usize = size_of::<DirentHead>();
const FULL: usize = BLOCK as usize;

/// An entry to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Bytes a directory with these names takes. Names must be sorted and include `.` and `..`.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut full = 0u64;
    let mut used = 0;
    for name in names {
        let need = HEAD + name.len();
        if used + need > FULL {
            full += BLOCK;
            used = 0;
        }
        used += need;
    }
    full + used as u64
}

/// The directory's bytes.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fit = rest
            .iter()
            .take_while(|e| {
                used += HEAD + e.name.len();
                used <= FULL
            })
            .count()
            // A name has at most 255 bytes, so that one always fits.
            .max(1);
        let (block, more) = rest.split_at(fit);
        let mut name_offset = HEAD * block.len();
        for entry in block {
            let head = DirentHead {
                nid: U64::new(entry.nid),
                name_offset: U16::new(name_offset as u16),
                file_type: entry.file_type,
                reserved: 0,
            };
            out.extend_from_slice(head.as_bytes());
            name_offset += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if !more.is_empty() {
            out.resize(out.len().next_multiple_of(FULL), 0);
        }
        rest = more;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use zerocopy::FromBytes;

    /// Reads blocks as `erofs_fill_dentries` does.
    fn decode(bytes: &[u8]) -> Vec<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        for block in bytes.chunks(FULL) {
            let heads = |i: usize| DirentHead::ref_from_bytes(&block[i * HEAD..][..HEAD]).unwrap();
            let count = usize::from(heads(0).name_offset.get()) / HEAD;
            for i in 0..count {
                let start = usize::from(heads(i).name_offset.get());
                let end =
                    if i + 1 < count { usize::from(heads(i + 1).name_offset.get()) } else { block.len() };
                let name = &block[start..end];
                // The last name of a block ends at its padding.
                let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
                all.push((name[..len].to_vec(), heads(i).nid.get()));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn entries_round_trip(names in prop::collection::btree_set(prop::collection::vec(1u8..=255, 1..=255), 1..200)) {
            let names: BTreeSet<Vec<u8>> = names;
            let entries: Vec<_> = names.iter().enumerate()
                .map(|(i, name)| Entry { name, nid: i as u64, file_type: 1 }).collect();
            let bytes = encode(&entries);
            prop_assert_eq!(bytes.len() as u64, size(names.iter().map(Vec::as_slice)));
            let want: Vec<_> = names.iter().enumerate().map(|(i, n)| (n.clone(), i as u64)).collect();
            prop_assert_eq!(decode(&bytes), want);
        }
    }
}
