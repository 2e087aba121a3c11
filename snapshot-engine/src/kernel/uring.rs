//! One io_uring with a pool of registered buffers: the bulk-data path of capture and chunking.
//!
//! ```text
//!   take() -> Buf --read()/write()--> kernel --completed()--> Completion { buf, result } --> release()
//! ```
//!
//! A [`Buf`] is a token for one registered buffer. It is neither `Clone` nor `Copy`: submitting moves it into
//! the ring and its completion gives it back, so user code cannot look at bytes the kernel may be writing.
//! Only READ_FIXED and WRITE_FIXED are ever submitted.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use io_uring::{IoUring, opcode, types};

/// A token for one registered buffer of a [`Ring`].
#[derive(Debug)]
pub struct Buf {
    index: u16,
}

/// A finished read or write: its tag, its buffer back, and the bytes moved.
#[derive(Debug)]
pub struct Completion {
    /// What the caller passed as `user`.
    pub user: u64,
    /// The buffer, ready for use again.
    pub buf: Buf,
    /// Bytes moved; short counts are the caller's to continue.
    pub result: io::Result<u32>,
}

/// The file registered last with a ring.
#[derive(Debug)]
pub struct RegisteredFile(());

/// An io_uring and its registered buffers.
pub struct Ring {
    // Dropped first: closing the ring waits for no I/O, so `Drop` below reaps before the pool goes.
    uring: IoUring,
    pool: NonNull<u8>,
    pool_len: usize,
    buffer_size: usize,
    free: Vec<Buf>,
    in_flight: Box<[Option<u64>]>,
    pending: usize,
    /// There is a slot for a registered file.
    file_slot: bool,
}

