//! Asynchronous writes: io_uring and the kernel's own AIO, for the writers of the torture harness.
//!
//! No crate has a safe door to either, since the kernel goes on using the caller's memory after the call that handed it over. Here each request is waited for
//! before its function returns, so the memory it borrows outlives it: that is the whole argument, and why this is the one file outside of the engine's
//! `kernel` with `unsafe` (`xtask/src/tidy/rust.rs` knows it by name).

#![expect(unsafe_code, reason = "the only way to the two interfaces; see above")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

/// The working directory, for paths.
const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

/// A ring with at most one request in flight.
pub struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    /// A ring; with `polled` a thread of the kernel takes the requests, so that there need be no call at all.
    ///
    /// # Errors
    /// As `io_uring_setup(2)`.
    pub fn new(polled: bool) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        if polled {
            builder.setup_sqpoll(20);
        }
        Ok(Ring(builder.build(4)?))
    }

    /// Makes one request. `elsewhere`: by one of the kernel's worker threads, and not by the caller.
    ///
    /// # Safety
    /// Until this returns the memory and the descriptors that the request names must stay as they are.
    unsafe fn request(&mut self, entry: Entry, elsewhere: bool) -> io::Result<u64> {
        let entry = if elsewhere { entry.flags(io_uring::squeue::Flags::ASYNC) } else { entry };
        // SAFETY: as promised by the caller; this function returns only when the completion was seen.
        unsafe { self.0.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            if let Some(done) = self.0.completion().next() {
                return match done.result() {
                    n if n >= 0 => Ok(u64::from(n.unsigned_abs())),
                    e => Err(io::Error::from_raw_os_error(-e)),
                };
            }
            match self.0.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The kernel may have the memory: there is no way back to its owner.
                Err(_) => std::process::abort(),
            }
        }
    }

    /// `pwrite(2)`.
    ///
    /// # Errors
    /// As that.
    pub fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8], at: u64, elsewhere: bool) -> io::Result<u64> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Write::new(types::Fd(fd.as_raw_fd()), bytes.as_ptr(), len).offset(at);
        // SAFETY: `bytes` and `fd` are borrowed until the call returns.
        unsafe { self.request(entry.build(), elsewhere) }
    }

    /// `fallocate(2)` without flags.
    ///
    /// # Errors
    /// As that.
    pub fn allocate(&mut self, fd: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<u64> {
        let entry = opcode::Fallocate::new(types::Fd(fd.as_raw_fd()), len).offset(at);
        // SAFETY: no memory; `fd` is borrowed until the call returns.
        unsafe { self.request(entry.build(), false) }
    }

    /// `rename(2)`.
    ///
    /// # Errors
    /// As that.
    pub fn rename(&mut self, from: &CStr, to: &CStr) -> io::Result<u64> {
        let entry = opcode::RenameAt::new(HERE, from.as_ptr(), HERE, to.as_ptr());
        // SAFETY: both paths are borrowed until the call returns.
        unsafe { self.request(entry.build(), false) }
    }

    /// `link(2)`.
    ///
    /// # Errors
    /// As that.
    pub fn link(&mut self, from: &CStr, to: &CStr) -> io::Result<u64> {
        let entry = opcode::LinkAt::new(HERE, from.as_ptr(), HERE, to.as_ptr());
        // SAFETY: both paths are borrowed until the call returns.
        unsafe { self.request(entry.build(), false) }
    }

    /// `unlink(2)`, or `rmdir(2)` of a `directory`.
    ///
    /// # Errors
    /// As those.
    pub fn remove(&mut self, path: &CStr, directory: bool) -> io::Result<u64> {
        let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
        let entry = opcode::UnlinkAt::new(HERE, path.as_ptr()).flags(flags);
        // SAFETY: the path is borrowed until the call returns.
        unsafe { self.request(entry.build(), false) }
    }

    /// `mkdir(2)`.
    ///
    /// # Errors
    /// As that.
    pub fn directory(&mut self, path: &CStr, mode: u32) -> io::Result<u64> {
        let entry = opcode::MkDirAt::new(HERE, path.as_ptr()).mode(mode);
        // SAFETY: the path is borrowed until the call returns.
        unsafe { self.request(entry.build(), false) }
    }
}

