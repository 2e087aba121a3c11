//! Version 6: superblocks, devices, blob table, chunk table, prefetch table. The drawing is in `bootstrap.rs`.

use crate::model::chunk::{BLOCK, BlobIndex, ChunkDigest, ChunkInfo, ChunkRef, Format};

use super::super::layout::{
    BlobEntry, COMPAT_RAFS_V6, ChunkEntry, DEVICE_OFFSET, Device, INCOMPAT, SUPER_MAGIC, SUPER_OFFSET, Super,
    SuperExt, blob_features, chunk_flags,
};
use super::blob_meta::MetaPlace;
use super::bytes::Bytes;
use super::image::{BlobInfo, Chunk, Chunks, Image, Superblock};
use super::{ReadError, Reading, superblock, v6_tree};
use crate::model::chunk::FsVersion;

const EXT_OFFSET: u64 = (SUPER_OFFSET + size_of::<Super>()) as u64;

/// Whether the bytes begin as an EROFS image does.
pub(super) fn is_one(bytes: Bytes<'_>) -> bool {
    bytes.one::<Super>("the superblock", SUPER_OFFSET as u64).is_ok_and(|sb| sb.magic.get() == SUPER_MAGIC)
}

pub(super) fn read(bytes: Bytes<'_>) -> Result<Reading, ReadError> {
    let sb: &Super = bytes.one("the superblock", SUPER_OFFSET as u64)?;
    check_super(sb, bytes)?;
    let ext: &SuperExt = bytes.one("the superblock of RAFS", EXT_OFFSET)?;
    let format = superblock::format(FsVersion::V6, ext.flags.get(), ext.chunk_size.get(), EXT_OFFSET)?;
    let blobs = blobs(bytes, sb, ext, format)?;
    let chunks = chunks(bytes, ext, &blobs, format)?;
    let read = v6_tree::read(bytes, sb, format.chunk_size, &chunks)?;
    let mut faults = read.faults;
    let mut prefetch = Vec::new();
    let at = ext.prefetch_table_offset.get();
    let wanted: &[zerocopy::little_endian::U32] =
        bytes.many("the prefetch table", at, u64::from(ext.prefetch_table_size.get()) / 4)?;
    for nid in wanted {
        match read.ids.get(&u64::from(nid.get())) {
            Some(id) => prefetch.push(*id),
            None => faults.note(ReadError::Damaged { what: "a prefetched inode that is not there", at }),
        }
    }
    let superblock =
        Superblock { version: FsVersion::V6, flags: ext.flags.get(), format, inodes: sb.inos.get() };
    Ok(Reading {
        image: Image { superblock, tree: read.tree, blobs, chunks, prefetch },
        faults: faults.into_vec(),
    })
}

/// What `RafsV6SuperBlock::validate` asks for.
fn check_super(sb: &Super, bytes: Bytes<'_>) -> Result<(), ReadError> {
    let damaged = |what| Err(ReadError::Damaged { what, at: SUPER_OFFSET as u64 });
    if sb.feature_compat.get() & COMPAT_RAFS_V6 == 0 {
        return Err(ReadError::Unsupported { what: "EROFS without RAFS" });
    }
    if sb.blkszbits == 9 {
        return Err(ReadError::Unsupported { what: "blocks of 512 bytes (tarfs)" });
    }
    if u64::from(sb.blkszbits) != u64::from(BLOCK.trailing_zeros()) {
        return damaged("the block size");
    }
    if sb.feature_incompat.get() != INCOMPAT {
        return damaged("features that RAFS does not have");
    }
    if sb.checksum.get() != 0 || sb.extslots != 0 || sb.xattr_blkaddr.get() != 0 {
        return damaged("a field of the superblock that must be zero");
    }
    if usize::from(sb.devt_slotoff.get()) != DEVICE_OFFSET / size_of::<Device>() {
        return damaged("the place of the device table");
    }
    if !bytes.len().is_multiple_of(BLOCK) {
        return Err(ReadError::Damaged { what: "a length that is no multiple of 4096", at: bytes.len() });
    }
    Ok(())
}

