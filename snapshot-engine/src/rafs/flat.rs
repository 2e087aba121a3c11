//! Bootstrap and blobs on one device: the kernel finds a blob at the address its device slot has (`mapped_blkaddr`), if it is given
//! no device for it (fs/erofs/data.c, `erofs_map_dev`).
//!
//! ```text
//! | bootstrap | up to 512 KiB | address space of blob 0 | up to 512 KiB | address space of blob 1 | ...
//! ```

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::model::chunk::BLOCK;

use super::RafsError;
use super::layout::{DEVICE_OFFSET, Device};

/// Addresses of blobs are multiples of this many bytes (`V6_BLOCK_SEG_ALIGNMENT`).
const SEGMENT: u64 = 0x8_0000;

/// Places blobs of the given uncompressed sizes behind a bootstrap of version 6, and writes their addresses into its device
/// table: those that are there are not believed. Gives where each begins, and the length of the whole.
///
/// # Errors
/// When the whole has more blocks than an address has bits.
pub fn place(bootstrap: &mut [u8], sizes: &[u64]) -> Result<(Vec<u64>, u64), RafsError> {
    let too_large = RafsError::TooLarge { what: "the image as one device" };
    let mut end = bootstrap.len() as u64;
    let mut starts = Vec::with_capacity(sizes.len());
    for (number, size) in sizes.iter().enumerate() {
        let start = end.next_multiple_of(SEGMENT);
        let at = DEVICE_OFFSET + number * size_of::<Device>();
        let slot = bootstrap.get_mut(at..at + size_of::<Device>()).ok_or(too_large.clone())?;
        let device = Device::mut_from_bytes(slot).map_err(|_| too_large.clone())?;
        device.mapped_blkaddr = U32::new(u32::try_from(start / BLOCK).map_err(|_| too_large.clone())?);
        end = start.checked_add(*size).ok_or(too_large.clone())?;
        starts.push(start);
    }
    let end = end.next_multiple_of(BLOCK);
    if end / BLOCK > u64::from(u32::MAX) { Err(too_large) } else { Ok((starts, end)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_follow_each_other() {
        let mut bootstrap = vec![0; 12288];
        let (starts, end) = place(&mut bootstrap, &[4096, SEGMENT, 8192]).unwrap();
        assert_eq!(starts, [SEGMENT, 2 * SEGMENT, 3 * SEGMENT]);
        assert_eq!(end, 3 * SEGMENT + 8192);
        assert_eq!(bootstrap[1408 + 128 + 68..][..4], (2 * SEGMENT as u32 / 4096).to_le_bytes());
        assert!(place(&mut bootstrap, &[1 << 45, 1]).is_err());
        assert!(place(&mut bootstrap, &[u64::MAX]).is_err());
        assert!(place(&mut bootstrap, &[0; 200]).is_err(), "more blobs than the file has slots for");
    }
}
