//! Priority and memory of the thread that runs the window.

use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Above all that has no reason to be quicker than a container's writers.
const PRIORITY: libc::c_int = 50;

/// Raises the calling thread to real-time priority until it is dropped; best effort.
#[derive(Debug)]
pub struct RealTime {
    raised: bool,
}

impl RealTime {
    /// Asks for SCHED_FIFO. It may be refused (no CAP_SYS_NICE, or a real-time budget of 0 for our cgroup under
    /// RT_GROUP_SCHED): then the thread stays as it is.
    #[must_use]
    pub fn raise() -> RealTime {
        RealTime { raised: schedule(libc::SCHED_FIFO, PRIORITY).is_ok() }
    }

    /// Whether it was granted.
    #[must_use]
    pub fn granted(&self) -> bool {
        self.raised
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if self.raised && schedule(libc::SCHED_OTHER, 0).is_err() {
            tracing::warn!("the thread could not be given its usual priority back");
        }
    }
}

/// The calling thread without real-time priority until it is dropped: for who waits for tasks that may need this very core.
#[derive(Debug)]
pub struct Aside {
    raised: bool,
}

impl Aside {
    /// Steps aside. Nothing happens to a thread that has no real-time priority.
    #[must_use]
    pub fn step() -> Aside {
        // SAFETY: pid 0 is the calling thread; the call has no other effect than its result.
        let policy = unsafe { libc::sched_getscheduler(0) };
        Aside { raised: policy == libc::SCHED_FIFO && schedule(libc::SCHED_OTHER, 0).is_ok() }
    }

    /// Lets whoever waits for this core run, and says how long he did.
    pub fn yield_now(&self) -> Duration {
        let began = Instant::now();
        std::thread::yield_now();
        began.elapsed()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.raised {
            // Refused: the thread goes on as others do. Nothing is logged, as somebody may be held.
            let _ = schedule(libc::SCHED_FIFO, PRIORITY);
        }
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: pid 0 is the calling thread; the parameter is read during the call only.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Memory that is present and stays present: writing to it faults never.
#[derive(Debug)]
pub struct Locked {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: owned memory, reached through `&self` and `&mut self` only.
unsafe impl Send for Locked {}

impl Locked {
    /// Allocates, touches and locks `len` bytes. If locking is refused (RLIMIT_MEMLOCK) the pages are present all the same.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(len: usize) -> io::Result<Locked> {
        let len = len.next_multiple_of(4096);
        // SAFETY: a new private mapping; no existing memory is affected.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::POPULATE,
            )
        }?;
        // SAFETY: exactly the mapping just made.
        let locked = unsafe { rustix::mm::mlock(at, len) };
        if let Err(e) = locked {
            tracing::debug!(%e, "the arena could not be locked");
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(Locked { at, len })
    }
}

impl std::ops::Deref for Locked {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is this long, initialised to zero by the kernel, and owned by `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no borrow outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
