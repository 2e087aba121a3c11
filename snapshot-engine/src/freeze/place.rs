//! How the window opens what it has met: by one name, as a location first, then what that stands for. Nothing is allocated.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::gate::Abandoned;
use crate::kernel::beneath::{BENEATH, READ};

/// A name of a directory as a location: one component, not followed, not another mount.
#[inline]
pub(super) fn locate(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Abandoned> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), BENEATH).map_err(|_| Abandoned::Unreadable)
}

/// Opens for reading what a location stands for, by its name in `/proc`.
#[inline]
pub(super) fn reopen(path: &CStr, more: OFlags) -> Result<OwnedFd, Abandoned> {
    let flags = READ.difference(OFlags::NOFOLLOW) | more;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|_| Abandoned::Unreadable)
}

/// The longest path [`in_proc`] makes, its NUL included.
pub(super) const PATH: usize = 32;

/// `/proc/self/fd/N` in memory of the caller's, for calls that take no descriptor.
pub(super) fn in_proc<'b>(path: &'b mut [u8; PATH], fd: BorrowedFd<'_>) -> Result<&'b CStr, Abandoned> {
    let prefix = b"/proc/self/fd/";
    path[..prefix.len()].copy_from_slice(prefix);
    let mut digits = [0; 10];
    let mut n = fd.as_raw_fd().unsigned_abs();
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
        if n == 0 {
            break;
        }
    }
    let end = prefix.len() + digits.len() - first;
    path[prefix.len()..end].copy_from_slice(&digits[first..]);
    path[end] = 0;
    CStr::from_bytes_until_nul(path).map_err(|_| Abandoned::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_path_of_a_descriptor_is_built_without_allocating() {
        let file = std::fs::File::open("/proc").unwrap();
        let mut buffer = [0; PATH];
        let path = in_proc(&mut buffer, file.as_fd()).unwrap();
        assert_eq!(path.to_str().unwrap(), format!("/proc/self/fd/{}", file.as_raw_fd()));
    }
}
