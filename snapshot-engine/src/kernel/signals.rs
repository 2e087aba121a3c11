//! SIGINT, SIGTERM and SIGHUP as a flag that is looked at between steps.
//!
//! ```text
//!   first signal   remembered; the pipeline sees it between two steps, undoes what it did, and the command ends with 128 + signal
//!   second signal  the process ends at once with 128 + signal; what it leaves the next command removes
//! ```
//!
//! Guards run only when a function returns, and the default action of these signals returns from none. A handler that only stores a number is
//! async-signal-safe; a thread in `sigwait` was rejected because a blocked mask is inherited by every process spawned.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal caught; 0 while there is none.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(signal: libc::c_int) {
    if CAUGHT.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        // SAFETY: `_exit` is async-signal-safe (signal-safety(7)) and has no preconditions.
        unsafe { libc::_exit(128 + signal) }
    }
}

/// Installs the handlers. A signal that is ignored (`nohup`) stays ignored. System calls are restarted.
///
/// # Errors
/// As `sigaction(2)`.
pub fn install() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut old = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null new action only queries; `old` is valid for a write of one `sigaction`.
        if unsafe { libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeroes is a valid `sigaction`, and the call above has overwritten it with another valid one.
        let mut action = unsafe { old.assume_init() };
        if action.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised, its handler has the signature of one without SA_SIGINFO, lives as long as the program,
        // and calls only async-signal-safe functions.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The signal that asked this process to end, if one did.
#[must_use]
pub fn caught() -> Option<i32> {
    match CAUGHT.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}
