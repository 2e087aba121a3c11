//! A command that does not end is ended: one of the peers that hangs must not keep the others waiting.

use std::io;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use snapshot_engine::kernel::signals;

/// No command that works takes as long: the slowest, a compressed difference of 1 GiB, takes 30 s on a machine with nothing else to do.
pub(super) const LIMIT: Duration = Duration::from_secs(240);
/// How soon a signal to us is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// Ends the commands that are run through it.
#[derive(Debug)]
pub(super) struct Guard {
    /// Who is running now.
    running: Sender<Option<Pid>>,
    /// Why one was killed.
    killed: Arc<Mutex<Option<String>>>,
}

/// Calls `f` with a guard for the commands it runs, each of which may take so long. Its thread is made here, by the caller's: one that has entered
/// another PID namespace can make none (`copy_process`, kernel/fork.c).
pub(super) fn guarded<T>(limit: Duration, f: impl FnOnce(&Guard) -> T) -> T {
    let (running, told) = channel();
    let killed = Arc::default();
    let guard = Guard { running, killed: Arc::clone(&killed) };
    std::thread::scope(|scope| {
        scope.spawn(move || watch(limit, &told, &killed));
        let value = f(&guard);
        // Ends the thread.
        drop(guard);
        value
    })
}

impl Guard {
    /// Runs a command to its end, and gives what it said as far as its output is piped. It must have a process group of its own, which is
    /// killed when the time is up, or when a signal asks the harness to stop; not for a signal that came before, so that what is cleared
    /// away then is.
    ///
    /// # Errors
    /// As `spawn`; `TimedOut` for one that was killed.
    pub(super) fn output(&self, command: &mut Command) -> io::Result<Output> {
        let child = command.spawn()?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let _ = self.running.send(group);
        let output = child.wait_with_output();
        let _ = self.running.send(None);
        match self.killed.lock().ok().and_then(|mut why| why.take()) {
            Some(why) => Err(io::Error::new(io::ErrorKind::TimedOut, why)),
            None => output,
        }
    }
}

/// Kills who runs too long, until nobody can be started any more.
fn watch(limit: Duration, told: &Receiver<Option<Pid>>, killed: &Mutex<Option<String>>) {
    let mut running = None;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(group) => running = group.map(|group| (group, Instant::now() + limit, signals::caught())),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let Some((group, deadline, before)) = running else { continue };
        let why = if Instant::now() >= deadline {
            format!("did not end within {limit:?} and was killed")
        } else if signals::caught() != before {
            "was killed, as a signal came".to_owned()
        } else {
            continue;
        };
        if let Ok(mut killed) = killed.lock() {
            *killed = Some(why);
        }
        // It may end at this very moment.
        let _ = kill_process_group(group, Signal::KILL);
        running = None;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[test]
    fn who_ends_is_heard_and_who_hangs_is_ended_with_his_children() {
        let run = |script: &str, limit| guarded(limit, |guard| guard.output(&mut shell(script)));
        let said = run("echo done", LIMIT).unwrap();
        assert!(said.status.success() && said.stdout == b"done\n");
        let began = Instant::now();
        // The child holds the pipe as well.
        let error = run("sleep 600 & sleep 600", Duration::from_millis(200)).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(60), "{error}");
        assert!(error.to_string().contains("did not end within"), "{error}");
    }
}