fn blobs(bytes: Bytes<'_>, sb: &Super, ext: &SuperExt, format: Format) -> Result<Vec<BlobInfo>, ReadError> {
    let (at, size) = (ext.blob_table_offset.get(), u64::from(ext.blob_table_size.get()));
    let count = size / size_of::<BlobEntry>() as u64;
    if !size.is_multiple_of(size_of::<BlobEntry>() as u64) || count != u64::from(sb.extra_devices.get()) {
        return Err(ReadError::Damaged { what: "the size of the blob table", at });
    }
    let devices: &[Device] = bytes.many("the device table", DEVICE_OFFSET as u64, count)?;
    let entries: &[BlobEntry] = bytes.many("the blob table", at, count)?;
    let mut blobs = Vec::with_capacity(entries.len());
    for (index, (entry, device)) in entries.iter().zip(devices).enumerate() {
        let at = at + (index * size_of::<BlobEntry>()) as u64;
        let damaged = |what| ReadError::Damaged { what, at };
        let features = entry.features.get();
        unsupported(features)?;
        if features & blob_features::ALIGNED == 0 {
            return Err(damaged("a blob whose slots are not aligned"));
        }
        if entry.cipher_algo.get() != 0 {
            return Err(ReadError::Unsupported { what: "encryption" });
        }
        if entry.blob_index.get() as usize != index {
            return Err(damaged("the number of a blob"));
        }
        if entry.chunk_size.get() != format.chunk_size.bytes() {
            return Err(damaged("the chunk size of a blob"));
        }
        if entry.chunk_count.get() >= 1 << 24 {
            return Err(damaged("the number of a blob's chunks"));
        }
        if device.blob_id != entry.blob_id {
            return Err(damaged("a device of another blob"));
        }
        let uncompressed_size = entry.uncompressed_size.get();
        if u64::from(device.blocks.get()) != uncompressed_size / BLOCK || uncompressed_size < BLOCK {
            return Err(damaged("the size of a blob's device"));
        }
        let meta = MetaPlace {
            features,
            chunks: entry.chunk_count.get(),
            compressor: superblock::compressor(entry.ci_compressor.get(), at)?,
            offset: entry.ci_offset.get(),
            compressed_size: entry.ci_compressed_size.get(),
            uncompressed_size: entry.ci_uncompressed_size.get(),
        };
        meta.check(at)?;
        blobs.push(BlobInfo {
            id: superblock::blob_id(&entry.blob_id, at)?,
            chunk_count: entry.chunk_count.get(),
            compressor: superblock::compressor(entry.compression_algo.get(), at)?,
            digester: superblock::digester(entry.digest_algo.get(), at)?,
            features,
            compressed_size: entry.compressed_size.get(),
            uncompressed_size,
            meta: Some(meta),
            toc_size: entry.toc_size.get(),
            toc_digest: entry.toc_digest,
        });
    }
    Ok(blobs)
}

/// Refuses blobs whose chunks are kept in a way that is not read.
pub(super) fn unsupported(features: u32) -> Result<(), ReadError> {
    for (bit, what) in [
        (blob_features::ZRAN, "gzip layers as blobs (zran)"),
        (blob_features::TARFS, "tar files as blobs (tarfs)"),
        (blob_features::BATCH, "chunks that are compressed together (batch)"),
        (blob_features::ENCRYPTED, "encryption"),
        (blob_features::EXTERNAL, "external blobs"),
    ] {
        if features & bit != 0 {
            return Err(ReadError::Unsupported { what });
        }
    }
    Ok(())
}

fn chunks(bytes: Bytes<'_>, ext: &SuperExt, blobs: &[BlobInfo], format: Format) -> Result<Chunks, ReadError> {
    let (at, size) = (ext.chunk_table_offset.get(), ext.chunk_table_size.get());
    if !size.is_multiple_of(size_of::<ChunkEntry>() as u64) {
        return Err(ReadError::Damaged { what: "the size of the chunk table", at });
    }
    let entries: &[ChunkEntry] = bytes.many("the chunk table", at, size / size_of::<ChunkEntry>() as u64)?;
    let mut chunks = Vec::with_capacity(entries.len());
    for (n, entry) in entries.iter().enumerate() {
        let at = at + (n * size_of::<ChunkEntry>()) as u64;
        let chunk = chunk(entry, blobs, format, at)?;
        if !chunk.info.slot.is_multiple_of(BLOCK) {
            return Err(ReadError::Damaged { what: "a chunk whose slot is not aligned", at });
        }
        chunks.push(chunk);
    }
    Chunks::new(chunks).map_err(|_| ReadError::Damaged { what: "a chunk that is described in two ways", at })
}

/// A chunk of either version, with everything in range of its blob.
pub(super) fn chunk(
    entry: &ChunkEntry,
    blobs: &[BlobInfo],
    format: Format,
    at: u64,
) -> Result<Chunk, ReadError> {
    let damaged = |what| ReadError::Damaged { what, at };
    let flags = entry.flags.get();
    if flags & chunk_flags::BATCH != 0 {
        return Err(ReadError::Unsupported { what: "chunks that are compressed together (batch)" });
    }
    if flags & chunk_flags::ENCRYPTED != 0 {
        return Err(ReadError::Unsupported { what: "encryption" });
    }
    let blob_index =
        u16::try_from(entry.blob_index.get()).map_err(|_| damaged("a chunk of a blob that is not there"))?;
    let blob = blobs.get(usize::from(blob_index)).ok_or(damaged("a chunk of a blob that is not there"))?;
    let info = ChunkInfo {
        digest: ChunkDigest(entry.digest),
        index: entry.index.get(),
        size: entry.uncompressed_size.get(),
        stored: entry.compressed_size.get(),
        offset: entry.compressed_offset.get(),
        slot: entry.uncompressed_offset.get(),
    };
    let compressed = flags & chunk_flags::COMPRESSED != 0;
    if info.size == 0 || info.size > format.chunk_size.bytes() {
        return Err(damaged("the size of a chunk"));
    }
    // What compression does not make smaller is stored raw.
    if info.stored == 0 || info.stored > info.size || (!compressed && info.stored != info.size) {
        return Err(damaged("the stored size of a chunk"));
    }
    if info.offset.checked_add(u64::from(info.stored)).is_none_or(|end| end > blob.data_end()) {
        return Err(damaged("a chunk outside its blob"));
    }
    if info.slot.checked_add(u64::from(info.size)).is_none_or(|end| end > blob.uncompressed_size) {
        return Err(damaged("a chunk outside its blob's address space"));
    }
    if entry.index.get() >= blob.chunk_count {
        return Err(damaged("the number of a chunk"));
    }
    Ok(Chunk {
        name: ChunkRef { blob: BlobIndex(blob_index), index: entry.index.get() },
        info,
        compressed,
        crc32: (flags & chunk_flags::HAS_CRC32 != 0).then_some(entry.crc32.get()),
    })
}
