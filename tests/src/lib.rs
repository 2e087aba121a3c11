//! Shared helpers of the integration tests.
//!
//! ```text
//! engine    the real binary as a process with a time limit
//! running   a demo container that is stopped whatever happens, and what can be asked of it
//! listing   everything that can be known of a tree, to compare before and after
//! host      what an engine could leave on the machine: programs, processes, mounts
//! ```

pub mod engine;
pub mod host;
pub mod listing;
pub mod running;

/// Whether the tests may run; those that cannot say so, and fail where everything must be tested.
#[must_use]
pub fn root_or_skip() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "root is needed, and this is CI");
    eprintln!("skipped: needs root");
    false
}
