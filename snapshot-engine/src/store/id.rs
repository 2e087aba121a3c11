//! The name of a snapshot: `snapshot-<nanoseconds since 1970>`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The name of a snapshot. Ids sort by the time their snapshots began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SnapshotId(u64);

/// The text is no snapshot id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot id")]
pub struct NotAnId(String);

impl SnapshotId {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Fits until the year 2554.
        SnapshotId(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn next(self) -> Self {
        SnapshotId(self.0.wrapping_add(1))
    }

    /// The number in it: nanoseconds since 1970.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// When the snapshot began.
    #[must_use]
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("snapshot-{}", self.0))
    }
}

impl FromStr for SnapshotId {
    type Err = NotAnId;

    /// Only the canonical form: it names a directory.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        text.strip_prefix("snapshot-")
            .and_then(|digits| digits.parse().ok())
            .map(SnapshotId)
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| NotAnId(text.escape_debug().to_string()))
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = NotAnId;
    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}
