//! `cargo xtask vm-test`: the tests against other kernels than this machine's. Debian's kernels are booted in QEMU without
//! hardware help (works everywhere, costs a factor of ten), with the test binaries of this workspace in memory.
//!
//! ```text
//!   emulator    QEMU, a newer one if the machine's loses breakpoints
//!   packages    Debian's archive -> kernel and modules, kept with the tools
//!   plan        which tests, numbered
//!   initramfs   test binaries, their libraries, busybox, modules -> one archive (cpio)
//!   boot        QEMU: kernel messages on the first serial port, test output on the second    <─┐ from the first step
//!   report      what the output says, step by step                                           ──┘ that is not done
//! ```

mod boot;
mod cpio;
mod emulator;
mod initramfs;
mod packages;
mod plan;
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{ebpf, setup, workspace};
use boot::Guest;
use emulator::Emulator;
use packages::Kernel;
use plan::Wanted;
use report::{Outcome, Run};

/// Which kernels and which tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this kernel; may be given more than once
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// Only these test binaries of `tests/`; may be given more than once
    #[arg(long)]
    test: Vec<String>,
    /// The part that `.ci/run` runs: the same kernels, few tests
    #[arg(long, conflicts_with_all = ["test", "torture"])]
    short: bool,
    /// Only the torture harness, on each file system
    #[arg(long, conflicts_with = "test")]
    torture: bool,
    /// Give a kernel up after so many minutes
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Where Debian's archive is, if this machine's apt does not know; as apt's sources name it
    #[arg(long, env = crate::debian::MIRROR)]
    mirror: Option<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Boots each kernel and runs the tests there. Succeeds only if on each of them tests ran and none failed.
pub(crate) fn vm_test(arguments: &Arguments) -> Result<ExitCode> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "vm-test boots x86_64 kernels with this machine's own binaries; this is {}",
            std::env::consts::ARCH
        );
    }
    setup::setup_for_guests()?;
    ebpf::ebpf()?;
    let kernels = if arguments.kernel.is_empty() { Kernel::ALL.to_vec() } else { arguments.kernel.clone() };
    let wanted = if arguments.short {
        Wanted::short()
    } else if arguments.torture {
        Wanted::torture()
    } else {
        Wanted::whole(&arguments.test, arguments.filter.as_deref())
    };
    let plan = wanted.plan()?;
    let emulator = Emulator::find(arguments.mirror.as_deref())?;
    eprintln!("vm-test: QEMU {}", emulator.version);
    let scratch = tempfile::Builder::new().prefix("vm-test-").tempdir_in(workspace::target())?;
    let mut runs = Vec::new();
    for kernel in kernels {
        let plan = plan.on(kernel);
        let unpacked = packages::fetch(kernel, arguments.mirror.as_deref())?;
        let archive = initramfs::make(&unpacked, &plan, scratch.path())?;
        let deadline = Instant::now() + Duration::from_secs(arguments.minutes * 60);
        let mut outcome = Outcome::new(plan.steps.len());
        while let Some(first) = outcome.next() {
            let (emulator, kernel, archive) = (&emulator, &unpacked, &*archive);
            let guest = Guest { emulator, kernel, archive, memory: arguments.memory, deadline, first };
            guest.run(scratch.path(), &mut outcome)?;
        }
        runs.push(Run { kernel: unpacked.release.clone(), steps: plan.steps, outcome });
    }
    Ok(report::show(&runs))
}
