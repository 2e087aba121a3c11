//! A process whose only job is to thaw a container if the engine dies or hangs (G4).
//!
//! ```text
//!   engine                          watchdog (forked, own session)
//!   arm: 'F' into the pipe  ─────►  waits for the next byte, at most `limit`
//!   freeze .. thaw
//!   disarm: 'T'             ─────►  waits for ever
//!   dies, anywhere          ─────►  end of file: thaws if armed, exits
//! ```
//!
//! Armed before the freeze is written and disarmed after the thaw was, so there is no instruction at which the engine's death leaves
//! the container frozen. A thaw of a container that is not frozen does nothing. The watchdog corrects the note ([`super::held`]) that is left
//! for the case that both are killed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::held::{Note, THAWED};

/// The watchdog of one freezer.
#[derive(Debug)]
pub struct Watchdog {
    pipe: Option<OwnedFd>,
    child: rustix::process::Pid,
}

impl Watchdog {
    /// Starts the process. `control` is the freezer's file, `thaw` what thaws when written to it, `limit` the longest freeze, `note` what says
    /// afterwards that nothing is frozen any more.
    ///
    /// # Errors
    /// As `pipe2(2)` and `fork(2)`.
    pub fn start(
        control: BorrowedFd<'_>,
        thaw: &'static [u8],
        limit: Duration,
        note: Option<&Note>,
    ) -> io::Result<Watchdog> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (control_fd, read_fd) = (control.as_raw_fd(), read.as_raw_fd());
        // No descriptor is -1, and a write to it fails, which is as good.
        let note_fd = note.map_or(-1, |note| std::os::fd::AsFd::as_fd(note).as_raw_fd());
        let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the child of a process with threads may only use async-signal-safe calls until it exits: `watch` makes
        // raw system calls alone, allocates nothing, takes no lock and never returns.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => watch(read_fd, control_fd, note_fd, thaw, limit),
            _ => {
                let child = rustix::process::Pid::from_raw(pid)
                    .ok_or_else(|| io::Error::other("fork gave no pid"))?;
                Ok(Watchdog { pipe: Some(write), child })
            }
        }
    }

    /// From now on the engine's death thaws. To be called before freezing.
    ///
    /// # Errors
    /// When the watchdog is gone: the container must not be frozen then.
    pub fn arm(&self) -> io::Result<()> {
        self.tell(b"F")
    }

    /// The container is thawed again.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn disarm(&self) -> io::Result<()> {
        self.tell(b"T")
    }

    fn tell(&self, what: &[u8]) -> io::Result<()> {
        let pipe = self.pipe.as_ref().ok_or_else(|| io::Error::other("the watchdog was stopped"))?;
        // Rust programs ignore SIGPIPE, so a dead reader is EPIPE.
        rustix::io::write(pipe, what)?;
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pipe = None;
        // End of file: it exits at once. An error means that somebody else waited for it.
        let _ = rustix::process::waitpid(Some(self.child), rustix::process::WaitOptions::empty());
    }
}

/// The child. Raw calls only; see `start`.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one promise for all: plain system calls, and nothing else"
)]
fn watch(pipe: i32, control: i32, note: i32, thaw: &[u8], limit: libc::c_int) -> ! {
    // SAFETY: system calls on plain numbers and on buffers that live here. Closing every other descriptor matters: this
    // process would otherwise keep the engine's BPF programs alive after its death, and its own pipe open.
    unsafe {
        libc::setsid();
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        // Out of the way first: they may themselves be 0, 1 or 2.
        let (p, c) = (libc::fcntl(pipe, libc::F_DUPFD, 3), libc::fcntl(control, libc::F_DUPFD, 3));
        let n = libc::fcntl(note, libc::F_DUPFD, 3);
        libc::dup2(p, 0);
        libc::dup2(c, 1);
        libc::close(2);
        libc::dup2(n, 2);
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        let mut armed = false;
        loop {
            let mut poll = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
            let ready = libc::poll(&raw mut poll, 1, if armed { limit } else { -1 });
            if ready == 0 {
                // The engine hangs (or was stopped) with the container frozen.
                libc::pwrite(1, thaw.as_ptr().cast(), thaw.len(), 0);
                libc::pwrite(2, THAWED.as_ptr().cast(), 1, 0);
                armed = false;
                continue;
            }
            let mut byte = 0u8;
            match libc::read(0, (&raw mut byte).cast(), 1) {
                1 => armed = byte == b'F',
                0 => break,
                _ => {}
            }
        }
        if armed {
            libc::pwrite(1, thaw.as_ptr().cast(), thaw.len(), 0);
        }
        // Also unarmed: the engine may have been killed between the thaw and its own correction of the note.
        libc::pwrite(2, THAWED.as_ptr().cast(), 1, 0);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn written(mut file: std::fs::File) -> String {
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn thaws_when_the_engine_goes_away_armed_and_only_then() {
        let control = tempfile::tempfile().unwrap();
        let watchdog = Watchdog::start(control.as_fd(), b"0", Duration::from_secs(60), None).unwrap();
        watchdog.arm().unwrap();
        watchdog.disarm().unwrap();
        drop(watchdog);
        assert_eq!(written(control.try_clone().unwrap()), "");
        let watchdog = Watchdog::start(control.as_fd(), b"0", Duration::from_secs(60), None).unwrap();
        watchdog.arm().unwrap();
        drop(watchdog);
        assert_eq!(written(control), "0");
    }

    #[test]
    fn corrects_the_note_when_it_has_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        std::fs::write(&control, "1").unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&control).unwrap();
        let note = Note::write(dir.path(), &control, b"0").unwrap();
        let watchdog = Watchdog::start(file.as_fd(), b"0", Duration::from_secs(60), Some(&note)).unwrap();
        note.set(true).unwrap();
        watchdog.arm().unwrap();
        assert!(std::fs::read(dir.path().join("held")).unwrap().starts_with(b"F"));
        drop(watchdog);
        assert!(std::fs::read(dir.path().join("held")).unwrap().starts_with(b"-"));
        assert_eq!(std::fs::read(&control).unwrap(), b"0");
    }

    #[test]
    fn thaws_when_the_engine_hangs() {
        let control = tempfile::tempfile().unwrap();
        let watchdog = Watchdog::start(control.as_fd(), b"0", Duration::from_millis(20), None).unwrap();
        watchdog.arm().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(written(control.try_clone().unwrap()), "0");
        watchdog.disarm().unwrap();
    }
}
