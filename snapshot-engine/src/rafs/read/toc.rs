//! The parts of a blob that carries its own metadata, from its last bytes. The drawing is in `rafs/toc.rs`.

use super::super::toc::{IMAGE_BOOT, TOC, TarHeader, TocEntry, flags};
use super::ReadError;
use super::bytes::Bytes;

/// How a part is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As it is.
    Raw,
    /// As a zstd frame.
    Zstd,
}

/// A part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name, `image.boot` among others.
    pub name: String,
    /// How it is stored.
    pub stored: Stored,
    /// Offset in the blob.
    pub offset: u64,
    /// Bytes in the blob.
    pub stored_size: u64,
    /// Bytes uncompressed; of `image.blob` its address space.
    pub size: u64,
    /// SHA-256 of the uncompressed bytes, of `image.blob` of the stored ones; `None` where nothing says.
    pub digest: Option<[u8; 32]>,
}

/// The parts of a blob of `len` bytes that ends with `tail`; empty when it has none of its own metadata. Its table of contents, with the
/// tar header, has the length given second, 0 without one.
///
/// # Errors
/// When it says that it has some and that is damaged.
pub fn parts(tail: &[u8], len: u64) -> Result<(Vec<Part>, u32), ReadError> {
    let bytes = Bytes(tail);
    let Some(header_at) = bytes.len().checked_sub(size_of::<TarHeader>() as u64) else {
        return Ok((Vec::new(), 0));
    };
    let header: &TarHeader = bytes.one("a tar header", header_at)?;
    let name = text(&header.name);
    let damaged = |what| ReadError::Damaged { what, at: len };
    let size = || octal(&header.size).ok_or(damaged("the size in a tar header"));
    if name == IMAGE_BOOT.as_bytes() {
        let size = size()?;
        let end = len - size_of::<TarHeader>() as u64;
        let offset = end.checked_sub(size).ok_or(damaged("the size of the bootstrap in the blob"))?;
        let name = IMAGE_BOOT.to_owned();
        return Ok((
            vec![Part { name, stored: Stored::Raw, offset, stored_size: size, size, digest: None }],
            0,
        ));
    }
    if name != TOC.as_bytes() {
        return Ok((Vec::new(), 0));
    }
    let size = size()?;
    let entry = size_of::<TocEntry>() as u64;
    let start = header_at.checked_sub(size).filter(|_| size.is_multiple_of(entry) && size > 0);
    let start = start.ok_or(damaged("the size of the table of contents"))?;
    let entries: &[TocEntry] = bytes.many("the table of contents", start, size / entry)?;
    let mut parts = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = std::str::from_utf8(text(&entry.name)).map_err(|_| damaged("the name of a part"))?;
        let stored = match entry.flags.get() {
            flags::NONE => Stored::Raw,
            flags::ZSTD => Stored::Zstd,
            _ => return Err(damaged("the compression of a part")),
        };
        let (offset, stored_size) = (entry.compressed_offset.get(), entry.compressed_size.get());
        if offset.checked_add(stored_size).is_none_or(|end| end > len) {
            return Err(damaged("a part outside of its blob"));
        }
        parts.push(Part {
            name: name.to_owned(),
            stored,
            offset,
            stored_size,
            size: entry.uncompressed_size.get(),
            digest: Some(entry.uncompressed_digest),
        });
    }
    // The window is 4096 bytes at most.
    Ok((parts, (size + size_of::<TarHeader>() as u64) as u32))
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.iter().skip_while(|b| **b == b' ').take_while(|b| !matches!(b, 0 | b' '));
    let mut any = false;
    let mut value = 0u64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        any = true;
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    any.then_some(value)
}
