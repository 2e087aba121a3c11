//! Programs that the project builds for itself and keeps in its own directory.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt;
use crate::{shell, workspace};

/// What the tests call besides the engine: the program, and the package that has it.
const PACKAGED: [(&str, &str); 14] = [
    // Upper file systems on loop devices.
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    // A second source of containers beside the built-in demo runtime.
    ("runc", "runc"),
    ("mount", "mount"),
    // Real databases that are snapshot while they run, and that judge what was frozen.
    ("git", "git"),
    ("mdb_dump", "lmdb-utils"),
    ("redis-server", "redis-server"),
    ("sqlite3", "sqlite3"),
    ("veritysetup", "cryptsetup-bin"),
    // A registry to push to, one that pulls from it as others do, and the certificates between them.
    ("docker-registry", "docker-registry"),
    ("openssl", "openssl"),
    // The judges of OCI images.
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
];

/// What `cargo xtask vm-test` calls here or puts into its guests.
const GUESTS: [(&str, &str); 9] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("depmod", "kmod"),
    ("insmod", "kmod"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("ldd", "libc-bin"),
    ("strip", "binutils"),
];

/// What the pause is compared with, in the order to install it: a package may bring the program of a later row with it (Debian 12's docker.io
/// has the client, later ones have a package for it).
const PEERS: [(&str, &str); 7] = [
    ("runc", "runc"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("dockerd", "docker.io"),
    ("docker", "docker-cli"),
    ("podman", "podman"),
    ("conmon", "conmon"),
];

/// What the tests of the real runtimes need beyond these: the other low-level runtime, what enters the namespaces that hold them, and what a user's own docker
/// is started by.
const RUNTIMES: [(&str, &str); 4] =
    [("crun", "crun"), ("nsenter", "util-linux"), ("newuidmap", "uidmap"), ("rootlesskit", "rootlesskit")];

/// The user space of the tests' containers. Only the static build runs in an empty root, and its program
/// has the same name as the dynamic one, so the package is asked for and not the program.
const BUSYBOX: &str = "busybox-static";

/// PostgreSQL with pgbench and amcheck. Its programs lie outside the PATH, below the number of its version.
const POSTGRES: &str = "postgresql";

/// The judges of an image: nydus-image checks it, nydusd serves it.
const NYDUS: (&str, &str) = ("nydus-rs", "2.2.0");

/// What nydus's own build calls: it compiles zlib-ng with cmake and OpenSSL with perl and make.
const NYDUS_BUILD: [(&str, &str); 4] =
    [("cmake", "cmake"), ("make", "make"), ("c++", "g++"), ("perl", "perl")];

/// What `cargo xtask test` needs.
pub(super) fn ensure_for_tests() -> Result<()> {
    let mut packages = missing(&PACKAGED);
    packages.extend([BUSYBOX, POSTGRES]);
    let (package, version) = NYDUS;
    if !is_installed(package, version) {
        packages.extend(missing(&NYDUS_BUILD));
    }
    apt::install(&packages)?;
    cargo_install(package, version, |command| {
        command.arg("--locked");
    })?;
    eprintln!("setup: tests with {package} {version} from {}", workspace::tools_bin().display());
    Ok(())
}

/// What `cargo xtask test --tier runtimes` needs. Unlike a benchmark it has nothing to say without them: one that cannot be installed is an error.
pub(super) fn ensure_runtimes() -> Result<()> {
    apt::install(&[BUSYBOX])?;
    for (program, package) in PEERS.into_iter().chain(RUNTIMES) {
        if shell::which(program).is_none() {
            apt::add(&[package])?;
        }
    }
    Ok(())
}

/// What `cargo xtask vm-test` needs.
pub(super) fn ensure_for_guests() -> Result<()> {
    let mut packages = missing(&GUESTS);
    packages.push(BUSYBOX);
    packages.dedup();
    apt::install(&packages)
}

/// What the peers of the pause benchmark need. One that cannot be installed is told and missed, no more: its row says that it is absent.
pub(super) fn ensure_for_peers() {
    let tell = |error| eprintln!("setup: going on without it: {error:#}");
    let _ = apt::add(&[BUSYBOX]).map_err(tell);
    for (program, package) in PEERS {
        // Looked for only now: an earlier package may have brought it.
        if shell::which(program).is_none() {
            let _ = apt::add(&[package]).map_err(tell);
        }
    }
}

/// `cargo install` into the tools directory. Cargo would find out by itself that a version is there
/// already, but only after asking the registry; its own list tells it without the network.
pub(super) fn cargo_install(package: &str, version: &str, more: impl FnOnce(&mut Command)) -> Result<()> {
    if is_installed(package, version) {
        return Ok(());
    }
    let tools = workspace::tools();
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    // Two clones that set themselves up at once would both build for minutes. The lock goes with the file.
    let lock = fs::File::create(tools.join("setup.lock")).context("making the lock of the tools")?;
    lock.lock().context("waiting for another setup to end")?;
    if is_installed(package, version) {
        return Ok(());
    }
    let mut command = shell::cargo();
    // Not below the workspace: its configuration and toolchain file are for its own packages.
    command.current_dir(&tools);
    command.args(["install", package, "--quiet", "--force", "--version", version, "--root"]).arg(&tools);
    more(&mut command);
    shell::run(&mut command).with_context(|| format!("{package} {version} is needed and could not be built"))
}

fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let absent = programs.iter().filter(|(program, _)| shell::which(program).is_none());
    absent.map(|(_, package)| *package).collect()
}

fn is_installed(package: &str, version: &str) -> bool {
    let list = fs::read_to_string(workspace::tools().join(".crates.toml")).unwrap_or_default();
    is_listed(&list, package, version)
}

fn is_listed(list: &str, package: &str, version: &str) -> bool {
    let name = format!("\"{package} {version} ");
    list.lines().any(|line| line.starts_with(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_version_is_recognised_in_cargos_list() {
        let list = "[v1]\n\"bpf-linker 0.13.0 (registry+https://example.org)\" = [\"bpf-linker\"]\n";
        assert!(is_listed(list, "bpf-linker", "0.13.0"));
        assert!(!is_listed(list, "bpf-linker", "0.13"));
        assert!(!is_listed(list, "linker", "0.13.0"));
    }
}
