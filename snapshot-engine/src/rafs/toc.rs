//! A blob that carries its own metadata, and the table of contents at its end.
//!
//! ```text
//! | data | T | chunk information, header | T | digests | T | bootstrap | T | contents | T |
//!          image.blob                 blob.meta     blob.digest   image.boot   rafs.blob.toc
//! ```
//!
//! T is a tar header **behind** what it describes, without padding between: readers go from the end. The contents are
//! [`TocEntry`]s. Sources: `storage/src/meta/toc.rs` and `builder/src/core/{blob,context}.rs` of nydus.

use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Chunk data.
pub const IMAGE_BLOB: &str = "image.blob";
/// Chunk information; in the tar header's sense with the header behind it.
pub const BLOB_META: &str = "blob.meta";
/// The blob's header, 4096 bytes.
pub const BLOB_META_HEADER: &str = "blob.meta.header";
/// Digests of the chunks in the order of their indexes, 32 bytes each.
pub const BLOB_DIGEST: &str = "blob.digest";
/// The bootstrap.
pub const IMAGE_BOOT: &str = "image.boot";
/// The table of contents itself.
pub const TOC: &str = "rafs.blob.toc";
/// Readers look for the whole table, its tar header included, in the last bytes of the blob.
pub const TOC_WINDOW: usize = 4096;

/// Bits of [`TocEntry::flags`] (`TocEntryFlags`): exactly one.
pub mod flags {
    /// Stored raw.
    pub const NONE: u32 = 1;
    /// One zstd frame.
    pub const ZSTD: u32 = 2;
    /// An LZ4 block; no reader takes it.
    pub const LZ4_BLOCK: u32 = 4;
}

const _: () = {
    assert!(size_of::<TocEntry>() == 128);
    assert!(size_of::<TarHeader>() == 512);
};

/// An entry of the table of contents (`TocEntry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TocEntry {
    /// [`flags`].
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
    /// Padded with NUL.
    pub name: [u8; 16],
    /// SHA-256 of the uncompressed bytes; of `image.blob` that of the stored ones.
    pub uncompressed_digest: [u8; 32],
    /// Where it begins in the blob.
    pub compressed_offset: U64,
    /// Bytes in the blob.
    pub compressed_size: U64,
    /// Bytes uncompressed; of `image.blob` its uncompressed address space.
    pub uncompressed_size: U64,
    /// Zero.
    pub reserved2: [u8; 48],
}

/// A tar header in the GNU form (tar/src/tar.h, `struct oldgnu_header`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of tar.h under their own names")]
pub struct TarHeader {
    pub name: [u8; 100],
    pub mode: [u8; 8],
    pub uid: [u8; 8],
    pub gid: [u8; 8],
    pub size: [u8; 12],
    pub mtime: [u8; 12],
    pub checksum: [u8; 8],
    pub typeflag: u8,
    pub linkname: [u8; 100],
    pub magic: [u8; 8],
    pub uname: [u8; 32],
    pub gname: [u8; 32],
    pub rest: [u8; 183],
}

/// The tar header of a part, as it lies behind it: as `nydus-image` writes it, with no time, owner or mode.
#[must_use]
pub fn tar_header(name: &str, size: u64) -> [u8; size_of::<TarHeader>()] {
    let mut header = tar::Header::new_gnu();
    // The names are those above; all are short.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

/// An entry about bytes that are stored as they are.
pub(super) fn entry(name: &str, offset: u64, bytes: &[u8]) -> TocEntry {
    let size = bytes.len() as u64;
    packed_entry(name, flags::NONE, Sha256::digest(bytes).into(), offset, size, size)
}

/// Any entry.
pub(super) fn packed_entry(
    name: &str,
    flags: u32,
    digest: [u8; 32],
    offset: u64,
    stored: u64,
    size: u64,
) -> TocEntry {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    TocEntry {
        flags: U32::new(flags),
        reserved: U32::ZERO,
        name: padded,
        uncompressed_digest: digest,
        compressed_offset: U64::new(offset),
        compressed_size: U64::new(stored),
        uncompressed_size: U64::new(size),
        reserved2: [0; 48],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_header_is_that_of_nydus_image() {
        let header = tar_header(TOC, 640);
        let header = TarHeader::ref_from_bytes(&header).unwrap();
        assert!(header.name.starts_with(b"rafs.blob.toc\0"));
        assert_eq!((&header.size, &header.mtime), (b"00000001200\0", b"00000000000\0"));
        // Taken from a blob of nydus-image 2.2.0.
        assert_eq!((&header.checksum, header.typeflag), (b"0006257\0", b'0'));
        assert_eq!((&header.magic, header.mode), (b"ustar  \0", [0; 8]));
    }
}
