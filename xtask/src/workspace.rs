//! Where things lie.

use std::path::{Path, PathBuf};

/// The root of the workspace this task was built from.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The eBPF programs' own target directory: another compiler, other flags, and no waiting for the lock of
/// the ordinary one. Always below the workspace, where `snapshot-engine/build.rs` looks.
pub(crate) fn bpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// The object that the engine embeds.
pub(crate) fn bpf_object() -> PathBuf {
    bpf_target().join("snapshot-ebpf.o")
}

/// Tools that the project builds for itself. Outside `target`, because they take minutes to build: they
/// outlive `cargo clean` and serve every clone.
pub(crate) fn tools() -> PathBuf {
    let named = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("SNAPSHOT_TOOLS").unwrap_or_else(|| {
        let cache = named("XDG_CACHE_HOME")
            .or_else(|| named("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        cache.join("snapshot-engine/tools")
    })
}

/// Where `cargo install --root` puts the tools' programs.
pub(crate) fn tools_bin() -> PathBuf {
    tools().join("bin")
}
