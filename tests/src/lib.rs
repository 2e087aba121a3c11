//! Shared helpers of the integration tests.
//!
//! ```text
//! bench     file systems, containers and sessions that clean up after themselves
//! worker    a process inside a container that does as it is told
//! causal    writers with a known order, and the judge of a frozen tree
//! engine    the real binary as a process with a time limit
//! hostile   what a container does to a tree while it is read
//! inside    programs of the host inside a container
//! database  real databases, their clients, and what they say of a frozen tree
//! torture   writers of every kind, and the checker of what is frozen while they write
//! raw       io_uring and the kernel's AIO for the writers
//! running   a demo container that is stopped whatever happens, and what can be asked of it
//! listing   everything that can be known of a tree, to compare before and after
//! images    a tree of everything, and images of it
//! made      the image a command has made, beside what it was made of
//! judges    Nydus' own tools
//! building  how an image is built and compared
//! layered   layers as containers make them, by a real overlay mount
//! volume    a directory of the host in a container, as a runtime mounts a volume
//! unpacked  OCI images unpacked: by a model of our own, by umoci, by tar
//! everything a tree with every kind of entry, to compare images with
//! inmate    a process of the host in a container's cgroup, for what needs more than a container has: stopped, traced, held up, forking
//! registry  a real registry on the loopback, and a wire to it that can be slow, watched and cut
//! silent    a file system that never answers: whoever asks it sleeps uninterruptibly
//! host      what an engine could leave on the machine: programs, processes, mounts
//! ```

pub mod bench;
pub mod building;
pub mod causal;
pub mod database;
pub mod engine;
pub mod everything;
pub mod host;
pub mod hostile;
pub mod images;
pub mod inmate;
pub mod inside;
pub mod judges;
pub mod layered;
pub mod listing;
pub mod made;
pub mod raw;
pub mod registry;
pub mod running;
pub mod silent;
pub mod torture;
pub mod unpacked;
pub mod volume;
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
