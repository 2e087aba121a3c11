//! `getdents64(2)` into memory of the caller's, and what it leaves there. Nothing is allocated: the window uses it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Reads entries from the directory's position on; 0 at its end.
///
/// # Errors
/// As `getdents64(2)`; `EINVAL` when not even one entry fits.
pub fn getdents(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `len` bytes to the buffer, which is borrowed mutably for the call.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    usize::try_from(n)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// The target of a symbolic link, into memory of the caller's; cut off where that ends.
///
/// # Errors
/// As `readlinkat(2)`.
pub fn read_link(directory: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `len` bytes to the buffer, which is borrowed mutably for the call; the name ends with NUL.
    let n = unsafe {
        libc::readlinkat(directory.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    usize::try_from(n)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// An entry as the kernel wrote it (`struct linux_dirent64`, linux/dirent.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// `DT_*`.
    pub kind: u8,
    /// The name.
    pub name: &'a CStr,
}

/// Offset of the name: u64 inode, i64 position, u16 length of the record, u8 type.
const NAME: usize = 19;

/// The entries of what [`getdents`] wrote, without `.` and `..`.
pub fn entries(mut bytes: &[u8]) -> impl Iterator<Item = RawEntry<'_>> {
    std::iter::from_fn(move || {
        loop {
            let ino = u64::from_ne_bytes(*bytes.first_chunk::<8>()?);
            let len = usize::from(u16::from_ne_bytes([*bytes.get(16)?, *bytes.get(17)?]));
            let kind = *bytes.get(18)?;
            let name = CStr::from_bytes_until_nul(bytes.get(NAME..len)?).ok()?;
            bytes = bytes.get(len..)?;
            if name != c"." && name != c".." {
                return Some(RawEntry { ino, kind, name });
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn reads_every_name_once() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..300 {
            std::fs::write(dir.path().join(format!("file-{i}")), "").unwrap();
        }
        let fd = std::fs::File::open(dir.path()).unwrap();
        let mut buffer = [0; 1024];
        let mut names = std::collections::BTreeSet::new();
        loop {
            let n = getdents(fd.as_fd(), &mut buffer).unwrap();
            if n == 0 {
                break;
            }
            for e in entries(&buffer[..n]) {
                assert_eq!(e.kind, libc::DT_REG);
                assert!(names.insert(e.name.to_owned()));
            }
        }
        assert_eq!(names.len(), 300);
        assert_eq!(entries(&[1, 2, 3]).count(), 0);
    }
}
