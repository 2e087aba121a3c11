//! How the target is reached. What is remembered for `resume` is in `model::access`; name and password are not.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use snapshot_engine::container::Places;
use snapshot_engine::model::access::{Access, Login};
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::model::target::ImageTarget;
use snapshot_engine::pipeline::background::PASSWORD;

use super::{Error, Result};

/// Name and password come from here, or from what `docker login` and `podman login` have written.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Target")]
pub(crate) struct Reach {
    /// Who we are at the registry [env: SNAPSHOT_ENGINE_USERNAME=; the password from SNAPSHOT_ENGINE_PASSWORD=] [default: what docker and podman know]
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Certificates (PEM) that the registry's may be signed by, beside the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_ca: Option<PathBuf>,
    /// The certificate (PEM) to show the registry
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate; in the same file if not given
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Accept a registry whose certificate cannot be verified, or that has none and speaks plain HTTP
    #[arg(long)]
    target_insecure: bool,
    /// How long the target may take to answer one request, beside what the bytes need [default: 30s]
    #[arg(long, value_name = "DURATION")]
    target_timeout: Option<Nanos>,
}

impl Reach {
    /// How the target is reached, but for who we are: what is not given stays as it is.
    pub(crate) fn access(&self, mut access: Access) -> Access {
        for (given, kept) in [
            (&self.tls_ca, &mut access.tls_ca),
            (&self.tls_cert, &mut access.tls_cert),
            (&self.tls_key, &mut access.tls_key),
        ] {
            if given.is_some() {
                kept.clone_from(given);
            }
        }
        // The key of another certificate is of no use.
        if self.tls_cert.is_some() && self.tls_key.is_none() {
            access.tls_key = None;
        }
        access.insecure |= self.target_insecure;
        access.timeout = self.target_timeout.unwrap_or(access.timeout);
        access
    }

    /// Who we are, as far as the user says so.
    pub(crate) fn login(&self) -> Result<Option<Login>> {
        let var = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let username = self.username.clone().or_else(|| var("SNAPSHOT_ENGINE_USERNAME"));
        let password = if self.password_stdin {
            let mut text = String::new();
            std::io::stdin()
                .take(1 << 16)
                .read_to_string(&mut text)
                .map_err(|e| Error::File("/dev/stdin".into(), e))?;
            // What `echo` adds is no part of it.
            Some(text.trim_end_matches(['\n', '\r']).to_owned())
        } else {
            var(PASSWORD)
        };
        match (username, password) {
            (Some(username), Some(password)) => Ok(Some(Login { username, password })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Error::HalfALogin("password").into()),
            (None, Some(_)) => Err(Error::HalfALogin("name").into()),
        }
    }
}

/// Where the daemons are that take images, if the target is one of theirs.
pub(crate) fn daemons(mut access: Access, target: &ImageTarget, places: &Places) -> Access {
    let paths = |sockets: &[snapshot_engine::container::places::Socket]| -> Vec<PathBuf> {
        sockets.iter().map(|socket| socket.path.clone()).collect()
    };
    match target {
        ImageTarget::DockerDaemon { .. } => access.docker = paths(&places.docker),
        ImageTarget::Containerd { .. } => access.containerd = paths(&places.containerd),
        _ => {}
    }
    access
}
