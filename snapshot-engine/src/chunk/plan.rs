//! What is read together. No I/O.
//!
//! A batch is a run of consecutive chunks in tree order, small enough to be held by one worker: many small files, or a few
//! chunks of a large one.

use crate::model::chunk::ChunkSize;

/// Chunks up to this size are read into small buffers, so that many are in flight at little memory.
pub const SMALL: usize = 32 << 10;
/// The most chunks of a batch.
pub const BATCH_CHUNKS: usize = 64;
/// The bytes of large buffers a worker has, at least one chunk: what it reads it digests, hashes and writes while it is still in its core's cache. With
/// 4 MiB, more than a second-level cache holds, writing took three times the CPU time (1.35 GiB uncompressed: 2.25 s of CPU, and 1.60 s with 1 MiB).
const LARGE_BYTES: usize = 1 << 20;

/// How many large buffers a worker has, and a batch may use.
#[must_use]
pub fn large_buffers(chunk_size: ChunkSize) -> usize {
    (LARGE_BYTES / chunk_size.bytes() as usize).clamp(1, BATCH_CHUNKS)
}

/// One chunk to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Which file.
    pub file: usize,
    /// Where in it.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

/// Gives out batches in order.
#[derive(Debug)]
pub struct Plan {
    sizes: Vec<u64>,
    chunk_size: ChunkSize,
    file: usize,
    offset: u64,
    next: u64,
}

impl Plan {
    /// A plan for files of the given sizes, in order.
    #[must_use]
    pub fn new(sizes: Vec<u64>, chunk_size: ChunkSize) -> Plan {
        Plan { sizes, chunk_size, file: 0, offset: 0, next: 0 }
    }

    /// The next batch into `units`, and its number; `None` when all are given out.
    pub fn claim(&mut self, units: &mut Vec<Unit>) -> Option<u64> {
        units.clear();
        let mut large = large_buffers(self.chunk_size);
        while units.len() < BATCH_CHUNKS
            && let Some(&size) = self.sizes.get(self.file)
        {
            if self.offset >= size {
                self.file += 1;
                self.offset = 0;
                continue;
            }
            let len = usize::try_from(size - self.offset)
                .unwrap_or(usize::MAX)
                .min(self.chunk_size.bytes() as usize);
            if len > SMALL {
                if large == 0 {
                    break;
                }
                large -= 1;
            }
            units.push(Unit { file: self.file, offset: self.offset, len });
            self.offset += len as u64;
        }
        if units.is_empty() {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read_once_in_order() {
        for chunk in [4096, 1 << 20, 16 << 20] {
            let chunk_size = ChunkSize::new(chunk).unwrap();
            let sizes = vec![0, 1, 4095, 4096, 4097, 0, 40_000_000, 3, (1 << 20) + 1, 1 << 20, 0];
            let mut plan = Plan::new(sizes.clone(), chunk_size);
            let mut read = vec![0u64; sizes.len()];
            let mut units = Vec::new();
            let mut batches = 0;
            while let Some(n) = plan.claim(&mut units) {
                assert_eq!(n, batches);
                batches += 1;
                let large = units.iter().filter(|u| u.len > SMALL).count();
                assert!(large <= large_buffers(chunk_size) && units.len() <= BATCH_CHUNKS);
                for unit in &units {
                    assert_eq!(unit.offset, read[unit.file]);
                    read[unit.file] += unit.len as u64;
                }
            }
            assert_eq!(read, sizes);
        }
    }
}
