//! Contents that prove themselves: what the jobs write can be checked by whoever reads a snapshot.
//!
//! A single writer numbers its writes from 0 and puts write `n` into file (or page) `n % k`. In the state at one instant,
//! if the newest number anywhere is `N`, then file `i` ends with the largest `n <= N` with `n % k == i`: anything else is a torn snapshot.

/// Bytes of a log line, with its newline.
pub const LINE: usize = 200;
/// Bytes of a database page.
pub const PAGE: usize = 4096;

/// Log line number `n`.
#[must_use]
pub fn line(n: u64) -> Vec<u8> {
    let mut line = format!("{n:020} {:016x} ", mix(n)).into_bytes();
    let fill = b"the quick brown fox jumps over the lazy dog ";
    line.extend(fill.iter().cycle().take(LINE - 1 - line.len()));
    line.push(b'\n');
    line
}

/// The number of a log line, if it is whole.
#[must_use]
pub fn check_line(bytes: &[u8]) -> Option<u64> {
    let n = std::str::from_utf8(bytes.get(..20)?).ok()?.parse().ok()?;
    (bytes == line(n)).then_some(n)
}

/// The database page that write number `n` leaves.
#[must_use]
pub fn page(n: u64) -> Vec<u8> {
    let word = |i: u64| if i == 0 { n } else { mix(n ^ (i << 48)) };
    (0..PAGE as u64 / 8).flat_map(|i| word(i).to_le_bytes()).collect()
}

/// The write number of a page, if it is whole.
#[must_use]
pub fn check_page(bytes: &[u8]) -> Option<u64> {
    let n = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == page(n)).then_some(n)
}

/// Bytes that do not compress, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0u64..).flat_map(|i| mix(seed ^ mix(i)).to_le_bytes()).take(len).collect()
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
#[must_use]
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_is_told_from_torn() {
        assert_eq!(line(7).len(), LINE);
        assert_eq!(check_line(&line(7)), Some(7));
        assert_eq!(check_line(&line(7)[..199]), None);
        assert_eq!(check_page(&page(9)), Some(9));
        let mut torn = page(9);
        torn[2048..].copy_from_slice(&page(10)[2048..]);
        assert_eq!(check_page(&torn), None);
        assert_eq!(noise(1, 13).len(), 13);
        assert_ne!(noise(1, 64), noise(2, 64));
    }
}
