//! Where an image goes. The grammar: `oci:DIR:TAG`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fault::{Class, Fault};
use super::paths;

/// Where an image goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageTarget {
    /// An OCI image layout on disk.
    OciLayout {
        /// The layout's directory, absolute; it may not exist yet.
        #[serde(with = "paths")]
        dir: PathBuf,
        /// The image's `org.opencontainers.image.ref.name` in it.
        tag: String,
    },
}

/// Why a text is not a target. The text itself is not repeated where it may hold a password (`docker://user:password@..`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another transport than those supported.
    #[error("the target scheme `{0}:` is not supported")]
    Scheme(String),
    /// No scheme at all: most likely a registry reference.
    #[error("the target has no scheme; pushing to a registry is not supported")]
    NoScheme,
    /// `oci:` without a tag.
    #[error("`{0}` names no tag")]
    NoTag(String),
    /// `oci:` without a directory.
    #[error("`{0}` names no directory")]
    NoDirectory(String),
    /// The tag breaks the OCI grammar.
    #[error("`{0}` is not a tag: up to 128 of A-Z a-z 0-9 _ . -, not starting with . or -")]
    Tag(String),
}

impl Fault for Error {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some(
            "targets have the form oci:DIR:TAG, such as oci:/var/lib/images:web-1 (an OCI image layout)"
                .into(),
        )
    }
}

impl ImageTarget {
    /// The same target with its directory made absolute against the current one: a background process works elsewhere.
    ///
    /// # Errors
    /// When there is no current directory.
    pub fn absolute(self) -> std::io::Result<Self> {
        let ImageTarget::OciLayout { dir, tag } = self;
        Ok(ImageTarget::OciLayout { dir: std::path::absolute(dir)?, tag })
    }

    /// The directory the image goes to.
    #[must_use]
    pub fn directory(&self) -> &Path {
        let ImageTarget::OciLayout { dir, .. } = self;
        dir
    }
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-') && tag.len() <= 128
}

impl FromStr for ImageTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some(rest) = text.strip_prefix("oci:") else {
            // `localhost:5000/app` has a colon but no scheme: a scheme is a known word, or is followed by `//`.
            let known = [
                "docker-archive",
                "docker-daemon",
                "oci-archive",
                "containers-storage",
                "dir",
                "docker",
                "registry",
            ];
            return Err(match text.split_once(':') {
                Some((scheme, rest)) if rest.starts_with("//") || known.contains(&scheme) => {
                    Error::Scheme(scheme.chars().filter(|c| !c.is_control()).take(32).collect())
                }
                _ => Error::NoScheme,
            });
        };
        let (dir, tag) = rest.rsplit_once(':').ok_or_else(|| Error::NoTag(text.to_owned()))?;
        if dir.is_empty() {
            return Err(Error::NoDirectory(text.to_owned()));
        }
        if tag.is_empty() {
            return Err(Error::NoTag(text.to_owned()));
        }
        if !valid_tag(tag) {
            return Err(Error::Tag(tag.escape_debug().to_string()));
        }
        Ok(ImageTarget::OciLayout { dir: dir.into(), tag: tag.to_owned() })
    }
}

impl fmt::Display for ImageTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageTarget::OciLayout { dir, tag } = self;
        write!(f, "oci:{}:{tag}", dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar() {
        let target: ImageTarget = "oci:/a/b:v1.0".parse().unwrap();
        assert_eq!(target, ImageTarget::OciLayout { dir: "/a/b".into(), tag: "v1.0".into() });
        assert_eq!(target.to_string(), "oci:/a/b:v1.0");
        let colon: ImageTarget = "oci:/a:b/c:t".parse().unwrap();
        assert_eq!(colon.directory(), Path::new("/a:b/c"));
        for (text, error) in [
            ("docker://u:secret@host/app:1", Error::Scheme("docker".into())),
            ("docker-archive:/x.tar", Error::Scheme("docker-archive".into())),
            ("localhost:5000/app", Error::NoScheme),
            ("registry.example.com/app:1", Error::NoScheme),
            ("oci:/dir", Error::NoTag("oci:/dir".into())),
            ("oci:/dir:", Error::NoTag("oci:/dir:".into())),
            ("oci::tag", Error::NoDirectory("oci::tag".into())),
            ("oci:/d:-x", Error::Tag("-x".into())),
            ("oci:/d:a/b", Error::Tag("a/b".into())),
        ] {
            assert_eq!(text.parse::<ImageTarget>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_repeated() {
        let error = "docker://u:secret@host/app:1".parse::<ImageTarget>().unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
