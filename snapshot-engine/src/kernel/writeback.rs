//! Cleaning a file's pages, so that the next store to them is seen.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes the dirty pages of a range to the disk and waits for it (`sync_file_range(2)` with all three flags).
///
/// It is not for durability (it flushes no metadata and no disk cache) but for its side effect: before a folio is written,
/// `folio_clear_dirty_for_io` (mm/page-writeback.c) write-protects every mapping of it through `folio_mkclean`, so the next
/// store through a shared mapping faults and the tracker hears of it (T4). Works on a descriptor open for reading.
///
/// # Errors
/// As `sync_file_range(2)`: `EIO` and `ENOSPC` of the write-back.
pub fn sync_range(fd: BorrowedFd<'_>, range: Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(io::Error::other)?;
    // A length of 0 means "to the end of the file", which is never what an empty range asks for.
    let length = i64::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(());
    }
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes no pointers; `fd` is borrowed, hence open for as long as the call runs.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, length, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
