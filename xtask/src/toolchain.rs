//! The compiler and linker for the eBPF programs.
//!
//! The BPF target is tier 3: rustup ships no core library for it. Two ways lead around that, and both end in
//! the same cargo command:
//!
//! * a compiler with core **prebuilt** for the target (Debian: `rustc-web` + `libstd-rust-web-dev-bpf`);
//! * a compiler with the **source** of core beside it (rustup: `rust-src`), built along by `-Zbuild-std`.
//!
//! Either way `RUSTC_BOOTSTRAP=1` opens the unstable features that aya's programs use. The linker works on
//! LLVM bitcode, so its LLVM must not be older than the compiler's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{shell, workspace};

/// The kernel runs programs of its own byte order only.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Where the core library for the target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    Prebuilt,
    Source,
}

/// A compiler that can make BPF bitcode.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    rustc: PathBuf,
    core: Core,
    release: String,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

/// A compiler and the linker that goes with it.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

impl Compiler {
    /// Every usable compiler here, the preferred one first: prebuilt needs no download of core's own
    /// dependencies, so it comes before source.
    pub(crate) fn all() -> Vec<Self> {
        let mut rustcs = Vec::new();
        if let Some(rustup) = shell::which("rustup") {
            let mut which = shell::program(rustup);
            which.args(["which", "--toolchain", "nightly", "rustc"]);
            // Looking must not download: by default rustup installs the toolchain it is asked about.
            let nightly = shell::output(which.env("RUSTUP_AUTO_INSTALL", "0"));
            rustcs.extend(nightly.map(PathBuf::from));
        }
        rustcs.extend(std::env::var_os("RUSTC").map(PathBuf::from));
        rustcs.extend(shell::all_in_path("rustc"));
        let mut found: Vec<Self> = rustcs.iter().filter_map(|rustc| Self::probe(rustc)).collect();
        found.sort_by_key(|compiler| compiler.core == Core::Source);
        found
    }

    fn probe(rustc: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(shell::output(shell::program(rustc).args(["--print", "sysroot"])).ok()?);
        let core = core_in(&sysroot)?;
        let (release, llvm) = versions(&shell::output(shell::program(rustc).arg("-vV")).ok()?)?;
        Some(Self { rustc: rustc.to_path_buf(), core, release, llvm })
    }
}

impl Toolchain {
    /// Every pair on this machine, the preferred one first. Whether a pair works shows in a trial only:
    /// the linker does not tell its LLVM's version.
    pub(crate) fn candidates() -> Vec<Self> {
        let linkers = linkers();
        let pairs = Compiler::all().into_iter().flat_map(|compiler| {
            linkers.iter().map(move |linker| Self { compiler: compiler.clone(), linker: linker.clone() })
        });
        pairs.collect()
    }

    /// The pair to build with: one whose trial succeeded (`setup` remembers it), else the first.
    pub(crate) fn find() -> Result<Self> {
        let mut candidates = Self::candidates();
        let tried = candidates.iter().position(Self::is_tried).unwrap_or(0);
        if candidates.is_empty() {
            bail!("no compiler and linker for {TARGET} on this machine; run `cargo xtask setup`");
        }
        Ok(candidates.swap_remove(tried))
    }

    /// Whether a trial with exactly this compiler and linker has succeeded before.
    pub(crate) fn is_tried(&self) -> bool {
        std::fs::read_to_string(tried_file()).is_ok_and(|text| text.trim_end() == self.describe())
    }

    /// Compiles and links a package of one function, unless that has succeeded before.
    pub(crate) fn trial(&self) -> Result<()> {
        if self.is_tried() {
            return Ok(());
        }
        let package = workspace::bpf_target().join("trial");
        std::fs::create_dir_all(&package).with_context(|| format!("creating {}", package.display()))?;
        std::fs::write(package.join("Cargo.toml"), TRIAL_MANIFEST)?;
        std::fs::write(package.join("main.rs"), TRIAL_SOURCE)?;
        let mut build = self.cargo_build()?;
        shell::quiet(build.args(["--release", "--manifest-path"]).arg(package.join("Cargo.toml")))?;
        std::fs::create_dir_all(workspace::tools())?;
        std::fs::write(tried_file(), format!("{}\n", self.describe()))?;
        Ok(())
    }

