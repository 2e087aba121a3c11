//! Where an image goes.

mod error;
mod grammar;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::paths;

pub use error::Error;

/// Where an image goes. The grammar of the text: [`grammar`](self::grammar).
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
    /// A repository of a registry.
    Registry {
        /// Host and port as they were named: `registry.example.com`, `localhost:5000`.
        registry: String,
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
    },
    /// An OCI image layout in one tar file.
    OciArchive {
        /// The file.
        #[serde(with = "paths")]
        file: PathBuf,
        /// The image's `org.opencontainers.image.ref.name` in it, if it has one.
        tag: Option<String>,
    },
    /// A directory with the manifest and its blobs side by side, as skopeo's `dir:` (containers-transports(5)).
    Dir {
        /// The directory.
        #[serde(with = "paths")]
        dir: PathBuf,
    },
    /// The images of a docker daemon.
    DockerDaemon {
        /// Name and tag.
        name: String,
    },
    /// The images of a containerd daemon.
    Containerd {
        /// The namespace, such as `default` or `k8s.io`.
        namespace: String,
        /// The whole name, registry and tag included: containerd completes nothing.
        name: String,
    },
}

impl ImageTarget {
    /// The same target with its path made absolute against the current directory: a background process works elsewhere.
    ///
    /// # Errors
    /// When there is no current directory.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        match &mut self {
            ImageTarget::OciLayout { dir: path, .. }
            | ImageTarget::OciArchive { file: path, .. }
            | ImageTarget::Dir { dir: path } => *path = std::path::absolute(&path)?,
            ImageTarget::Registry { .. }
            | ImageTarget::DockerDaemon { .. }
            | ImageTarget::Containerd { .. } => {}
        }
        Ok(self)
    }

    /// The file or directory the image goes to, if it goes to one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            ImageTarget::OciLayout { dir: path, .. }
            | ImageTarget::OciArchive { file: path, .. }
            | ImageTarget::Dir { dir: path } => Some(path),
            _ => None,
        }
    }

    /// Whether the image is built where it goes. Every other target gets it delivered from a layout.
    #[must_use]
    pub fn is_layout(&self) -> bool {
        matches!(self, ImageTarget::OciLayout { .. })
    }
}

impl fmt::Display for ImageTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageTarget::OciLayout { dir, tag } => write!(f, "oci:{}:{tag}", dir.display()),
            ImageTarget::Registry { registry, repository, tag } => write!(f, "{registry}/{repository}:{tag}"),
            ImageTarget::OciArchive { file, tag: Some(tag) } => {
                write!(f, "oci-archive:{}:{tag}", file.display())
            }
            ImageTarget::OciArchive { file, tag: None } => write!(f, "oci-archive:{}", file.display()),
            ImageTarget::Dir { dir } => write!(f, "dir:{}", dir.display()),
            ImageTarget::DockerDaemon { name } => write!(f, "docker-daemon:{name}"),
            ImageTarget::Containerd { namespace, name } => write!(f, "containerd:{namespace}/{name}"),
        }
    }
}
