//! Paths in JSON. A path on Linux is bytes; JSON has only text. A path that is UTF-8 is a string, any other an array of its bytes: nothing is lost.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Form {
    fn of(path: &Path) -> Form {
        match path.to_str() {
            Some(text) => Form::Text(text.to_owned()),
            None => Form::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }

    fn into_path(self) -> PathBuf {
        match self {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// For `#[serde(with = "paths")]` on a path.
///
/// # Errors
/// As the serializer's.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    Form::of(path).serialize(serializer)
}

/// For `#[serde(with = "paths")]` on a path.
///
/// # Errors
/// As the deserializer's.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(Form::deserialize(deserializer)?.into_path())
}

/// For `#[serde(with = "paths::list")]` on a list of paths.
pub mod list {
    use super::{Deserialize, Deserializer, Form, PathBuf, Serialize, Serializer};

    /// See [`super::serialize`].
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        paths.iter().map(|p| Form::of(p)).collect::<Vec<_>>().serialize(serializer)
    }

    /// See [`super::deserialize`].
    ///
    /// # Errors
    /// As the deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Form>::deserialize(deserializer)?.into_iter().map(Form::into_path).collect())
    }
}

/// For `#[serde(with = "paths::option")]` on a path that may be missing.
pub mod option {
    use super::{Deserialize, Deserializer, Form, PathBuf, Serialize, Serializer};

    /// See [`super::serialize`].
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Form::of).serialize(serializer)
    }

    /// See [`super::deserialize`].
    ///
    /// # Errors
    /// As the deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Form>::deserialize(deserializer)?.map(Form::into_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        #[derive(Serialize, Deserialize)]
        struct Holder {
            #[serde(with = "super::list")]
            paths: Vec<PathBuf>,
        }
        let paths = vec![PathBuf::from("/plain"), PathBuf::from(OsString::from_vec(vec![b'/', 0xff, b'x']))];
        let text = serde_json::to_string(&Holder { paths: paths.clone() }).unwrap();
        assert_eq!(text, r#"{"paths":["/plain",[47,255,120]]}"#);
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap().paths, paths);
    }
}
