//! The HTTP client: whom it trusts, and what it shows of us.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::chain;
use crate::deliver::DeliverError;
use crate::model::access::Access;

/// A client without anything but what it is given. It follows no redirection: what an upload is answered with is looked at here, and
/// credentials go to nobody else.
pub(in crate::deliver) fn client(
    dress: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, DeliverError>,
) -> Result<Client, DeliverError> {
    // There can be one in a process; another one of the same kind does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plain = Client::builder()
        .user_agent(concat!("snapshot-engine/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(Duration::from_secs(10))
        .tcp_keepalive(Duration::from_secs(15));
    dress(plain)?.build().map_err(|e| unusable(Path::new(WHOLE), chain(&e)))
}

/// In the place of a file: what is wrong with all of them together.
const WHOLE: &str = "TLS";

/// The client for a registry.
pub(super) fn of(access: &Access) -> Result<Client, DeliverError> {
    client(|mut builder| {
        builder = builder.tls_danger_accept_invalid_certs(access.insecure);
        if let Some(path) = &access.tls_ca {
            let all = Certificate::from_pem_bundle(&read(path)?).map_err(|e| unusable(path, chain(&e)))?;
            if all.is_empty() {
                return Err(unusable(path, "there is no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_merge(all);
        }
        if let Some(path) = &access.tls_cert {
            let mut both = read(path)?;
            let key = access.tls_key.as_ref().unwrap_or(path);
            both.push(b'\n');
            both.extend(read(key)?);
            let identity = Identity::from_pem(&both).map_err(|e| unusable(path, chain(&e)))?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    })
    .map_err(|e| match (e, &access.tls_cert) {
        // Each is what it should be, and they do not belong together.
        (DeliverError::Tls { path, why }, Some(cert)) if path == Path::new(WHOLE) => {
            let key = access.tls_key.as_ref().unwrap_or(cert);
            unusable(key, format!("with the certificate `{}`: {why}", cert.display()))
        }
        (e, _) => e,
    })
}

/// Whether the certificates and keys can be used, without asking anybody.
///
/// # Errors
/// [`DeliverError::Tls`], or why they cannot be read.
pub fn check(access: &Access) -> Result<(), DeliverError> {
    of(access).map(drop)
}

fn read(path: &Path) -> Result<Vec<u8>, DeliverError> {
    std::fs::read(path).map_err(DeliverError::io("read", path))
}

fn unusable(path: &Path, why: String) -> DeliverError {
    DeliverError::Tls { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_certificates_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let access = Access { tls_ca: Some(file.clone()), ..Access::default() };
        assert!(matches!(check(&access), Err(DeliverError::Io { .. })), "not there");
        std::fs::write(&file, "no certificate").unwrap();
        assert!(matches!(check(&access), Err(DeliverError::Tls { .. })));
        let access = Access { tls_cert: Some(file), ..Access::default() };
        assert!(matches!(check(&access), Err(DeliverError::Tls { .. })));
        check(&Access::default()).unwrap();
        check(&Access { insecure: true, ..Access::default() }).unwrap();
    }
}
