//! Why an image could not be delivered.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::fault::{Class, Fault, class_of_io, remedy_of_io};

/// Why an image could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// A file could not be read or written.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was to be done with it.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The image that was built is not whole.
    #[error("the image in `{}` is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The target's file or directory is there already.
    #[error("`{}` exists", path.display())]
    Exists {
        /// It.
        path: PathBuf,
    },
    /// The target's directory has things in it that are no image of its kind.
    #[error("`{}` holds other things than an image", path.display())]
    Foreign {
        /// It.
        path: PathBuf,
    },
    /// The target cannot use such an image.
    #[error("{target} cannot use a Nydus image: docker reads layers as tar files only")]
    NydusForDocker {
        /// The target.
        target: String,
    },
    /// A certificate or key is no such thing.
    #[error("`{}` cannot be used for TLS: {why}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Credentials could not be got from where the configuration says they are.
    #[error("no credentials for {registry} from {place}: {why}")]
    Credentials {
        /// For whom.
        registry: String,
        /// The file or the helper.
        place: String,
        /// What is wrong. Holds no secret.
        why: String,
    },
    /// Nobody answers, or the connection breaks, again and again.
    #[error("{registry} cannot be reached, after {tries} tries: {why}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// What happened the last time.
        why: String,
    },
    /// It takes the connection and does not answer.
    #[error("{registry} did not answer within {}", humane(*after))]
    Hung {
        /// The registry or daemon.
        registry: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// Its certificate is not one that we trust, or it speaks no TLS that we do.
    #[error("no secure connection to {registry}: {why}")]
    Untrusted {
        /// The registry.
        registry: String,
        /// What TLS says.
        why: String,
    },
    /// It wants to see a certificate of ours, and not this one if it was shown one.
    #[error("{registry} {}: {why}", if *shown { "does not take our certificate" } else { "wants a certificate of ours, and there is none" })]
    Uncertified {
        /// The registry.
        registry: String,
        /// Whether it was shown one.
        shown: bool,
        /// What TLS says.
        why: String,
    },
    /// It wants to know who we are, or does not let us do this.
    #[error("{registry} refuses {}: {why}", if *known { "these credentials" } else { "a push without credentials" })]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Whether there were credentials.
        known: bool,
        /// What it said.
        why: String,
    },
    /// It answered that it cannot, again and again, or that it never will.
    #[error("{registry} answers {status} to {what}{}{why}", if why.is_empty() { "" } else { ": " })]
    Refused {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The request.
        what: String,
        /// What it said.
        why: String,
    },
    /// What it answered makes no sense.
    #[error("{registry} does not speak the registry's protocol: {why}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What makes no sense.
        why: String,
    },
    /// A layer that is not here is not there any more either.
    #[error("{registry} does not have the layer {digest} in {repository} any more")]
    Gone {
        /// The registry.
        registry: String,
        /// The repository that had it.
        repository: String,
        /// The layer.
        digest: String,
    },
    /// A daemon of this machine cannot be asked, or refuses.
    #[error("{daemon} did not take the image: {why}")]
    Daemon {
        /// The daemon and its socket.
        daemon: String,
        /// What happened.
        why: String,
    },
    /// Somebody wants it to end.
    #[error("stopped")]
    Stopped,
}

impl DeliverError {
    /// What has happened to a question, of a daemon too.
    pub(super) fn said(&self) -> String {
        match self {
            DeliverError::Daemon { daemon, why } => format!("{daemon}: {why}"),
            DeliverError::Io { source, .. } => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }

    /// For `map_err` on a system call.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DeliverError {
        let path = path.into();
        move |source| DeliverError::Io { what, path, source }
    }
}

/// A text of a peer, short enough and without what a terminal would obey.
pub(super) fn said(text: &str) -> String {
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = plain.take(300).collect();
    if text.trim().chars().nth(300).is_some() {
        short.push_str("..");
    }
    short
}

fn humane(time: Duration) -> String {
    if time.as_millis() < 10_000 {
        format!("{} ms", time.as_millis())
    } else {
        format!("{} s", time.as_secs())
    }
}

