//! Who we are at a registry, where the user has not said so: from the files that `docker login` and `podman login` write.
//!
//! ```text
//!   REGISTRY_AUTH_FILE                                   alone, if it is set
//!   XDG_RUNTIME_DIR/containers/auth.json                 podman, skopeo (containers-auth.json(5)); without the variable /run/containers/UID
//!   XDG_CONFIG_HOME/containers/auth.json                 ~/.config
//!   DOCKER_CONFIG/config.json                            docker; without the variable ~/.docker
//! ```
//!
//! In each: `credHelpers` names a program for a registry, `auths` has `base64(name:password)` for it or for a part of its repositories, `credsStore` names a
//! program for all. The first file that knows something decides.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::Reference;
use serde::Deserialize;

use super::helper;
use crate::deliver::DeliverError;
use crate::model::access::Login;

/// What was found.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Name and password.
    Login(Login),
    /// A token that others are got for (OAuth 2's refresh token).
    Identity(String),
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Login(login) => login.fmt(f),
            Found::Identity(_) => f.write_str("Identity(..)"),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase", default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Where to look, in this order; whether the user has named it, so that it must be there.
fn places() -> Vec<(PathBuf, bool)> {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return vec![(file, true)];
    }
    let home = var("HOME");
    let user = rustix::process::geteuid().as_raw();
    let runtime = var("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from(format!("/run/containers/{user}")));
    // Without the variable podman's file is not in a directory `containers` of its own.
    let runtime = match env::var_os("XDG_RUNTIME_DIR") {
        Some(value) if !value.is_empty() => runtime.join("containers/auth.json"),
        _ => runtime.join("auth.json"),
    };
    let config = var("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = var("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker")));
    [
        Some(runtime),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .map(|path| (path, false))
    .collect()
}

/// Looks for credentials; `None` if nobody knows any.
pub(super) fn find(target: &Reference) -> Result<Option<Found>, DeliverError> {
    for (path, must) in places() {
        let failed = |why: String| DeliverError::Credentials {
            registry: target.registry().to_owned(),
            place: path.display().to_string(),
            why,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if !must && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(e) => return Err(failed(e.to_string())),
        };
        // serde's messages quote what they did not expect, which may be a password.
        let config: Config = serde_json::from_slice(&text)
            .map_err(|e| failed(format!("line {}, column {} is not understood", e.line(), e.column())))?;
        if let Some(found) = look(&config, target).map_err(|bad| match bad {
            Bad::Entry(why) => failed(why.to_owned()),
            Bad::Helper(e) => e,
        })? {
            tracing::debug!("credentials for {} from {}", target.registry(), path.display());
            return Ok(Some(found));
        }
    }
    Ok(None)
}

enum Bad {
    Entry(&'static str),
    Helper(DeliverError),
}

/// How the registry may be named: docker itself writes addresses, and one of its own for its hub.
fn names(target: &Reference) -> Vec<String> {
    let registry = target.registry();
    let mut names = Vec::new();
    // containers-auth.json(5): the longest name that fits.
    let mut path = format!("{registry}/{}", target.repository());
    while let Some(slash) = path.rfind('/') {
        names.push(path.clone());
        path.truncate(slash);
    }
    for host in if registry == "docker.io" { vec!["index.docker.io", registry] } else { vec![registry] } {
        names.push(host.to_owned());
        for (scheme, tail) in
            [("https://", ""), ("https://", "/"), ("https://", "/v1/"), ("https://", "/v2/"), ("http://", "")]
        {
            names.push(format!("{scheme}{host}{tail}"));
        }
    }
    names
}

fn look(config: &Config, target: &Reference) -> Result<Option<Found>, Bad> {
    let names = names(target);
    if let Some(helper) = names.iter().find_map(|name| config.cred_helpers.get(name)) {
        return helper::ask(helper, target.registry()).map_err(Bad::Helper);
    }
    // With a store the entries here are empty, and only say that it knows the registry.
    for auth in names.iter().filter_map(|name| config.auths.get(name)) {
        if !auth.identitytoken.is_empty() {
            return Ok(Some(Found::Identity(auth.identitytoken.clone())));
        }
        if !auth.auth.is_empty() {
            return decode(&auth.auth).map(Some);
        }
        if !auth.username.is_empty() {
            let login = Login { username: auth.username.clone(), password: auth.password.clone() };
            return Ok(Some(Found::Login(login)));
        }
    }
    if config.creds_store.is_empty() {
        return Ok(None);
    }
    let server =
        if target.registry() == "docker.io" { "https://index.docker.io/v1/" } else { target.registry() };
    helper::ask(&config.creds_store, server).map_err(Bad::Helper)
}

fn decode(auth: &str) -> Result<Found, Bad> {
    let bad = Bad::Entry("an entry of `auths` is not in the form of base64(name:password)");
    let Some(text) = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return Err(bad);
    };
    match text.trim_end_matches('\0').split_once(':') {
        Some((username, password)) => {
            Ok(Found::Login(Login { username: username.to_owned(), password: password.to_owned() }))
        }
        None => Err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, target: &str) -> Option<Found> {
        let config: Config = serde_json::from_str(config).unwrap();
        look(&config, &target.parse().unwrap()).unwrap_or_else(|_| panic!("{target} is refused"))
    }

    fn login(username: &str, password: &str) -> Option<Found> {
        Some(Found::Login(Login { username: username.into(), password: password.into() }))
    }

    #[test]
    fn the_longest_name_that_fits_decides() {
        // base64 of a:1, b:2 and c:3:4.
        let config = r#"{"auths": {"r.example": {"auth": "YToxCg=="}, "r.example/team": {"auth": "Yjoy"},
            "https://index.docker.io/v1/": {"auth": "YzozOjQ="}, "empty.example": {}, "t.example": {"identitytoken": "x"}},
            "HttpHeaders": {"User-Agent": "y"}}"#;
        assert_eq!(found(config, "r.example/team/app:1"), login("b", "2"));
        assert_eq!(found(config, "r.example/other/app:1"), login("a", "1\n"));
        assert_eq!(found(config, "docker.io/library/app:1"), login("c", "3:4"), "a password may have colons");
        assert_eq!(found(config, "empty.example/app:1"), None);
        assert_eq!(found(config, "x.example/app:1"), None);
        assert_eq!(found(config, "t.example/app:1"), Some(Found::Identity("x".into())));
    }

    #[test]
    fn what_cannot_be_decoded_is_refused_without_repeating_it() {
        let config: Config =
            serde_json::from_str(r#"{"auths": {"r.example": {"auth": "secret!"}}}"#).unwrap();
        let Err(Bad::Entry(why)) = look(&config, &"r.example/a:1".parse().unwrap()) else {
            panic!("accepted")
        };
        assert!(!why.contains("secret"));
    }

    #[test]
    fn a_helper_is_asked_and_its_refusal_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker-credential-x");
        // Named by its path it would not be looked for in the PATH, which a test must not change for all others.
        let config = r#"{"credHelpers": {"r.example": "../x"}}"#;
        let config: Config = serde_json::from_str(config).unwrap();
        assert!(matches!(look(&config, &"r.example/a:1".parse().unwrap()), Err(Bad::Helper(_))));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let config: Config = serde_json::from_str(r#"{"credsStore": "none-such-here"}"#).unwrap();
        let Err(Bad::Helper(e)) = look(&config, &"r.example/a:1".parse().unwrap()) else { panic!("found") };
        assert!(e.to_string().contains("docker-credential-none-such-here"), "{e}");
    }
}
