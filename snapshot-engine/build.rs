//! Embeds the eBPF object that `cargo xtask ebpf` builds.
//!
//! The engine is one file to install, so the programs travel inside it. They are built beforehand and not
//! from here, because a build script that runs another toolchain would make every `cargo check` need that
//! toolchain. Without the object an empty file is embedded and `track::object` says what is missing.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=SNAPSHOT_EBPF_OBJECT");
    let named = env::var_os("SNAPSHOT_EBPF_OBJECT").map(PathBuf::from);
    let object = match &named {
        Some(path) => path.clone(),
        None => workspace().join("target/bpf/snapshot-ebpf.o"),
    };
    let embedded = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?)
        .join("snapshot-ebpf.o");

    if object.is_file() {
        println!("cargo:rerun-if-changed={}", object.display());
        fs::copy(&object, &embedded)?;
        return Ok(());
    }
    if named.is_some() {
        // Whoever names an object wants that one: an engine without it would be a surprise.
        return Err(io::Error::other(format!(
            "SNAPSHOT_EBPF_OBJECT names {}, which is not a file",
            object.display()
        )));
    }
    // Cargo runs a script whose watched path is missing at every build, and compiles the engine again each
    // time. A directory that exists is quiet until the object appears in it.
    if let Some(directory) = object.parent() {
        fs::create_dir_all(directory)?;
        println!("cargo:rerun-if-changed={}", directory.display());
    }
    println!("cargo:warning=built without eBPF programs; run `cargo xtask ebpf` and build again");
    fs::write(embedded, [])
}

fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    package.parent().map(Path::to_path_buf).unwrap_or(package)
}
