//! What a thread, or a command, has cost so far.

use std::time::Duration;

/// How often the calling thread has lost its processor although it wanted to go on (`ru_nivcsw`, getrusage(2)); 0 if the kernel does not say.
#[must_use]
pub fn involuntary_switches() -> u64 {
    of(libc::RUSAGE_THREAD).map_or(0, |usage| u64::try_from(usage.ru_nivcsw).unwrap_or(0))
}

/// Processor time of the child processes that were waited for, theirs included; 0 if the kernel does not say.
#[must_use]
pub fn children() -> Duration {
    let time = |t: libc::timeval| {
        Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_usec * 1000).unwrap_or(0))
    };
    of(libc::RUSAGE_CHILDREN).map_or(Duration::ZERO, |usage| time(usage.ru_utime) + time(usage.ru_stime))
}

fn of(who: libc::c_int) -> Option<libc::rusage> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one `rusage` to a place that is valid for it.
    (unsafe { libc::getrusage(who, &raw mut usage) } == 0).then_some(usage)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_grows() {
        let before = super::involuntary_switches();
        assert!(super::involuntary_switches() >= before);
    }

    #[test]
    fn a_command_is_counted_once_it_was_waited_for() {
        let before = super::children();
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", busy]).status().unwrap().success());
        assert!(super::children() > before);
    }
}
