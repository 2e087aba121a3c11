//! How the container was started, for the image's config.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::process;
use crate::model::pid::Pid;

/// What an image needs to start the container again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The program and its arguments (behind the entrypoint, if there is one).
    pub command: Vec<String>,
    /// The entrypoint. Runtimes below the image level know only the whole command line, so it is often empty.
    pub entrypoint: Vec<String>,
    /// `KEY=value`, only from the runtime's own config: a process's environment may hold secrets that were never meant to be kept.
    pub env: Vec<String>,
    /// `uid:gid`.
    pub user: String,
    /// The working directory.
    pub workdir: String,
    /// The labels of the image and of the container, from the runtime's own config.
    pub labels: BTreeMap<String, String>,
    /// Ports the image exposes: `6379/tcp`.
    pub ports: Vec<String>,
    /// Directories that are volumes: their content is not in the upperdir.
    pub volumes: Vec<String>,
    /// The signal that ends it, by name or number; empty for SIGTERM.
    pub stop_signal: String,
}

/// The part of an OCI runtime bundle's `config.json` that is read here (runtime-spec, `config.md`).
#[derive(Deserialize)]
struct Bundle {
    process: Option<BundleProcess>,
}

#[derive(Deserialize)]
struct BundleProcess {
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    cwd: String,
    #[serde(default)]
    user: BundleUser,
}

#[derive(Deserialize, Default)]
struct BundleUser {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

impl Config {
    /// From an OCI bundle; `None` if it is gone or not readable as one.
    #[must_use]
    pub fn from_bundle(bundle: &Path) -> Option<Config> {
        Config::from_spec(&fs::read(bundle.join("config.json")).ok()?)
    }

    /// From the `config.json` of an OCI bundle, which containerd also keeps of each container.
    #[must_use]
    pub fn from_spec(text: &[u8]) -> Option<Config> {
        let process = serde_json::from_slice::<Bundle>(text).ok()?.process?;
        Some(Config {
            command: process.args,
            env: process.env,
            user: format!("{}:{}", process.user.uid, process.user.gid),
            workdir: process.cwd,
            ..Config::default()
        })
    }

    /// From what `/proc` tells of the init; what cannot be read stays empty.
    #[must_use]
    pub fn from_process(init: Pid) -> Config {
        let dir = process::dir(init);
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let id = |key| {
            let line = status.lines().find_map(|l| l.strip_prefix(key));
            line.and_then(|l| l.split_ascii_whitespace().next()).unwrap_or("0").to_owned()
        };
        Config {
            command: line.split(|b| *b == 0).filter(|a| !a.is_empty()).map(lossy).collect(),
            user: format!("{}:{}", id("Uid:"), id("Gid:")),
            workdir: fs::read_link(dir.join("cwd"))
                .map(|p| p.to_string_lossy().into_owned())
                .unwrap_or_default(),
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_bundle_and_a_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::from_bundle(dir.path()), None);
        let text =
            r#"{"process":{"args":["/bin/sh","-c","x"],"env":["A=b"],"cwd":"/w","user":{"uid":7,"gid":8}}}"#;
        fs::write(dir.path().join("config.json"), text).unwrap();
        let config = Config::from_bundle(dir.path()).unwrap();
        assert_eq!(config.command, ["/bin/sh", "-c", "x"]);
        assert_eq!((config.user.as_str(), config.workdir.as_str()), ("7:8", "/w"));
        let own = Config::from_process(Pid::own());
        assert!(!own.command.is_empty() && own.env.is_empty());
        assert!(own.workdir.starts_with('/'));
    }
}
