use std::io::Read as _;

use super::*;

const ALL: [LayerCompression; 3] =
    [LayerCompression::None, LayerCompression::Gzip, LayerCompression::Zstd(ZstdLevel::DEFAULT)];

/// Text, noise and zeros, so much of it that blocks begin in the middle of each.
fn content(len: usize) -> Vec<u8> {
    let mut x = 1u64;
    let noise = |x: &mut u64| {
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        *x as u8
    };
    (0..len)
        .map(|i| match i / 700_000 % 3 {
            0 => b"the quick brown fox "[i % 20],
            1 => noise(&mut x),
            _ => 0,
        })
        .collect()
}

fn packed(bytes: &[u8], compression: LayerCompression, workers: usize, step: usize) -> (Packed, Vec<u8>) {
    let mut file = tempfile::tempfile().unwrap();
    let produce = |to: &mut Blocks| bytes.chunks(step).try_for_each(|part| to.write_all(part));
    let (packed, ()) = pack(&file, compression, BLOCK, workers, produce).unwrap();
    let mut stored = Vec::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut stored).unwrap();
    (packed, stored)
}

fn unpacked(stored: &[u8], compression: LayerCompression) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        LayerCompression::None => out.extend_from_slice(stored),
        // One member: this reader stops after the first.
        LayerCompression::Gzip => drop(flate2::read::GzDecoder::new(stored).read_to_end(&mut out).unwrap()),
        LayerCompression::Zstd(_) => drop(zstd::Decoder::new(stored).unwrap().read_to_end(&mut out).unwrap()),
    }
    out
}

#[test]
fn what_is_packed_can_be_unpacked_and_its_digests_are_true() {
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 12345] {
        let bytes = content(len);
        for compression in ALL {
            let (made, stored) = packed(&bytes, compression, 3, 10_007);
            assert!(unpacked(&stored, compression) == bytes, "{compression:?}, {len} bytes");
            assert_eq!((made.raw, made.size), (len as u64, stored.len() as u64));
            assert_eq!(made.diff_id.0, <[u8; 32]>::from(Sha256::digest(&bytes)));
            assert_eq!(made.id.0, <[u8; 32]>::from(Sha256::digest(&stored)));
        }
    }
}

#[test]
fn bytes_depend_on_the_stream_alone() {
    let bytes = content(5 * BLOCK + 99);
    for compression in ALL {
        let (one, stored) = packed(&bytes, compression, 1, 4096);
        for (workers, step) in [(2, 1 << 20), (7, 333), (0, usize::MAX)] {
            let (other, same) = packed(&bytes, compression, workers, step);
            assert!((one, &stored) == (other, &same), "{compression:?} with {workers} workers");
        }
    }
}

#[test]
fn whoever_fails_says_why_and_nobody_hangs() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let endless = |to: &mut Blocks| loop {
        to.write_all(&[7; 100_000])?;
    };
    let failed = pack::<(), io::Error>(&full, LayerCompression::None, BLOCK, 2, endless).unwrap_err();
    assert!(matches!(failed, Failed::Write(e) if e.raw_os_error() == Some(libc::ENOSPC)));
    let file = tempfile::tempfile().unwrap();
    let failed = pack::<(), &str>(&file, LayerCompression::Gzip, BLOCK, 2, |_| Err("why")).unwrap_err();
    assert!(matches!(failed, Failed::Produce("why")));
}
