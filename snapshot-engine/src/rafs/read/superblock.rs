//! Flags and numbers that stand for choices, in either version.

use crate::model::chunk::{BlobLayout, ChunkSize, Compressor, Digester, Format, FsVersion};

use super::super::layout::flags;
use super::ReadError;

const KNOWN: u64 = flags::COMPRESSION_NONE
    | flags::COMPRESSION_LZ4
    | flags::COMPRESSION_GZIP
    | flags::COMPRESSION_ZSTD
    | flags::HASH_BLAKE3
    | flags::HASH_SHA256
    | flags::EXPLICIT_UID_GID
    | flags::HAS_XATTR
    | flags::INLINED_CHUNK_DIGEST
    | flags::TARFS
    | flags::ENCRYPTION_NONE;

/// How chunks are made, as the superblock's flags say: not at which level, nor what blobs have besides.
pub(super) fn format(version: FsVersion, set: u64, chunk_size: u32, at: u64) -> Result<Format, ReadError> {
    let damaged = |what| ReadError::Damaged { what, at };
    if set & flags::TARFS != 0 {
        return Err(ReadError::Unsupported { what: "tar files as blobs (tarfs)" });
    }
    if set & flags::ENCRYPTION_AES_128_XTS != 0 {
        return Err(ReadError::Unsupported { what: "encryption" });
    }
    if set & !KNOWN != 0 {
        return Err(ReadError::Unsupported { what: "a flag in its superblock that is unknown" });
    }
    let compressors = [
        (flags::COMPRESSION_NONE, Compressor::None),
        (flags::COMPRESSION_LZ4, Compressor::Lz4Block),
        (flags::COMPRESSION_GZIP, Compressor::Gzip),
        (flags::COMPRESSION_ZSTD, Compressor::zstd()),
    ];
    let digesters = [(flags::HASH_BLAKE3, Digester::Blake3), (flags::HASH_SHA256, Digester::Sha256)];
    Ok(Format {
        version,
        compressor: only(set, &compressors).ok_or(damaged("not exactly one compressor in the superblock"))?,
        digester: only(set, &digesters).ok_or(damaged("not exactly one digest in the superblock"))?,
        chunk_size: ChunkSize::new(u64::from(chunk_size))
            .map_err(|_| damaged("the chunk size in the superblock"))?,
        layout: BlobLayout::Plain,
    })
}

/// The one choice whose bit is set.
fn only<T: Copy>(set: u64, choices: &[(u64, T)]) -> Option<T> {
    let mut chosen = choices.iter().filter(|(bit, _)| set & bit != 0);
    match (chosen.next(), chosen.next()) {
        (Some((_, one)), None) => Some(*one),
        _ => None,
    }
}

/// `compress::Algorithm` of nydus.
pub(super) fn compressor(number: u32, at: u64) -> Result<Compressor, ReadError> {
    match number {
        0 => Ok(Compressor::None),
        1 => Ok(Compressor::Lz4Block),
        2 => Ok(Compressor::Gzip),
        3 => Ok(Compressor::zstd()),
        _ => Err(ReadError::Damaged { what: "an unknown compressor", at }),
    }
}

/// `digest::Algorithm` of nydus.
pub(super) fn digester(number: u32, at: u64) -> Result<Digester, ReadError> {
    match number {
        0 => Ok(Digester::Blake3),
        1 => Ok(Digester::Sha256),
        _ => Err(ReadError::Damaged { what: "an unknown digest", at }),
    }
}

/// A blob's id: it becomes a file name, so nothing but letters and digits is taken.
pub(super) fn blob_id(bytes: &[u8], at: u64) -> Result<String, ReadError> {
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let (id, rest) = bytes.split_at(len);
    if id.is_empty() || !id.iter().all(u8::is_ascii_alphanumeric) || rest.iter().any(|b| *b != 0) {
        return Err(ReadError::Damaged { what: "the id of a blob", at });
    }
    Ok(id.iter().copied().map(char::from).collect())
}