// SAFETY: the pool is memory owned by this value alone; nothing in it is tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring of `buffers` registered buffers of `buffer_size` bytes (a multiple of 4096), which is also its
    /// queue depth.
    ///
    /// # Errors
    /// When the kernel refuses the ring (io_uring disabled: `kernel.io_uring_disabled`), or the memory.
    pub fn new(buffers: u16, buffer_size: usize) -> io::Result<Ring> {
        assert!(buffers > 0 && buffer_size > 0 && buffer_size.is_multiple_of(4096));
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(u32::from(buffers))
            .or_else(|_| IoUring::new(u32::from(buffers)))?;
        let pool_len = usize::from(buffers) * buffer_size;
        // SAFETY: a fresh private anonymous mapping; no existing memory is affected.
        let pool = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                pool_len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        }?;
        let pool =
            NonNull::new(pool.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        let mut ring = Ring {
            uring,
            pool,
            pool_len,
            buffer_size,
            free: (0..buffers).rev().map(|index| Buf { index }).collect(),
            in_flight: vec![None; usize::from(buffers)].into_boxed_slice(),
            pending: 0,
            file_slot: false,
        };
        let iovecs: Vec<libc::iovec> = (0..usize::from(buffers))
            .map(|i| libc::iovec { iov_base: ring.address(i).cast(), iov_len: buffer_size })
            .collect();
        // SAFETY: each iovec names memory of the pool, which outlives the ring: `Drop` reaps all requests and
        // unmaps the pool only then.
        unsafe { ring.uring.submitter().register_buffers(&iovecs) }?;
        // Since 5.19; without it reads go by descriptor.
        ring.file_slot = ring.uring.submitter().register_files_sparse(1).is_ok();
        Ok(ring)
    }

    fn address(&self, index: usize) -> *mut u8 {
        // SAFETY: `index` is below the number of buffers, so the offset stays inside the mapping.
        unsafe { self.pool.as_ptr().add(index * self.buffer_size) }
    }

    /// Bytes a buffer holds.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.buffer_size
    }

    /// A free buffer, if there is one.
    pub fn take(&mut self) -> Option<Buf> {
        self.free.pop()
    }

    /// Gives a buffer back to the pool.
    pub fn release(&mut self, buf: Buf) {
        self.free.push(buf);
    }

    /// Requests submitted and not yet returned by [`Ring::completed`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending
    }

    /// The bytes of a buffer the caller holds.
    #[must_use]
    pub fn bytes<'a>(&'a self, buf: &'a Buf) -> &'a [u8] {
        // SAFETY: in the pool's bounds; `buf` is held by the caller, so no request on it is in flight and
        // nothing writes to it while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.address(usize::from(buf.index)), self.buffer_size) }
    }

    /// The bytes of a buffer the caller holds, to fill.
    pub fn bytes_mut<'a>(&'a mut self, buf: &'a mut Buf) -> &'a mut [u8] {
        // SAFETY: as in `bytes`, and the token is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address(usize::from(buf.index)), self.buffer_size) }
    }

    /// Queues a read of `len` bytes at `offset` of `fd` into the buffer's bytes from `at` on. `fd` must stay open until the completion.
    ///
    /// # Errors
    /// When the kernel refuses the submission.
    pub fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        buf: Buf,
        at: usize,
        len: usize,
        user: u64,
    ) -> io::Result<()> {
        let (address, len32) = self.span(&buf, at, len);
        let entry = opcode::ReadFixed::new(types::Fd(fd.as_raw_fd()), address, len32, buf.index)
            .offset(offset)
            .build();
        self.push(&entry, buf, user)
    }

    /// Registers a file that many reads will be made of, so that the kernel looks its descriptor up once and not for each. Replaces the last one:
    /// no read of that may be in flight. The ring holds the file until the next one, or [`Ring::forget_file`].
    ///
    /// # Errors
    /// When the kernel has no place for it: then [`Ring::read`] is the way.
    pub fn register_file(&mut self, fd: BorrowedFd<'_>) -> io::Result<RegisteredFile> {
        if !self.file_slot {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.uring.submitter().register_files_update(0, &[fd.as_raw_fd()])?;
        Ok(RegisteredFile(()))
    }

    /// Lets go of the registered file.
    pub fn forget_file(&mut self, _: RegisteredFile) {
        if self.uring.submitter().register_files_update(0, &[-1]).is_err() {
            tracing::debug!("a registered file is held until the next one");
        }
    }

    /// As [`Ring::read`], of the registered file.
    ///
    /// # Errors
    /// When the kernel refuses the submission.
    pub fn read_registered(
        &mut self,
        _: &RegisteredFile,
        offset: u64,
        buf: Buf,
        len: usize,
        user: u64,
    ) -> io::Result<()> {
        let (address, len32) = self.span(&buf, 0, len);
        let entry = opcode::ReadFixed::new(types::Fixed(0), address, len32, buf.index).offset(offset).build();
        self.push(&entry, buf, user)
    }

    /// Queues a write of the buffer's `len` bytes from `at` on to `offset` of `fd`. `fd` must stay open until the completion.
    ///
    /// # Errors
    /// When the kernel refuses the submission.
    pub fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        buf: Buf,
        at: usize,
        len: usize,
        user: u64,
    ) -> io::Result<()> {
        let (address, len32) = self.span(&buf, at, len);
        let entry = opcode::WriteFixed::new(types::Fd(fd.as_raw_fd()), address, len32, buf.index)
            .offset(offset)
            .build();
        self.push(&entry, buf, user)
    }

    fn span(&self, buf: &Buf, at: usize, len: usize) -> (*mut u8, u32) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.buffer_size), "span outside its buffer");
        // SAFETY: `at` is inside the buffer, checked above.
        let address = unsafe { self.address(usize::from(buf.index)).add(at) };
        (address, u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry, buf: Buf, user: u64) -> io::Result<()> {
        let index = usize::from(buf.index);
        let entry = entry.clone().user_data(index as u64);
        loop {
            // SAFETY: the entry's memory is a registered buffer whose token moved into this ring with `buf`; it is
            // handed back only by the completion, and the pool outlives every request (see `Drop`).
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                break;
            }
            self.uring.submit()?;
        }
        self.in_flight[index] = Some(user);
        self.pending += 1;
        Ok(())
    }

    /// Submits what is queued and waits until at least one request has finished, unless none is in flight.
    ///
    /// # Errors
    /// When the kernel refuses the submission.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.pending == 0 {
            return Ok(());
        }
        loop {
            match self.uring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Submits what is queued without waiting.
    ///
    /// # Errors
    /// When the kernel refuses the submission.
    pub fn submit(&mut self) -> io::Result<()> {
        self.uring.submit().map(drop)
    }

    /// The next finished request that is there, without waiting. `None` means not yet, not the end: it is no iterator.
    pub fn completed(&mut self) -> Option<Completion> {
        let entry = self.uring.completion().next()?;
        let index = usize::try_from(entry.user_data()).ok()?;
        let user = self.in_flight.get_mut(index)?.take()?;
        self.pending -= 1;
        let result = match entry.result() {
            n if n >= 0 => Ok(n.unsigned_abs()),
            e => Err(io::Error::from_raw_os_error(-e)),
        };
        Some(Completion { user, buf: Buf { index: u16::try_from(index).unwrap_or(u16::MAX) }, result })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write into the pool: reap everything before it is unmapped.
        while self.pending > 0 {
            if self.wait().is_err() {
                // The pool is leaked rather than unmapped under requests that may still run.
                return;
            }
            while self.completed().is_some() {}
        }
        // SAFETY: the mapping made in `new`; no request is in flight and no borrow of it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.pool.as_ptr().cast(), self.pool_len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn reads_and_writes_through_registered_buffers() -> io::Result<()> {
        let mut source = tempfile::tempfile()?;
        let data: Vec<u8> = (0..40_000u32).flat_map(u32::to_le_bytes).collect();
        source.write_all(&data)?;
        let mut copy = tempfile::tempfile()?;
        let mut ring = Ring::new(4, 8192)?;
        let mut at = 0usize;
        let mut done = 0usize;
        let registered = ring.register_file(source.as_fd())?;
        while done < data.len() {
            while at < data.len() {
                let Some(buf) = ring.take() else { break };
                let len = (data.len() - at).min(ring.buffer_size());
                if (at / len).is_multiple_of(2) {
                    ring.read(source.as_fd(), at as u64, buf, 0, len, at as u64)?;
                } else {
                    ring.read_registered(&registered, at as u64, buf, len, at as u64)?;
                }
                at += len;
            }
            ring.wait()?;
            while let Some(Completion { user, buf, result }) = ring.completed() {
                let n = result? as usize;
                if user & (1 << 63) == 0 {
                    ring.write(copy.as_fd(), user, buf, 0, n, user | 1 << 63)?;
                } else {
                    done += n;
                    ring.release(buf);
                }
            }
        }
        ring.forget_file(registered);
        let mut got = Vec::new();
        copy.rewind()?;
        copy.read_to_end(&mut got)?;
        assert_eq!(got, data);
        Ok(())
    }
}
