//! Trees to build images of. The same bytes every time.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::Result;

/// A tree.
#[derive(Debug)]
pub struct Tree {
    /// What it is.
    pub name: &'static str,
    /// Its files are so small that opening them counts.
    pub small: bool,
    /// The size of file `n`; nothing when there is no such file.
    size: fn(u64) -> Option<u64>,
    /// Which content file `n` has: files with the same number and size are the same.
    content: fn(u64) -> u64,
}

/// All of them.
pub const ALL: [Tree; 4] = [
    // 1 KiB to 16 MiB, as many of each power of two as make 1 GiB together.
    Tree { name: "1 GiB of mixed files", small: false, size: mixed, content: |n| n },
    Tree {
        name: "50,000 small files",
        small: true,
        size: |n| (n < 50_000).then(|| 512 + mix(n) % 15_872),
        content: |n| n,
    },
    Tree { name: "one file of 4 GiB", small: false, size: |n| (n == 0).then_some(4 << 30), content: |n| n },
    Tree {
        name: "1 GiB of duplicates",
        small: false,
        size: |n| (n < 1024).then_some(1 << 20),
        content: |n| n % 64,
    },
];

fn mixed(n: u64) -> Option<u64> {
    // 15 classes with the same bytes each: 2^10 * 69,905, ..., 2^24 * 4 would be most files of 1 KiB; a class gets its share of files instead.
    const FILES: [u64; 15] = [2000, 2000, 2000, 1500, 1500, 1000, 800, 600, 400, 250, 150, 90, 50, 32, 20];
    let mut before = 0;
    for (class, files) in (10..).zip(FILES) {
        if n < before + files {
            // Not all of the same length, and mostly no multiple of the block.
            return Some((1 << class) - mix(n) % (1 << (class - 2)));
        }
        before += files;
    }
    None
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 KiB: three quarters of it text that compresses by three or four, a quarter that does not compress.
fn block(seed: u64, to: &mut [u8]) {
    const WORDS: [&[u8]; 16] = [
        b"return ",
        b"static ",
        b"int ",
        b"the ",
        b"of ",
        b"container",
        b"snapshot ",
        b"(void)",
        b"{\n    ",
        b"}\n",
        b"if (",
        b") ",
        b"0x",
        b"error: ",
        b"kernel",
        b";\n",
    ];
    let mut state = seed;
    if seed % 4 == 3 {
        for word in to.chunks_mut(8) {
            state = state.wrapping_add(1);
            word.copy_from_slice(&mix(state).to_le_bytes()[..word.len()]);
        }
        return;
    }
    let mut at = 0;
    while at < to.len() {
        state = state.wrapping_add(1);
        let mut bits = mix(state);
        for _ in 0..12 {
            let word = WORDS[usize::try_from(bits % 16).unwrap_or(0)];
            bits >>= 4;
            let len = word.len().min(to.len() - at);
            to[at..at + len].copy_from_slice(&word[..len]);
            at += len;
        }
        // Something that has not been there yet.
        let number = bits.to_le_bytes();
        let len = 2.min(to.len() - at);
        to[at..at + len].copy_from_slice(&number[..len]);
        at += len;
    }
}

impl Tree {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(&self, at: &Path) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        for n in 0.. {
            let Some(size) = (self.size)(n) else { break };
            let dir = at.join(format!("{:03}", n / 200 % 1000));
            if n % 200 == 0 {
                fs::create_dir_all(&dir)?;
            }
            let mut file = File::create(dir.join(format!("file-{n}")))?;
            let mut left = size;
            let seed = mix((self.content)(n)) << 20;
            for part in 0.. {
                let len = left.min(buffer.len() as u64);
                if len == 0 {
                    break;
                }
                let some = &mut buffer[..usize::try_from(len)?];
                block(mix(seed + part), some);
                file.write_all(some)?;
                left -= len;
            }
        }
        Ok(())
    }
}

/// Reads everything once, so that it is in the page cache.
///
/// # Errors
/// When something cannot be read.
pub fn warm(at: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut dirs = vec![at.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                let mut file = File::open(entry.path())?;
                while file.read(&mut buffer)? > 0 {}
            }
        }
    }
    Ok(())
}
