//! Shared helpers of the integration tests.
//!
//! ```text
//! bench     file systems, containers and sessions that clean up after themselves
//! worker    a process inside a container that does as it is told
//! causal    writers with a known order, and the judge of a frozen tree
//! engine    the real binary as a process with a time limit
//! running   a demo container that is stopped whatever happens, and what can be asked of it
//! listing   everything that can be known of a tree, to compare before and after
//! judges    Nydus' own tools
//! host      what an engine could leave on the machine: programs, processes, mounts
//! ```

pub mod bench;
pub mod causal;
pub mod engine;
pub mod host;
pub mod judges;
pub mod listing;
pub mod running;
pub mod worker;

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
