//! The log goes to stderr: stdout belongs to the result.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// How much is logged: -1 errors, 0 warnings, 1 information, 2 debugging, 3 everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verbosity(pub i8);

impl Verbosity {
    /// The filter that stands for it.
    #[must_use]
    pub fn directive(self) -> &'static str {
        match self.0 {
            ..=-1 => "error",
            0 => "warn",
            1 => "info",
            2 => "debug",
            3.. => "trace",
        }
    }
}

/// Sets the log up. `RUST_LOG`, where set and valid, decides instead of the verbosity. A second call does nothing.
pub fn init(verbosity: Verbosity) {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty())
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(verbosity.directive()));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
