//! Waiting until every CPU has left what it does with interrupts off.

use std::io;

/// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h).
const GLOBAL: libc::c_int = 1;

/// Waits for a grace period of RCU: on return every stretch of kernel code that ran without interrupts, or without preemption, when this was called is over (`synchronize_rcu`,
/// Documentation/RCU/Design/Requirements; on a single CPU there is none while we run, and the kernel does not wait). Some milliseconds.
///
/// # Errors
/// `EINVAL` on a kernel with CPUs that run without a tick (`nohz_full`), where the kernel does not offer it; `ENOSYS` without membarrier(2), also under a
/// filter of system calls.
pub fn grace_period() -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_ends() {
        // A kernel with nohz_full says no; nothing else may.
        if let Err(e) = super::grace_period() {
            assert!(matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)), "{e}");
        }
    }
}
