//! Images to build on. Named: `bootstrap=FILE[,blobs=DIR]` a Nydus image, `oci:DIR:TAG` an OCI image in a layout. Found: where the container's own came from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::paths;

/// An image that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownImage {
    /// Its bootstrap.
    #[serde(with = "paths")]
    pub bootstrap: PathBuf,
    /// A directory with its blobs, by id. They are also looked for in the target's layout, among the converted lowers, beside the
    /// bootstrap, and in `blobs` there.
    #[serde(with = "paths::list", default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<PathBuf>,
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no image: give bootstrap=FILE or bootstrap=FILE,blobs=DIR")]
pub struct BadImage(String);

impl KnownImage {
    /// The same with absolute paths: the image is made by a process with another working directory.
    ///
    /// # Errors
    /// When the working directory is not known.
    pub fn absolute(self) -> std::io::Result<KnownImage> {
        let blobs = self.blobs.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        Ok(KnownImage { bootstrap: std::path::absolute(self.bootstrap)?, blobs })
    }
}

impl FromStr for KnownImage {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<KnownImage, BadImage> {
        let bad = || BadImage(text.escape_debug().to_string());
        let rest = text.strip_prefix("bootstrap=").ok_or_else(bad)?;
        let (bootstrap, blobs) = match rest.split_once(",blobs=") {
            Some((bootstrap, dir)) => (bootstrap, Some(dir)),
            None => (rest, None),
        };
        if bootstrap.is_empty() || blobs.is_some_and(str::is_empty) {
            return Err(bad());
        }
        Ok(KnownImage { bootstrap: bootstrap.into(), blobs: blobs.map(PathBuf::from).into_iter().collect() })
    }
}

impl fmt::Display for KnownImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bootstrap={}", self.bootstrap.display())?;
        self.blobs.iter().try_for_each(|dir| write!(f, ",blobs={}", dir.display()))
    }
}

/// An OCI image in a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutImage {
    /// The layout.
    #[serde(with = "paths")]
    pub dir: PathBuf,
    /// Its tag there.
    pub tag: String,
}

/// The image of plain layers that a container was started from, found where its runtime got it or keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its manifest, for the container's platform.
    pub manifest: Vec<u8>,
    /// Its config.
    pub config: Vec<u8>,
    /// Where the bytes of its layers are.
    pub layers: Whereabouts,
}

/// Where layers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// In this directory, in files named by the digest without its algorithm.
    Files(PathBuf),
    /// In this repository of the registry that the image goes to: `REGISTRY/REPOSITORY`. The image's own layout has none of these bytes.
    Repository(String),
}

/// A text that names no image in a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no image in a layout: give oci:DIR:TAG")]
pub struct BadLayoutImage(String);

impl LayoutImage {
    /// The same with an absolute path.
    ///
    /// # Errors
    /// When the working directory is not known.
    pub fn absolute(self) -> std::io::Result<LayoutImage> {
        Ok(LayoutImage { dir: std::path::absolute(self.dir)?, tag: self.tag })
    }
}

impl FromStr for LayoutImage {
    type Err = BadLayoutImage;

    fn from_str(text: &str) -> Result<LayoutImage, BadLayoutImage> {
        let parts = text.strip_prefix("oci:").and_then(|rest| rest.rsplit_once(':'));
        match parts {
            Some((dir, tag)) if !dir.is_empty() && !tag.is_empty() => {
                Ok(LayoutImage { dir: dir.into(), tag: tag.to_owned() })
            }
            _ => Err(BadLayoutImage(text.escape_debug().to_string())),
        }
    }
}

impl fmt::Display for LayoutImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}:{}", self.dir.display(), self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for text in ["bootstrap=/a/image.boot", "bootstrap=b,blobs=/c"] {
            assert_eq!(text.parse::<KnownImage>().unwrap().to_string(), text);
        }
        for bad in ["", "/a/image.boot", "bootstrap=", "bootstrap=a,blobs=", "blobs=/c"] {
            assert!(bad.parse::<KnownImage>().is_err(), "{bad}");
        }
    }

    #[test]
    fn images_in_layouts_are_named_as_targets_are() {
        let image: LayoutImage = "oci:/a:b:v1".parse().unwrap();
        assert_eq!((image.dir.to_str(), image.tag.as_str()), (Some("/a:b"), "v1"));
        assert_eq!(image.to_string(), "oci:/a:b:v1");
        for bad in ["", "/a:b", "oci:/a", "oci::b", "oci:/a:"] {
            assert!(bad.parse::<LayoutImage>().is_err(), "{bad}");
        }
    }
}
