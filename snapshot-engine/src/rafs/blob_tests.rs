use super::*;
use crate::model::chunk::{BlobLayout, ChunkDigest};
use zerocopy::FromBytes;

fn chunk(index: u32, size: u32, stored: u32, offset: u64, slot: u64) -> ChunkInfo {
    ChunkInfo { digest: ChunkDigest([index as u8; 32]), index, size, stored, offset, slot }
}

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
        let info = chunk(0, size, stored, offset, slot);
        assert_eq!(decode(encode(&info)), (u64::from(size), slot, u64::from(stored), offset));
    }
}

fn ending(version: FsVersion, layout: BlobLayout) -> Ending {
    let format = Format { version, layout, ..Format::default() };
    let chunks = (0..3).map(|i| chunk(i, 9, 9, u64::from(i) * 9, u64::from(i) * 4096)).collect();
    Ending::new(format, chunks, 27, 3 * 4096, &Sha256::new_with_prefix([7; 27]))
}

#[test]
fn the_header_ends_a_plain_blob() {
    let (tail, blob) = ending(FsVersion::V6, BlobLayout::Plain).finish();
    assert_eq!(tail.len(), 48 + 4096);
    assert_eq!(tail[48..52], BLOB_MAGIC.to_le_bytes());
    assert_eq!(tail[48 + 4092..], BLOB_MAGIC.to_le_bytes());
    assert_eq!(tail[64..72], 27u64.to_le_bytes());
    assert_eq!((blob.data_end, blob.file_size, blob.tail.features), (27, 27 + 48 + 4096, 0x4000_0001));
    let (tail, blob) = ending(FsVersion::V5, BlobLayout::Plain).finish();
    assert_eq!((tail.len(), blob.file_size, blob.tail.info_size), (0, 27, 0));
}

#[test]
fn the_contents_say_where_everything_is() {
    let mut ending = ending(FsVersion::V6, BlobLayout::InlineToc);
    let inside = ending.unfinished();
    assert_eq!((inside.id, inside.tail.features), (BlobId::NOT_YET, 0x7000_0023));
    ending.add_bootstrap(&[1; 8192]).unwrap();
    let (bytes, blob) = ending.finish();
    assert_eq!(blob.tail.features, 0x7000_0021, "to a bootstrap outside there is none inside");
    assert_eq!(blob.file_size, 27 + bytes.len() as u64);
    let toc = &bytes[bytes.len() - blob.tail.toc_size as usize..];
    assert_eq!(blob.tail.toc_digest, <[u8; 32]>::from(Sha256::digest(toc)));
    let names = [toc::IMAGE_BLOB, toc::BLOB_META, toc::BLOB_META_HEADER, toc::BLOB_DIGEST, toc::IMAGE_BOOT];
    assert_eq!(toc.len(), names.len() * 128 + 512);
    for (entry, name) in toc.chunks(128).zip(names) {
        let entry = TocEntry::ref_from_bytes(entry).unwrap();
        assert!(entry.name.starts_with(name.as_bytes()));
        if name == toc::IMAGE_BLOB {
            assert_eq!((entry.compressed_size.get(), entry.uncompressed_size.get()), (27, 3 * 4096));
            continue;
        }
        let start = entry.compressed_offset.get() as usize - 27;
        let stored = &bytes[start..][..entry.compressed_size.get() as usize];
        let raw = match entry.flags.get() {
            toc::flags::ZSTD => zstd::bulk::decompress(stored, 8192).unwrap(),
            _ => stored.to_vec(),
        };
        assert_eq!(raw.len() as u64, entry.uncompressed_size.get());
        assert_eq!(entry.uncompressed_digest, <[u8; 32]>::from(Sha256::digest(&raw)), "{name}");
    }
}

#[test]
fn a_bootstrap_inside_lies_where_the_unfinished_blob_ends() {
    for version in [FsVersion::V5, FsVersion::V6] {
        let mut ending = ending(version, BlobLayout::Inline);
        let at = ending.unfinished().file_size as usize - 27;
        ending.add_bootstrap(b"the bootstrap").unwrap();
        let (bytes, blob) = ending.finish();
        assert!(bytes[at..].starts_with(b"the bootstrap"));
        assert_eq!(bytes.len() - at, 13 + 512);
        assert_eq!((blob.data_end, blob.tail.toc_size), (27 + 512, 0));
    }
}
