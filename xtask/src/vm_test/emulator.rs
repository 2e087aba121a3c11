//! QEMU: the machine's own, or a newer one where that loses breakpoints.
//!
//! The kernel switches tracepoints on and off by patching its code behind a breakpoint (`text_poke_bp`, arch/x86/kernel/alternative.c). Before 8.1
//! QEMU does not keep a page locked while it translates code of it, so that one processor may go on with a translation that has the
//! breakpoint when another has taken it away; nobody claims it then and the guest dies of it, on a loaded machine every few minutes.
//! ("accel/tcg: Always lock pages before translation"; no option avoids it but one thread for all processors, where a fence holds its own engine.)
//! Debian 12 has 7.2, and a newer one in its backports: that is unpacked beside the kernels, and nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::debian::{self, numbers};
use crate::shell;

const PROGRAM: &str = "qemu-system-x86_64";

/// The first version that does not lose them.
const MENDED: [u64; 2] = [8, 1];

const SUITE: &str = "bookworm-backports";

/// The program, and the firmware that a kernel is loaded with.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// What runs the guests.
pub(super) struct Emulator {
    program: PathBuf,
    /// Where its firmware is, if not where it looks by itself.
    firmware: Vec<PathBuf>,
    /// Its version as it says it.
    pub(super) version: String,
}

impl Emulator {
    /// The machine's, or a newer one if that is too old and there is one.
    pub(super) fn find(mirror: Option<&str>) -> Result<Emulator> {
        let own = Emulator::at(PathBuf::from(PROGRAM), Vec::new())?;
        if own.is_mended() {
            return Ok(own);
        }
        match newer(mirror) {
            Ok(newer) => Ok(newer),
            Err(why) => {
                eprintln!(
                    "vm-test: QEMU {} may kill guests, and there is no newer one: {why:#}",
                    own.version
                );
                Ok(own)
            }
        }
    }

    fn at(program: PathBuf, firmware: Vec<PathBuf>) -> Result<Emulator> {
        let said = shell::output(shell::program(&program).arg("--version"))?;
        let version = version_in(&said).with_context(|| format!("{} says {said}", program.display()))?;
        Ok(Emulator { program, firmware, version: version.to_owned() })
    }

    fn of_directory(directory: &Path) -> Result<Emulator> {
        let share = ["usr/share/qemu", "usr/share/seabios"].map(|place| directory.join(place));
        Emulator::at(directory.join("usr/bin").join(PROGRAM), share.to_vec())
    }

    fn is_mended(&self) -> bool {
        numbers(&self.version) >= MENDED.to_vec()
    }

    /// Adds the program and what it always takes to a command that runs programs.
    pub(super) fn add_to(&self, command: &mut Command) {
        command.arg(&self.program);
        for place in &self.firmware {
            command.arg("-L").arg(place);
        }
    }
}

fn newer(mirror: Option<&str>) -> Result<Emulator> {
    debian::kept("emulator/qemu", mirror, SUITE, &PACKAGES, |directory| {
        let found = Emulator::of_directory(directory)?;
        anyhow::ensure!(found.is_mended(), "it is {}", found.version);
        Ok(found)
    })
}

/// The version in what QEMU says of itself: the word behind "version".
fn version_in(said: &str) -> Option<&str> {
    let mut words = said.split_whitespace();
    words.find(|word| *word == "version")?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_loses_breakpoints_is_told() {
        let emulator = |said: &str| Emulator {
            program: PathBuf::new(),
            firmware: Vec::new(),
            version: version_in(said).unwrap().to_owned(),
        };
        assert!(!emulator("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)").is_mended());
        assert!(!emulator("QEMU emulator version 8.0.5").is_mended());
        assert!(emulator("QEMU emulator version 8.1.0").is_mended());
        assert!(emulator("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright").is_mended());
        assert_eq!(version_in("nothing"), None);
    }
}
