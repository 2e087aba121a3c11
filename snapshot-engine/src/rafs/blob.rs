//! What follows the chunk data in a blob (builder/src/core/blob.rs, `Blob::dump_meta_data`).
//!
//! ```text
//! | chunk data | ChunkInfoV1 * n, in the order of the slots | BlobHeader, 4096 bytes |
//!              ^ data_size                                                           ^ end of file
//! ```
//!
//! The chunk information is stored raw whatever the chunks' compression: 16 bytes for up to 1 MiB.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::model::chunk::ChunkInfo;

use super::layout::{BLOB_FEATURES, BLOB_MAGIC, BlobHeader, ChunkInfoV1};

/// Chunk information and header of a blob with these chunks, whose data ends at `data_size`.
#[must_use]
pub fn tail(chunks: &[ChunkInfo], data_size: u64) -> Vec<u8> {
    let info_size = info_size(chunks.len());
    let mut out = Vec::with_capacity(info_size as usize + size_of::<BlobHeader>());
    for chunk in chunks {
        out.extend_from_slice(encode(chunk).as_bytes());
    }
    let header = BlobHeader {
        magic: U32::new(BLOB_MAGIC),
        features: U32::new(BLOB_FEATURES),
        ci_compressor: U32::ZERO,
        ci_entries: U32::new(chunks.len() as u32),
        ci_offset: U64::new(data_size),
        ci_compressed_size: U64::new(info_size),
        ci_uncompressed_size: U64::new(info_size),
        zran_offset: U64::ZERO,
        zran_size: U64::ZERO,
        zran_count: U32::ZERO,
        reserved: [0; 4032],
        magic2: U32::new(BLOB_MAGIC),
    };
    out.extend_from_slice(header.as_bytes());
    out
}

/// Bytes of the chunk information of so many chunks.
#[must_use]
pub fn info_size(chunks: usize) -> u64 {
    (chunks * size_of::<ChunkInfoV1>()) as u64
}

/// Sizes are at most 16 MiB (24 bits after the -1), offsets below 2^40, slots below 2^44: see `BlobChunkInfoV1Ondisk`.
fn encode(chunk: &ChunkInfo) -> ChunkInfoV1 {
    const LOW: u64 = 0xf_ffff;
    let size = u64::from(chunk.size.saturating_sub(1));
    let stored = u64::from(chunk.stored.saturating_sub(1));
    ChunkInfoV1 {
        uncompressed: U64::new((size & LOW) << 44 | chunk.slot & 0xfff_ffff_f000 | (size >> 20) << 8),
        compressed: U64::new(
            (stored & LOW) << 44 | (stored >> 20 & 0xf) << 40 | chunk.offset & 0xff_ffff_ffff,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunk::ChunkDigest;

    /// As `BlobChunkInfoV1Ondisk::{uncompressed,compressed}_{size,offset}` take the words apart.
    fn decode(c: ChunkInfoV1) -> (u64, u64, u64, u64) {
        let (u, c) = (c.uncompressed.get(), c.compressed.get());
        let size = (u >> 44) + (u >> 8 & 0xf) * (1 << 20) + 1;
        let stored = (c >> 44) + (c >> 40 & 0xf) * (1 << 20) + 1;
        (size, u & 0xfff_ffff_f000, stored, c & 0xff_ffff_ffff)
    }

    #[test]
    fn chunk_information_round_trips() {
        for (size, stored, offset, slot) in [
            (1, 1, 0, 0),
            (1 << 20, 12345, 77, 4096),
            (16 << 20, (16 << 20) - 1, (1 << 40) - 1, (1 << 44) - 4096),
            ((1 << 20) + 1, 1 << 20, 1 << 39, 1 << 43),
        ] {
            let info = ChunkInfo { digest: ChunkDigest([0; 32]), size, stored, offset, slot };
            assert_eq!(decode(encode(&info)), (u64::from(size), slot, u64::from(stored), offset));
        }
    }

    #[test]
    fn the_header_is_the_last_block() {
        let info = ChunkInfo { digest: ChunkDigest([0; 32]), size: 9, stored: 9, offset: 0, slot: 0 };
        let tail = tail(&[info; 3], 8192);
        assert_eq!(tail.len(), 48 + 4096);
        assert_eq!(tail[48..52], BLOB_MAGIC.to_le_bytes());
        assert_eq!(tail[48 + 4092..], BLOB_MAGIC.to_le_bytes());
        assert_eq!(tail[64..72], 8192u64.to_le_bytes());
    }
}
