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
        let mut text = printable_json(&serde_json::to_string_pretty(json).map_err(Error::Json)?);
        text.push('\n');
        self.raw(text.as_bytes())
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

/// The most characters of one text from outside: the path of a deep tree may have a million.
const LONGEST: usize = 4096;

/// Text that came from outside, safe to show on a terminal: what a terminal would obey is shown as an escape, and a very long text
/// loses its middle. The container chooses its file names; none of them may clear the screen, forge a line, or turn the text around.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LONGEST));
    let count = text.chars().count();
    for (at, c) in text.chars().enumerate() {
        if count > LONGEST && at == LONGEST / 2 {
            shown.push_str(" [...] ");
        }
        if count > LONGEST && (LONGEST / 2..count - LONGEST / 2).contains(&at) {
            continue;
        }
        if obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// JSON text that says the same and is safe to show: JSON escapes the controls of ASCII in its strings, a terminal obeys some more.
pub(crate) fn printable_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) && c != '\n' {
            // All of them are in the basic plane: one escape each.
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a terminal does something else with it than to show it: controls, line separators, and marks of direction.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_obeyed() {
        let bad = "a\u{1b}[2Jb\r\nc\u{9b}31md\u{202e}e\u{7f}\u{0}";
        let shown = printable(bad);
        assert_eq!(shown, "a\\u{1b}[2Jb\\r\\nc\\u{9b}31md\\u{202e}e\\u{7f}\\u{0}");
        assert_eq!(printable("plain \u{e4}\u{6f22}"), "plain \u{e4}\u{6f22}");
        let json = printable_json(&serde_json::to_string_pretty(&[bad]).unwrap());
        assert!(json.chars().all(|c| !obeyed(c) || c == '\n'), "{json:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [bad]);
        let long = printable(&format!("begin{}end", "x".repeat(1 << 20)));
        assert!(long.starts_with("begin") && long.ends_with("end") && long.len() < 5000, "{}", long.len());
    }
}
