//! Memory shared with the eBPF programs: mmapped array maps, seen as atomic words.
//!
//! Programs and engine change the same words at the same time. Seen as `AtomicU64` that is no data race: every
//! access on this side is atomic, and the other side is not Rust.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use snapshot_ebpf::{Offsets, Settings};

/// An array map (BPF_F_MMAPABLE) in this process' memory.
#[derive(Debug)]
pub struct MapMemory {
    at: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is reached through shared references to atomics only, from any thread; it is unmapped when nobody borrows it any more.
unsafe impl Send for MapMemory {}
// SAFETY: as above.
unsafe impl Sync for MapMemory {}

impl MapMemory {
    /// Maps the first `bytes` of a map's values, all of them present before this returns (no page fault later, in the window).
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<MapMemory> {
        let len = bytes.next_multiple_of(4096);
        // SAFETY: a new mapping at an address the kernel chooses; no existing memory is affected. The map's memory is at
        // least `len` long: array maps are rounded up to pages (kernel/bpf/arraymap.c, array_map_alloc).
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::POPULATE,
                map.as_fd(),
                0,
            )
        }?;
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(MapMemory { at, words: bytes / 8 })
    }

    /// The values as words of 64 bits.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, at least this long, initialised (the kernel zeroes it), and lives as long as `self`; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.words) }
    }
}

impl Drop for MapMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; `words` borrows `self`, so no reference is left.
        let unmapped =
            unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), (self.words * 8).next_multiple_of(4096)) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A value without padding that is handed to the programs as it lies in memory.
///
/// # Safety
/// The type is `repr(C)` and has no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: u32 fields only.
unsafe impl Plain for Offsets {}
// SAFETY: u32 fields only.
unsafe impl Plain for Settings {}

/// The bytes of a plain value.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: no padding, so every byte is initialised; the slice borrows the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
