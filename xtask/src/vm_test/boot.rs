//! One guest: QEMU, its two serial ports, and a deadline.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::emulator::Emulator;
use super::packages::Unpacked;
use super::report::Outcome;
use crate::shell;

/// The messages of the kernel: only what went wrong; and no second try after a panic.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off";

/// How a kernel dies that met a breakpoint which was no longer there: what an old QEMU does to it (`emulator.rs`), and no processor.
const LOST_BREAKPOINT: &str = "int3: 0000 [#1]";

/// What is booted and how.
pub(super) struct Guest<'a> {
    pub(super) emulator: &'a Emulator,
    pub(super) kernel: &'a Unpacked,
    pub(super) archive: &'a Path,
    /// MiB.
    pub(super) memory: u32,
    /// When it has to be done.
    pub(super) deadline: Instant,
    /// The number of the step it begins with.
    pub(super) first: usize,
}

/// Killed on drop: a guest never outlives its runner.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest<'_> {
    /// Runs until the guest says it is done, dies, or the time is up. Shows its output as it comes.
    pub(super) fn run(&self, scratch: &Path, outcome: &mut Outcome) -> Result<()> {
        let messages = scratch.join(format!("{}.log", self.kernel.release));
        eprintln!("vm-test: booting {}, from step {}", self.kernel.release, self.first);
        let began = Instant::now();
        let mut qemu = Qemu(self.start(&messages)?);
        let stdout = qemu.0.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { break };
                if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        loop {
            match lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if !line.starts_with("@@") {
                        println!("{line}");
                    }
                    outcome.line(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    outcome.give_up("the time was up");
                    break;
                }
            }
        }
        drop(qemu);
        let _ = reader.join();
        let messages = fs::read(&messages).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages).replace('\r', "");
        let emulator = messages.contains(LOST_BREAKPOINT);
        outcome.guest_ended(self.first, emulator, began.elapsed());
        if emulator {
            let place = messages.lines().find_map(|line| Some(line.split_once("RIP: ")?.1)).unwrap_or("?");
            println!("vm-test: the emulator killed the guest at {place} (see emulator.rs)");
        } else if outcome.next().is_some() {
            eprintln!("vm-test: what the kernel said last:\n{}", tail(&messages));
        }
        Ok(())
    }

    fn start(&self, messages: &Path) -> Result<Child> {
        File::create(messages).with_context(|| format!("creating {}", messages.display()))?;
        let mut command = shell::program("setpriv");
        // The guest dies with its runner, also when that is killed.
        command.args(["--pdeathsig", "KILL"]);
        self.emulator.add_to(&mut command);
        command
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-monitor", "none", "-no-reboot", "-m", &self.memory.to_string()])
            // What is no parameter of the kernel's goes to init's environment.
            .args(["-append", &format!("{COMMAND_LINE} first={}", self.first), "-kernel"])
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.archive)
            .args(["-serial", &format!("file:{}", messages.display()), "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command.spawn().context("cannot start QEMU")
    }
}

fn tail(messages: &str) -> String {
    let lines: Vec<&str> = messages.trim_end().lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
