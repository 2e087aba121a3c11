//! `listxattrat(2)`, which came with Linux 6.13. Before it the only way to the attributes of a name in a directory that is open, not following a link, led
//! through `/proc/self/fd`: twice the time, which every entry of a walked tree paid.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// The same number on every architecture (include/uapi/asm-generic/unistd.h, Linux 6.13).
const SYS_LISTXATTRAT: libc::c_long = 465;

/// The kernel has no such call, or a filter does not know it.
static ABSENT: AtomicBool = AtomicBool::new(false);

/// The names of the attributes, each with a NUL behind it, not following a link; `None` where the kernel has no such call.
pub(super) fn list_at(dir: BorrowedFd<'_>, name: &CStr, list: &mut [u8]) -> Option<Result<usize, Errno>> {
    if ABSENT.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the kernel writes at most `len` bytes to the list, which is borrowed mutably for the call; the name ends with NUL.
    let n = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            list.as_mut_ptr(),
            list.len(),
        )
    };
    match usize::try_from(n) {
        Ok(n) => Some(Ok(n)),
        Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) {
            // A filter (seccomp(2)) that was written before the call answers with either.
            Errno::NOSYS | Errno::PERM => {
                ABSENT.store(true, Ordering::Relaxed);
                None
            }
            error => Some(Err(error)),
        },
    }
}
