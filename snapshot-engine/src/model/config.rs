//! How a container is run, as the config of an image says it (image-spec, `config.md`).
//!
//! `Healthcheck`, `Shell` and `OnBuild` are docker's own (moby, `image/spec/spec.md`); podman and BuildKit keep them as well.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an image needs to start the container again, and what it says of the one it was started from.
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
    /// How its health is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// What the shell form of commands is run by; empty for `/bin/sh -c`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Instructions for a build on top of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// What the image it was started from is for.
    pub platform: Platform,
    /// How the image it was started from came about, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// What an image is for; empty where it is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// As Go names it: `linux`.
    pub os: String,
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// Of the processor: `v8`.
    pub variant: String,
}

impl Platform {
    /// The same, with what is not known filled in with what this machine is.
    #[must_use]
    pub fn or_this_machine(mut self) -> Platform {
        if self.os.is_empty() {
            "linux".clone_into(&mut self.os);
        }
        if self.architecture.is_empty() {
            go_architecture(std::env::consts::ARCH).clone_into(&mut self.architecture);
            self.variant = if self.architecture == "arm" { "v7".to_owned() } else { String::new() };
        }
        self
    }
}

fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// How a container's health is asked for. Times in nanoseconds; 0 for the runtime's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ARGUMENT...]` or `["CMD-SHELL", COMMAND]`.
    pub test: Vec<String>,
    /// Between two of them.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// How long one may take.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// How long failures do not count at the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two of them meanwhile.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// How many failures in a row are too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A step of an image's making (image-spec, `config.md`, `history`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, as RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// By which command.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A remark.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_platform_stays() {
        let arm = Platform { architecture: "arm64".into(), variant: "v8".into(), ..Platform::default() };
        let filled = arm.or_this_machine();
        assert_eq!(
            (filled.os.as_str(), filled.architecture.as_str(), filled.variant.as_str()),
            ("linux", "arm64", "v8")
        );
        assert!(!Platform::default().or_this_machine().architecture.contains("x86"));
    }

    #[test]
    fn configs_of_earlier_records_are_read() {
        let config: Config = serde_json::from_str(r#"{"command":["/x"],"user":"1:2"}"#).unwrap();
        assert_eq!((config.command, config.user.as_str()), (vec!["/x".to_owned()], "1:2"));
    }
}
