//! A compiler and a linker for the eBPF programs: found, or installed, and in either case tried.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{apt, tools};
use crate::shell;
use crate::toolchain::{Compiler, TARGET, Toolchain};

const LINKER_VERSION: &str = "0.13.0";

/// The versions of LLVM that this bpf-linker can be built for, as its cargo features name them.
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];

/// Debian's second Rust (the one browsers are built with) and its core library for the BPF target.
const DEBIAN: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Ends with a toolchain whose trial succeeded, or says what is missing.
pub(super) fn ensure() -> Result<()> {
    if let Some(toolchain) = working() {
        return chosen(&toolchain);
    }
    let compiler = match Compiler::all().into_iter().next() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    install_linker(&compiler)?;
    match working() {
        Some(toolchain) => chosen(&toolchain),
        // The trial of the one we would use tells why none works.
        None => Toolchain::find()?.trial().context("the eBPF toolchain is complete but does not work"),
    }
}

fn working() -> Option<Toolchain> {
    let candidates = Toolchain::candidates();
    let tried = candidates.iter().find(|toolchain| toolchain.is_tried());
    tried.or_else(|| candidates.iter().find(|toolchain| toolchain.trial().is_ok())).cloned()
}

fn chosen(toolchain: &Toolchain) -> Result<()> {
    eprintln!("setup: eBPF programs with {}", toolchain.describe());
    Ok(())
}

/// Debian's packages come first because they need nothing but apt; rustup's nightly is for systems without
/// them (Ubuntu).
fn install_compiler() -> Result<Compiler> {
    let mut packaged = shell::which("apt-get").is_some();
    for package in DEBIAN {
        packaged = packaged && apt::is_installable(package)?;
    }
    if packaged {
        apt::install(&DEBIAN)?;
    } else if let Some(rustup) = shell::which("rustup") {
        let mut install = shell::program(rustup);
        install.args(["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src"]);
        shell::run(&mut install).map_err(|error| anyhow!("{}\n{error:#}", no_compiler()))?;
    }
    Compiler::all().into_iter().next().ok_or_else(|| anyhow!(no_compiler()))
}

fn no_compiler() -> String {
    format!(
        "a Rust compiler for {TARGET} is needed: either apt's `{}` or rustup's nightly with rust-src, \
         and this machine can install neither",
        DEBIAN.join(" ")
    )
}

/// The linker must carry an LLVM at least as new as the compiler's; the nearest is the likeliest to agree.
fn install_linker(compiler: &Compiler) -> Result<()> {
    for llvm in LINKER_LLVMS.into_iter().filter(|llvm| *llvm >= compiler.llvm) {
        let package = format!("llvm-{llvm}-dev");
        let prefix = format!("/usr/lib/llvm-{llvm}");
        let present = Path::new(&prefix).join("bin/llvm-config").is_file();
        if !present && !apt::is_installable(&package)? {
            continue;
        }
        // LLVM's own libraries are C++: its `llvm-config --system-libs` asks for libstdc++ at link time.
        let mut packages = if present { Vec::new() } else { vec![package.as_str()] };
        if shell::which("c++").is_none() {
            packages.push("g++");
        }
        apt::install(&packages)?;
        return tools::cargo_install("bpf-linker", LINKER_VERSION, |command| {
            command
                .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
                // One for llvm-sys, one for the linker's own build script; without the second it asks
                // whichever llvm-config comes first in PATH.
                .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
                .env("LLVM_PREFIX", &prefix);
        });
    }
    if let Some(binstall) = shell::which("cargo-binstall") {
        let package = format!("bpf-linker@{LINKER_VERSION}");
        let mut install = shell::program(binstall);
        install.args(["--no-confirm", "--root"]).arg(crate::workspace::tools()).arg(package);
        return shell::run(&mut install);
    }
    bail!(
        "bpf-linker {LINKER_VERSION} is needed: building it takes LLVM {} or newer (apt: llvm-{}-dev), which \
         this machine's apt sources do not have; put a released bpf-linker into PATH instead",
        compiler.llvm,
        compiler.llvm.max(LINKER_LLVMS[0])
    )
}