impl Fault for DeliverError {
    fn class(&self) -> Class {
        match self {
            DeliverError::Io { source, .. } => class_of_io(source),
            DeliverError::Damaged { .. } | DeliverError::Exists { .. } | DeliverError::Foreign { .. } => {
                Class::General
            }
            DeliverError::NydusForDocker { .. } | DeliverError::Tls { .. } => Class::Arguments,
            DeliverError::Stopped => Class::General,
            DeliverError::Credentials { .. }
            | DeliverError::Unreachable { .. }
            | DeliverError::Hung { .. }
            | DeliverError::Untrusted { .. }
            | DeliverError::Uncertified { .. }
            | DeliverError::Unauthorized { .. }
            | DeliverError::Refused { .. }
            | DeliverError::Protocol { .. }
            | DeliverError::Gone { .. }
            | DeliverError::Daemon { .. } => Class::Network,
        }
    }

    fn remedy(&self) -> Option<String> {
        Some(
            match self {
                DeliverError::Io { source, .. } => return remedy_of_io(source),
                DeliverError::Stopped => return None,
                DeliverError::Damaged { .. } => "`snapshot-engine remove` the snapshot and take another one",
                DeliverError::Exists { .. } => "choose another name, or replace it with --overwrite",
                DeliverError::Foreign { .. } => "choose another directory: nothing in it was touched",
                DeliverError::NydusForDocker { .. } => {
                    "push it to a registry, or give it to a containerd that has the nydus snapshotter (containerd:NAMESPACE/NAME:TAG)"
                }
                DeliverError::Tls { .. } => {
                    "give a file in PEM form, which starts with -----BEGIN, and with a certificate its own key (--tls-key)"
                }
                DeliverError::Credentials { .. } => {
                    "mend that file or helper, or give --username and --password-stdin"
                }
                DeliverError::Unreachable { .. } => {
                    "see that the registry's name is right and that it runs (for one without TLS: --target-insecure); the snapshot is kept: \
                     `snapshot-engine resume ID` delivers it"
                }
                DeliverError::Hung { .. } => {
                    "see whether it is overloaded, or allow more with --target-timeout; the snapshot is kept: `snapshot-engine resume ID` \
                     delivers it"
                }
                DeliverError::Untrusted { .. } => {
                    "give the certificate it is signed by with --tls-ca FILE, or accept any with --target-insecure; then `snapshot-engine resume ID`"
                }
                DeliverError::Uncertified { shown: false, .. } => {
                    "give yours and its key: `snapshot-engine resume ID --tls-cert FILE --tls-key FILE`; the snapshot is kept"
                }
                DeliverError::Uncertified { shown: true, .. } => {
                    "see that it has not expired and is by an authority that the registry knows, then \
                     `snapshot-engine resume ID --tls-cert FILE --tls-key FILE`; the snapshot is kept"
                }
                DeliverError::Unauthorized { known: true, .. } => {
                    "check name, password and rights, then `snapshot-engine resume ID --username NAME --password-stdin`"
                }
                DeliverError::Unauthorized { known: false, .. } => {
                    "log in with `docker login` or `podman login`, then `snapshot-engine resume ID`; or give `resume` --username and \
                     --password-stdin"
                }
                DeliverError::Refused { status: 429 | 500.., .. } => {
                    "try again later: the snapshot is kept, and `snapshot-engine resume ID` delivers it"
                }
                DeliverError::Refused { .. } | DeliverError::Protocol { .. } => {
                    "see what the registry's log says of it; the snapshot is kept: `snapshot-engine resume ID` delivers it"
                }
                DeliverError::Gone { .. } => {
                    "the snapshot is kept: `snapshot-engine resume ID` makes the image of the container's lower directories"
                }
                DeliverError::Daemon { .. } => {
                    "see that the daemon runs and who may use its socket; the snapshot is kept: `snapshot-engine resume ID` delivers it"
                }
            }
            .into(),
        )
    }
}
