//! The versions of the format.

use std::fmt;
use std::str::FromStr;

/// A version of the format that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FsVersion {
    /// RAFS v6: EROFS-compatible.
    #[default]
    V6,
}

/// Why a version was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Known, not written.
    #[error("RAFS v5 is not supported yet: give `6`")]
    V5,
    /// Unknown.
    #[error("`{0}` is not a version of RAFS: give `6`")]
    Unknown(String),
}

impl FromStr for FsVersion {
    type Err = VersionError;

    fn from_str(word: &str) -> Result<FsVersion, VersionError> {
        match word {
            "6" | "v6" => Ok(FsVersion::V6),
            "5" | "v5" => Err(VersionError::V5),
            _ => Err(VersionError::Unknown(word.to_owned())),
        }
    }
}

impl fmt::Display for FsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("6")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v5_is_refused_by_name() {
        assert_eq!("6".parse(), Ok(FsVersion::V6));
        assert_eq!("5".parse::<FsVersion>(), Err(VersionError::V5));
        assert!("7".parse::<FsVersion>().is_err());
    }
}
