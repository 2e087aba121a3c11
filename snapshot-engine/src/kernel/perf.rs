//! Has this task been seen in user mode? A sampler that answers for tasks that make no system calls.
//!
//! A software clock event of one task that samples in user mode only (`exclude_kernel`; `perf_swevent_hrtimer` in
//! kernel/events/core.c drops samples whose registers are the kernel's). The first record in its ring is the answer.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct perf_event_attr` as of PERF_ATTR_SIZE_VER0 (linux/perf_event.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}
const _: () = assert!(size_of::<Attributes>() == 64);

const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const SAMPLE_TID: u64 = 2;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
/// Nanoseconds of the task's running time between samples.
const PERIOD: u64 = 100_000;
/// PERF_FLAG_FD_CLOEXEC.
const FD_CLOEXEC: libc::c_ulong = 8;
/// `perf_event_mmap_page.data_head`.
const DATA_HEAD: usize = 1024;
const RING: usize = 2 * 4096;

/// A sampler of one task.
#[derive(Debug)]
pub struct UserSampler {
    ring: NonNull<u8>,
    // Closed after the ring is unmapped.
    _event: OwnedFd,
}

impl UserSampler {
    /// Starts sampling a task.
    ///
    /// # Errors
    /// As `perf_event_open(2)`; `ESRCH` when the task is gone.
    pub fn start(tid: u32) -> io::Result<UserSampler> {
        let attributes = Attributes {
            kind: SOFTWARE,
            size: 64,
            config: CPU_CLOCK,
            sample_period: PERIOD,
            sample_type: SAMPLE_TID,
            flags: EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR,
            ..Attributes::default()
        };
        let tid = libc::pid_t::try_from(tid).map_err(io::Error::other)?;
        // SAFETY: the attributes are as long as their `size` says; the other arguments are plain numbers.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, tid, -1, -1, FD_CLOEXEC)
        };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made for us alone.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a new mapping of the event's ring; no existing memory is affected.
        let ring = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                RING,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                event.as_fd(),
                0,
            )
        }?;
        let ring = NonNull::new(ring.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(UserSampler { ring, _event: event })
    }

    /// Whether the task was in user mode at some moment since [`UserSampler::start`].
    #[must_use]
    pub fn seen(&self) -> bool {
        // SAFETY: DATA_HEAD lies inside the mapping.
        let head = unsafe { self.ring.add(DATA_HEAD) }.cast::<AtomicU64>();
        // SAFETY: initialised by the kernel, aligned, mapped as long as `self`; the kernel writes it, so it is read atomically.
        let head = unsafe { head.as_ref() };
        head.load(Ordering::Acquire) != 0
    }
}

impl Drop for UserSampler {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `start`; no reference into it outlives a call.
        let unmapped = unsafe { rustix::mm::munmap(self.ring.as_ptr().cast(), RING) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn sees_a_computing_thread_and_not_a_sleeping_one() {
        let (tx, rx) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            tx.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = stopped.recv();
        });
        let sleeper = UserSampler::start(u32::try_from(rx.recv().unwrap()).unwrap());
        let Ok(sleeper) = sleeper else { return eprintln!("perf events are not allowed here: not tested") };
        let me = UserSampler::start(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let mut x = 0u64;
        while !me.seen() && Instant::now() < until {
            for i in 0..100_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
        }
        assert!(me.seen());
        assert!(!sleeper.seen());
        drop(stop);
    }
}
