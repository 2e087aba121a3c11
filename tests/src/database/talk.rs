//! A program that is spoken to through pipes, line by line.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// One such program. Killed when dropped.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    complaints: File,
}

impl Talk {
    /// Starts it.
    ///
    /// # Errors
    /// As `execve(2)`.
    pub fn start(command: &mut Command) -> Result<Talk> {
        let complaints = tempfile::tempfile()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let commands = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Talk { child, commands, answers, complaints })
    }

    /// Gives it a line, and reads until it has said this word on a line of its own.
    ///
    /// # Errors
    /// With its complaints, when it ends instead.
    pub fn ask(&mut self, line: &str, until: &str) -> Result<()> {
        let sent = writeln!(self.commands, "{line}");
        let mut answer = String::new();
        while sent.is_ok() && self.answers.read_line(&mut answer)? > 0 {
            if answer.lines().last() == Some(until) {
                return Ok(());
            }
        }
        bail!("{line:?}: it ended: {answer}{}", said(&mut self.complaints))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that runs by itself; what it says goes to a file. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: File,
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// As `execve(2)`.
    pub fn start(command: &mut Command) -> Result<Server> {
        let log = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Server { child, log })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something is true of it.
    ///
    /// # Errors
    /// With its log, when it ends instead, or when nothing comes of it within a minute.
    pub fn wait(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let began = std::time::Instant::now();
        while !ready() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || began.elapsed().as_secs() > 60 {
                bail!("{what}: {ended:?}: {}", said(&mut self.log));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for its end. True if there was one within ten seconds.
    pub fn ends(&mut self) -> bool {
        for _ in 0..1000 {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of what it said.
fn said(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(20)..].join("\n");
    if read.is_ok() { tail } else { "its words are lost".to_owned() }
}

/// Runs a program to its end and returns what it said.
///
/// # Errors
/// With its complaints, when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(status.success(), "{command:?}: {status}: {} {said}", String::from_utf8_lossy(&stderr));
    Ok(said)
}
