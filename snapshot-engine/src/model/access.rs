//! How a target is reached: what may be remembered of it ([`Access`]), and what may not ([`Login`]).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::nanos::Nanos;
use super::paths;

/// How a target is reached. Part of the record, so that `resume` need not be told again: it holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// A certificate that cannot be verified, or none at all, is accepted.
    pub insecure: bool,
    /// Certificates (PEM) that the registry's may be signed by, beside those of the system.
    #[serde(with = "paths::option")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate (PEM) by which we show who we are.
    #[serde(with = "paths::option")]
    pub tls_cert: Option<PathBuf>,
    /// The file of its key (PEM).
    #[serde(with = "paths::option")]
    pub tls_key: Option<PathBuf>,
    /// How long the target may take to answer one request, beside what the bytes need.
    pub timeout: Nanos,
    /// Sockets of docker daemons, the first that answers is meant.
    #[serde(with = "paths::list")]
    pub docker: Vec<PathBuf>,
    /// Sockets of containerd daemons, the first that answers is meant.
    #[serde(with = "paths::list")]
    pub containerd: Vec<PathBuf>,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            insecure: false,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            timeout: Nanos(30_000_000_000),
            docker: vec!["/run/docker.sock".into()],
            containerd: vec!["/run/containerd/containerd.sock".into()],
        }
    }
}

impl Access {
    /// Paths made absolute: a background process works elsewhere.
    ///
    /// # Errors
    /// When there is no current directory.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        for path in [&mut self.tls_ca, &mut self.tls_cert, &mut self.tls_key].into_iter().flatten() {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }
}

/// Name and password for a registry. It is never written anywhere: not into the record, the log, an argument or the environment of a process. It goes to
/// the background process through a socket.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Login {
    /// The user's name.
    pub username: String,
    /// The password, or an access token.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What delivering an image came to. Part of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delivery {
    /// The image's digest at the target, `sha256:..`.
    pub digest: String,
    /// Bytes that were sent or written, those that had to be sent again included.
    pub sent_bytes: u64,
    /// Blobs sent or written, the config included.
    pub sent: u32,
    /// Blobs that were there already.
    pub present: u32,
    /// Blobs that the registry took from another of its repositories.
    pub mounted: u32,
    /// Bytes of an earlier, broken try that the registry still had of blobs that were sent now.
    pub continued_bytes: u64,
    /// Requests that had to be made again.
    pub retries: u32,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} blobs sent, {} KiB", self.digest, self.sent, self.sent_bytes.div_ceil(1024))?;
        for (count, what) in [(self.present, "there already"), (self.mounted, "from another repository")] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        let login = Login { username: "me".into(), password: "hidden".into() };
        assert!(!format!("{login:?}").contains("hidden"));
    }

    #[test]
    fn what_a_record_leaves_out_has_its_default() {
        let access: Access = serde_json::from_str(r#"{"insecure":true}"#).unwrap();
        assert_eq!(access, Access { insecure: true, ..Access::default() });
    }
}