    /// `cargo build` for the BPF target, up to and including the flags that both ways share.
    pub(crate) fn cargo_build(&self) -> Result<Command> {
        let directory = self.linker.parent().context("the linker has no directory")?;
        // Cargo and rustc must be of one age when cargo builds core from source.
        let sibling = self.compiler.rustc.with_file_name("cargo");
        let mut command = if self.compiler.core == Core::Source && sibling.is_file() {
            let mut command = shell::program(sibling);
            command.current_dir(workspace::root());
            command
        } else {
            shell::cargo()
        };
        command
            .args(["build", "--target", TARGET, "--target-dir"])
            .arg(workspace::bpf_target())
            .env("RUSTC", &self.compiler.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", shell::path_with(directory)?)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&self.linker));
        // A wrapper (sccache) and clippy's driver would stand between cargo and the compiler chosen here.
        command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        if self.compiler.core == Core::Source {
            command.arg("-Zbuild-std=core");
        }
        Ok(command)
    }

    /// One line for people, and the identity under which a successful trial is remembered.
    pub(crate) fn describe(&self) -> String {
        let core = match self.compiler.core {
            Core::Prebuilt => "prebuilt core",
            Core::Source => "core built from rust-src",
        };
        let Compiler { rustc, release, llvm, .. } = &self.compiler;
        format!("{} {release} (LLVM {llvm}, {core}), {}", rustc.display(), self.linker.display())
    }
}

/// The flags of the recipe. `bpf_target_arch` selects the register layout of the *host's* kernel, for
/// which aya's build scripts ask; `--btf` keeps the types that the loader and the verifier read.
fn flags(linker: &Path) -> std::ffi::OsString {
    let mut flags = std::ffi::OsString::from(format!(
        "--cfg=bpf_target_arch=\"{}\"\x1f-Clink-arg=--btf\x1f-Clinker=",
        std::env::consts::ARCH
    ));
    flags.push(linker);
    flags
}

fn core_in(sysroot: &Path) -> Option<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    let libraries = rustlib.join(TARGET).join("lib");
    let prebuilt = libraries.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if prebuilt {
        Some(Core::Prebuilt)
    } else if rustlib.join("src/rust/library/core/Cargo.toml").is_file() {
        Some(Core::Source)
    } else {
        None
    }
}

/// Release and LLVM major out of `rustc -vV`.
fn versions(text: &str) -> Option<(String, u32)> {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?.to_owned(), llvm))
}

/// Every bpf-linker here, our own first.
fn linkers() -> Vec<PathBuf> {
    let own = workspace::tools_bin().join("bpf-linker");
    own.is_file().then_some(own).into_iter().chain(shell::all_in_path("bpf-linker")).collect()
}

/// What the last successful trial was made with.
fn tried_file() -> PathBuf {
    workspace::tools().join("bpf-toolchain")
}

const TRIAL_MANIFEST: &str = "\
[package]
name = \"trial\"
edition = \"2024\"
[[bin]]
name = \"trial\"
path = \"main.rs\"
[profile.release]
debug = 2
panic = \"abort\"
[workspace]
";

const TRIAL_SOURCE: &str = "\
#![no_std]
#![no_main]
#[unsafe(no_mangle)]
#[unsafe(link_section = \"raw_tracepoint/sys_enter\")]
pub fn trial(context: *mut u64) -> i32 {
    context.is_null().into()
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_llvm_are_read_from_the_compilers_own_words() {
        let text = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(versions(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(versions("rustc 1.96.0"), None);
    }

    #[test]
    fn core_is_found_prebuilt_before_source_and_absent_otherwise() {
        let sysroot = tempfile::tempdir().unwrap();
        let rustlib = sysroot.path().join("lib/rustlib");
        assert_eq!(core_in(sysroot.path()), None);
        std::fs::create_dir_all(rustlib.join("src/rust/library/core")).unwrap();
        std::fs::write(rustlib.join("src/rust/library/core/Cargo.toml"), "").unwrap();
        assert_eq!(core_in(sysroot.path()), Some(Core::Source));
        std::fs::create_dir_all(rustlib.join(TARGET).join("lib")).unwrap();
        std::fs::write(rustlib.join(TARGET).join("lib/libcore-0.rlib"), "").unwrap();
        assert_eq!(core_in(sysroot.path()), Some(Core::Prebuilt));
    }
}
