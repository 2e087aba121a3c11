//! A dm-verity hash tree behind the data it protects, in the form of `veritysetup` (cryptsetup, lib/verity/verity.c and verity_hash.c;
//! Documentation/admin-guide/device-mapper/verity.rst).
//!
//! ```text
//! | data | superblock, 512 in a block | root's block | ... | level 1 | level 0: sha256 of each data block, 128 to a block |
//! ```
//!
//! There is no salt, and the UUID is made of the root hash: equal images have equal bytes. A salt hinders work done in advance
//! against one hash, which SHA-256 has no need of.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

const BLOCK: u64 = 4096;
/// Hashes in a block.
const FAN: u64 = BLOCK / 32;

/// The superblock (`struct verity_sb`).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Superblock {
    signature: [u8; 8],
    version: U32,
    hash_type: U32,
    uuid: [u8; 16],
    algorithm: [u8; 32],
    data_block_size: U32,
    hash_block_size: U32,
    data_blocks: U64,
    salt_size: U16,
    padding: [u8; 6],
    salt: [u8; 256],
    padding2: [u8; 168],
}

const _: () = assert!(size_of::<Superblock>() == 512);

/// A hash tree that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verity {
    /// What stands for all data: keep it where nobody can change it.
    pub root_hash: String,
    /// Where the superblock is: `--hash-offset` of `veritysetup`.
    pub hash_offset: u64,
    /// Bytes of superblock and tree.
    pub hash_bytes: u64,
}

/// Appends the tree to a file of `len` bytes, a multiple of 4096 and not 0.
pub(super) fn append(file: &File, len: u64) -> io::Result<Verity> {
    let blocks = len / BLOCK;
    let sizes = levels(blocks);
    let total: u64 = sizes.iter().sum();
    let hash_bytes = (1 + total) * BLOCK;
    file.set_len(len + hash_bytes)?;
    // The lowest level is the last in the file.
    let mut at = len + hash_bytes;
    let (mut from, mut count) = (0, blocks);
    for size in &sizes {
        at -= size * BLOCK;
        level(file, from, count, at)?;
        (from, count) = (at, *size);
    }
    let mut top = [0; BLOCK as usize];
    file.read_exact_at(&mut top, from)?;
    let root: [u8; 32] = Sha256::digest(top).into();
    let mut superblock = Superblock {
        signature: *b"verity\0\0",
        version: U32::new(1),
        hash_type: U32::new(1),
        uuid: [0; 16],
        algorithm: [0; 32],
        data_block_size: U32::new(BLOCK as u32),
        hash_block_size: U32::new(BLOCK as u32),
        data_blocks: U64::new(blocks),
        salt_size: U16::ZERO,
        padding: [0; 6],
        salt: [0; 256],
        padding2: [0; 168],
    };
    superblock.uuid.copy_from_slice(&root[..16]);
    superblock.algorithm[..6].copy_from_slice(b"sha256");
    file.write_all_at(superblock.as_bytes(), len)?;
    Ok(Verity { root_hash: hex::encode(root), hash_offset: len, hash_bytes })
}

/// Blocks of each level, the lowest first; the last has one.
fn levels(blocks: u64) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut left = blocks;
    while left > 1 {
        left = left.div_ceil(FAN);
        sizes.push(left);
    }
    sizes
}

/// Hashes `count` blocks from `from` on into blocks from `to` on.
fn level(file: &File, from: u64, count: u64, to: u64) -> io::Result<()> {
    (0..count.div_ceil(FAN)).into_par_iter().try_for_each_init(
        || vec![0; (FAN * BLOCK) as usize],
        |buffer, group| {
            let blocks = FAN.min(count - group * FAN);
            let data = &mut buffer[..(blocks * BLOCK) as usize];
            file.read_exact_at(data, from + group * FAN * BLOCK)?;
            let mut hashes = [0; BLOCK as usize];
            for (block, hash) in data.chunks(BLOCK as usize).zip(hashes.chunks_mut(32)) {
                hash.copy_from_slice(&Sha256::digest(block));
            }
            file.write_all_at(&hashes, to + group * BLOCK)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_shrink_to_one_block() {
        assert!(levels(1).is_empty());
        assert_eq!(levels(2), [1]);
        assert_eq!(levels(128), [1]);
        assert_eq!(levels(129), [2, 1]);
        assert_eq!(levels(128 * 128 + 1), [129, 2, 1]);
    }

    #[test]
    fn every_block_counts() {
        let file = tempfile::tempfile().unwrap();
        let len = 300 * BLOCK;
        let root = |change: Option<u64>| {
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
            if let Some(at) = change {
                file.write_all_at(&[1], at).unwrap();
            }
            append(&file, len).unwrap()
        };
        let zeros = root(None);
        assert_eq!(zeros.hash_bytes, (1 + 1 + 3) * BLOCK);
        assert_eq!(file.metadata().unwrap().len(), len + zeros.hash_bytes);
        for at in [0, 4096 * 127 + 5, len - 1] {
            assert_ne!(root(Some(at)).root_hash, zeros.root_hash);
        }
        assert_eq!(root(None), zeros);
    }
}
