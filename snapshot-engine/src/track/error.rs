//! Why there is no tracker.

use std::path::PathBuf;

/// Why the tracker could not be started or went wrong. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine was built without the programs.
    #[error(transparent)]
    Object(#[from] super::object::Missing),
    /// The kernel describes no types.
    #[error(
        "this kernel offers no BTF at {path} ({why}); it needs CONFIG_DEBUG_INFO_BTF=y. Without it use `--tracker none`: the container then stands still while everything is copied"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The kernel is older than the tracker was made for.
    #[error(
        "the tracker needs Linux {oldest} or newer, and this is {found}; use `--tracker none`: the container then stands still while everything is copied"
    )]
    OldKernel {
        /// The running kernel's release.
        found: String,
        /// The oldest it works on.
        oldest: String,
    },
    /// A structure or field the programs read does not exist.
    #[error(
        "this kernel has no `{path}`, which the tracker reads; use `--tracker none`, and please report the kernel's version"
    )]
    NoField {
        /// `structure.field`.
        path: String,
    },
    /// A tracepoint without which events would be lost.
    #[error(
        "this kernel has no tracepoint `{name}`, without which changes on {fs} would be missed; use `--tracker none`"
    )]
    NoTracepoint {
        /// The tracepoint.
        name: &'static str,
        /// The file system.
        fs: String,
    },
    /// A kernel function without which events would be lost.
    #[error(
        "this kernel has no function `{name}` {why}, without which changes on {fs} would be missed; use `--tracker none`"
    )]
    NoFunction {
        /// The function.
        name: &'static str,
        /// In which respect.
        why: &'static str,
        /// The file system.
        fs: String,
    },
    /// The kernel refuses programs on its functions.
    #[error(
        "the container's upperdir lies on {fs}, which the tracker sees through fentry programs only, and this kernel refuses those, as hardened hosts do (lockdown: /sys/kernel/security/lockdown). Use `--tracker none`, or a layer store on ext4 or xfs"
    )]
    FentryRefused {
        /// The file system.
        fs: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tracepoint with other arguments than the programs read.
    #[error(
        "this kernel's tracepoint `{name}` passes ({passed}) where ({expected}) is read; use `--tracker none`, and please report the kernel's version"
    )]
    Arguments {
        /// The tracepoint.
        name: &'static str,
        /// What it passes.
        passed: String,
        /// What the program expects.
        expected: &'static str,
    },
    /// No backend for this file system.
    #[error(
        "the container's upperdir lies on {fs}; the tracker knows ext4 (ext2, ext3) and xfs, and where the kernel allows fentry programs btrfs and tmpfs. Use `--tracker none`: the container then stands still while everything is copied"
    )]
    UnsupportedFileSystem {
        /// As mountinfo names it.
        fs: String,
    },
    /// A processor whose calls we cannot read.
    #[error("no tracker for {name}: x86_64 and aarch64 are known; use `--tracker none`")]
    Architecture {
        /// As Rust names it.
        name: &'static str,
    },
    /// The kernel refuses BPF.
    #[error(
        "the kernel refuses to load BPF programs: root with CAP_SYS_ADMIN is needed (in a user namespace it does not count)"
    )]
    Permission(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// aya or the verifier says no.
    #[error("the tracker's program `{what}` could not be loaded")]
    Load {
        /// The program or map.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More targets than the control page holds, or on different file systems.
    #[error(
        "one cut can span {max} containers whose upperdirs lie on one file system; snapshot the others separately"
    )]
    Targets {
        /// The limit.
        max: usize,
    },
    /// Something else.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
