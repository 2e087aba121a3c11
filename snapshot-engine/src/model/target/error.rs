//! Why a text is not a target. The text itself is not repeated where it may hold a password (`docker://user:password@..`).

use crate::model::fault::{Class, Fault};

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another transport than those supported.
    #[error("the target scheme `{0}:` is not supported")]
    Scheme(String),
    /// A name without a scheme and without a registry.
    #[error("the target names neither a scheme nor a registry")]
    NoRegistry,
    /// A registry's name is not in the form of one.
    #[error("the target is not the name of an image in a registry")]
    Name,
    /// A password in a name would be seen by everybody who lists processes.
    #[error("the target has a user's name in it, which is not the place for it")]
    User,
    /// An image is pushed by its tag; what its digest will be is not known before.
    #[error("the target names a digest")]
    Digest,
    /// A form that must have a tag has none.
    #[error("`{0}` names no tag")]
    NoTag(String),
    /// A form that must have a path has none.
    #[error("`{0}` names no directory or file")]
    NoPath(String),
    /// The tag breaks the OCI grammar.
    #[error("`{0}` is not a tag: up to 128 of A-Z a-z 0-9 _ . -, not starting with . or -")]
    Tag(String),
    /// The name of an image in a runtime is not in the form of one.
    #[error("`{0}` is not the name of an image")]
    ImageName(String),
    /// `containerd:` without a namespace, or with an impossible one.
    #[error("`{0}` names no namespace of containerd")]
    Namespace(String),
}

impl Fault for Error {
    fn class(&self) -> Class {
        Class::Arguments
    }

    fn remedy(&self) -> Option<String> {
        Some(
            match self {
                Error::User => {
                    "log in with --username and --password-stdin, or with `docker login` or `podman login`"
                }
                Error::NoTag(name) if !name.contains('/') || name.contains("//") => {
                    "name one, such as `:v1` at the end"
                }
                _ => {
                    "targets are oci:DIR:TAG, REGISTRY/REPOSITORY:TAG, oci-archive:FILE[:TAG], dir:DIR, docker-daemon:NAME:TAG and \
                     containerd:NAMESPACE/NAME:TAG, such as oci:/var/lib/images:web-1 or registry.example.com/team/web:1"
                }
            }
            .into(),
        )
    }
}
