//! Process numbers.

use serde::{Deserialize, Serialize};

/// A process number as the engine's PID namespace counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub u32);

impl Pid {
    /// The engine's own.
    #[must_use]
    pub fn own() -> Pid {
        Pid(std::process::id())
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
