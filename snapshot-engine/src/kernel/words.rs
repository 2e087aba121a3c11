//! A file's first words, mapped shared between processes.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// 64-bit words in a `MAP_SHARED` mapping. Other processes may change them at any time, so they are atomics.
///
/// Whoever maps a file must see to it that nobody truncates it below the mapping: a touch behind the end raises SIGBUS.
#[derive(Debug)]
pub struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping is owned by the value and tied to no thread; atomics may be used from any.
unsafe impl Send for Words {}
// SAFETY: as above; only shared references to atomics are handed out.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `len` words of a file opened for reading and writing.
    ///
    /// # Errors
    /// As `mmap(2)`, and when the file is shorter than that.
    pub fn map(file: impl AsFd, len: usize) -> io::Result<Words> {
        let bytes = len * size_of::<AtomicU64>();
        let size = rustix::fs::fstat(&file)?.st_size;
        if len == 0 || u64::try_from(size).unwrap_or(0) < bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file too short to be mapped"));
        }
        // SAFETY: a new mapping at an address the kernel chooses; no existing memory is affected.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(Words { start, len })
    }

    /// The words.
    #[must_use]
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `len` words, is page-aligned, lives as long as `self`, and every bit pattern is an `AtomicU64`;
        // changes by other processes are what atomics are for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Writes the dirty pages to the file's disk and waits for it (`msync(MS_SYNC)`).
    ///
    /// # Errors
    /// As `msync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping made in `map`, whole; the call changes no memory.
        Ok(unsafe { rustix::mm::msync(self.start.as_ptr().cast(), bytes, MsyncFlags::SYNC) }?)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, whole; no borrow of it outlives `self`.
        let unmapped =
            unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn two_mappings_share_their_words() {
        let file = tempfile::tempfile().unwrap();
        assert!(Words::map(&file, 1).is_err());
        file.set_len(4096).unwrap();
        let (a, b) = (Words::map(&file, 512).unwrap(), Words::map(&file, 8).unwrap());
        a.as_slice()[7].store(42, Relaxed);
        assert_eq!(b.as_slice()[7].load(Relaxed), 42);
    }
}
