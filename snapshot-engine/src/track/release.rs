//! The oldest kernel the tracker works on.

use super::Error;

/// The oldest kernel that the tests run on (`cargo xtask vm-test`). Somewhat older ones could not do it: `bpf_loop` came with 5.17,
/// `writeback_dirty_folio` with 5.18, and only since 6.1 a tracepoint's program is kept from running into itself on its CPU
/// (`__bpf_trace_run`, kernel/trace/bpf_trace.c), which is counted as a skip that voids a cut.
const OLDEST: (u32, u32) = (6, 1);

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Whether the running kernel is new enough.
///
/// # Errors
/// [`Error::OldKernel`].
pub fn check() -> Result<(), Error> {
    let io = |source| Error::Io { what: format!("{RELEASE} could not be read"), source };
    judge(std::fs::read_to_string(RELEASE).map_err(io)?.trim())
}

fn judge(release: &str) -> Result<(), Error> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => {
            Err(Error::OldKernel { found: release.to_owned(), oldest: format!("{}.{}", OLDEST.0, OLDEST.1) })
        }
        // What does not look like a version says nothing about the kernel.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_are_refused_by_name() {
        for fine in ["6.1.0-56-cloud-amd64", "6.12.117+deb12", "7.0", "strange"] {
            assert!(judge(fine).is_ok(), "{fine}");
        }
        for old in ["6.0.19", "5.15.0-91-generic", "4.18"] {
            let text = judge(old).unwrap_err().to_string();
            assert!(text.contains(old) && text.contains("6.1") && text.contains("--tracker none"), "{text}");
        }
    }

    #[test]
    fn this_kernel_is_new_enough() {
        check().unwrap();
    }
}
