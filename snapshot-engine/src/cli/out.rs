//! Where results go.

use std::io::{self, Write};

use serde::Serialize;

use super::args::Format;
use super::{Error, Result};

/// stdout, in the format asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    format: Format,
}

impl Out {
    pub(crate) fn new(format: Format) -> Self {
        Out { format }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a result: the one or the other.
    pub(crate) fn result(&self, text: &str, json: &impl Serialize) -> Result {
        match self.format {
            Format::Text => self.raw(text.as_bytes()),
            Format::Json => self.json(json),
        }
    }

    /// Prints what is for people only.
    pub(crate) fn text(&self, text: &str) -> Result {
        if self.is_json() { Ok(()) } else { self.raw(text.as_bytes()) }
    }

    /// Prints what is for programs only.
    pub(crate) fn json(&self, json: &impl Serialize) -> Result {
        if !self.is_json() {
            return Ok(());
        }
        let mut text = serde_json::to_vec_pretty(json).map_err(Error::Json)?;
        text.push(b'\n');
        self.raw(&text)
    }

    /// Prints bytes as they are. A reader that has seen enough (`| head`) is no error.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(e).into()),
            _ => Ok(()),
        }
    }
}

/// A name that came from outside, safe to show on a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
