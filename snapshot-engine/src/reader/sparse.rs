//! Writing what is not zero: blocks of zeros become holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Writes `data` at `at` into a file that is long enough and has nothing there yet. Gives the bytes that were written.
pub(super) fn write(file: &File, at: u64, data: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let mut start = 0;
    while start < data.len() {
        let len = run(&data[start..]);
        if len > 0 {
            file.write_all_at(&data[start..start + len], at + start as u64)?;
            written += len as u64;
            start += len;
        } else {
            start += BLOCK.min(data.len() - start);
        }
    }
    Ok(written)
}

/// How many bytes there are before the next block of zeros.
fn run(data: &[u8]) -> usize {
    data.chunks(BLOCK).take_while(|block| **block != ZEROS[..block.len()]).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_not_written() {
        let file = tempfile::tempfile().unwrap();
        let mut data = vec![0u8; 5 * BLOCK + 10];
        data[BLOCK + 5] = 1;
        data[4 * BLOCK] = 2;
        file.set_len(data.len() as u64 + 7).unwrap();
        assert_eq!(write(&file, 7, &data).unwrap(), 2 * BLOCK as u64);
        let mut back = vec![9; data.len()];
        file.read_exact_at(&mut back, 7).unwrap();
        assert!(back == data);
        assert_eq!(write(&file, 7, &[1; 10]).unwrap(), 10);
    }
}