/// A control block, as the kernel has it (include/uapi/linux/aio_abi.h), on a little-endian machine.
#[repr(C)]
#[derive(Debug, Default)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_fd: u32,
}

/// A completion.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    second: i64,
}

/// Maps the first page of a file shared and writable the way a 32-bit program does (`mmap2` by `int 0x80`), and leaves it mapped.
///
/// # Errors
/// As `mmap(2)`; `ENOSYS` where the kernel runs no 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub fn map_as_32_bit(fd: BorrowedFd<'_>) -> io::Result<()> {
    const MMAP2: i32 = 192;
    let mut result = MMAP2;
    // SAFETY: a new mapping at an address below 4 GiB that the kernel chooses; no existing memory is affected. The kernel keeps all registers but the result and,
    // on the way through `int 0x80`, r8 to r11; rbx and rbp, which cannot be named, are put back.
    unsafe {
        std::arch::asm!(
            "push rbx", "push rbp", "xor ebx, ebx", "xor ebp, ebp", "int 0x80", "pop rbp", "pop rbx",
            inout("eax") result,
            in("ecx") 4096,
            in("edx") libc::PROT_READ | libc::PROT_WRITE,
            in("esi") libc::MAP_SHARED,
            in("edi") fd.as_raw_fd(),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if (-4095..0).contains(&result) { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Maps the first page of a file shared and for reading, and leaves it mapped.
///
/// # Errors
/// As `mmap(2)`.
pub fn map_to_read(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null_mut();
    // SAFETY: a new mapping at an address that the kernel chooses; no existing memory is affected.
    match unsafe { libc::mmap(none, 4096, libc::PROT_READ, libc::MAP_SHARED, fd.as_raw_fd(), 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// IOCB_CMD_PWRITE.
const WRITE: u16 = 1;

/// A context of the kernel's AIO (`io_submit(2)`).
#[derive(Debug)]
pub struct Aio(libc::c_ulong);

impl Aio {
    /// A context for some requests.
    ///
    /// # Errors
    /// As `io_setup(2)`.
    pub fn new() -> io::Result<Aio> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel stores the context's number there and keeps nothing.
        match unsafe { libc::syscall(libc::SYS_io_setup, 64, &raw mut context) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Aio(context)),
        }
    }

    /// `pwrite(2)`: begun, and waited for.
    ///
    /// # Errors
    /// As that.
    pub fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8], at: u64) -> io::Result<u64> {
        let block = Control {
            opcode: WRITE,
            fd: fd.as_raw_fd().unsigned_abs(),
            buffer: bytes.as_ptr().expose_provenance() as u64,
            bytes: bytes.len() as u64,
            offset: i64::try_from(at).unwrap_or(i64::MAX),
            ..Control::default()
        };
        let pointers = [std::ptr::from_ref(&block)];
        // SAFETY: the block, the pointer to it and the bytes live until the request has been waited for, below; `bytes` is only read.
        if unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1i64, pointers.as_ptr()) } != 1 {
            return Err(io::Error::last_os_error());
        }
        let mut event = Event::default();
        loop {
            let none = std::ptr::null::<libc::timespec>();
            // SAFETY: there is room for one event, and the kernel keeps nothing.
            match unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 1i64, 1i64, &raw mut event, none) } {
                1 => break,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The kernel may have the memory: there is no way back to its owner.
                _ => std::process::abort(),
            }
        }
        let failed = |_| io::Error::from_raw_os_error(i32::try_from(-event.result).unwrap_or(libc::EIO));
        u64::try_from(event.result).map_err(failed)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: nothing is in flight, see `write`.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_write() {
        let file = tempfile::tempfile().unwrap();
        let mut read = [0; 8];
        for polled in [false, true] {
            let n = Ring::new(polled).unwrap().write(file.as_fd(), b"uringuri", 0, !polled).unwrap();
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!((n, &read), (8, b"uringuri"));
            file.set_len(0).unwrap();
        }
        let n = Aio::new().unwrap().write(file.as_fd(), b"12345678", 0).unwrap();
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!((n, &read), (8, b"12345678"));
    }
}
