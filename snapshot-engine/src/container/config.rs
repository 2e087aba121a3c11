//! How the container was started, for the image's config.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::process;
pub use crate::model::config::Config;
use crate::model::config::{Healthcheck, History, Platform};
use crate::model::pid::Pid;

/// The section `config` of an image's config, and docker's `Config` of a container: the same words. Null stands for nothing.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Section {
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    healthcheck: Option<Healthcheck>,
    #[serde(deserialize_with = "or_default")]
    shell: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    on_build: Vec<String>,
}

/// What is null or of another form than expected is as good as not said: it must not hide the container.
fn or_default<'de, D: Deserializer<'de>, T: Default + for<'a> Deserialize<'a>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(T::deserialize(Value::deserialize(deserializer)?).unwrap_or_default())
}

impl From<Section> for Config {
    fn from(told: Section) -> Config {
        Config {
            command: told.cmd,
            entrypoint: told.entrypoint,
            env: told.env,
            user: told.user,
            workdir: told.working_dir,
            labels: told.labels,
            ports: told.exposed_ports.into_keys().collect(),
            volumes: told.volumes.into_keys().collect(),
            stop_signal: told.stop_signal,
            healthcheck: told.healthcheck.filter(|check| !check.test.is_empty()),
            shell: told.shell,
            on_build: told.on_build,
            ..Config::default()
        }
    }
}

/// The config of the image a container was started from (image-spec, `config.md`).
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ImageConfig {
    architecture: String,
    os: String,
    variant: String,
    #[serde(deserialize_with = "or_default")]
    config: Section,
    #[serde(deserialize_with = "or_default")]
    history: Vec<History>,
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
    /// The same, with what a runtime below the image level does not know of it taken from the image it was started from.
    pub(super) fn of_image(self, image: ImageConfig) -> Config {
        let ImageConfig { architecture, os, variant, config, history } = image;
        let base = Config::from(config);
        let (entrypoint, command) = split(&base, self.command);
        // A runtime gives each container a name of its own; it is not the image's to keep.
        let own = |pair: &String| !pair.starts_with("HOSTNAME=") || base.env.contains(pair);
        let default = |given: String, of_runtime: &str, of_image: String| {
            if given == of_runtime && of_image.is_empty() { of_image } else { given }
        };
        let mut labels = base.labels;
        labels.extend(self.labels);
        Config {
            command,
            entrypoint,
            env: self.env.into_iter().filter(own).collect(),
            user: default(self.user, "0:0", base.user),
            workdir: default(self.workdir, "/", base.workdir),
            labels,
            platform: Platform { os, architecture, variant },
            history,
            ports: base.ports,
            volumes: base.volumes,
            stop_signal: base.stop_signal,
            healthcheck: base.healthcheck,
            shell: base.shell,
            on_build: base.on_build,
        }
    }

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

/// The image's own entrypoint, if the command line begins with it: whoever starts the new image with other arguments expects them behind it.
fn split(base: &Config, line: Vec<String>) -> (Vec<String>, Vec<String>) {
    match line.strip_prefix(base.entrypoint.as_slice()) {
        Some(rest) if !base.entrypoint.is_empty() => (base.entrypoint.clone(), rest.to_vec()),
        _ => (Vec::new(), line),
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

    #[test]
    fn what_only_the_image_knows_is_taken_from_it() {
        let image = r#"{"architecture":"arm64","variant":"v8","os":"linux","created":"x",
            "config":{"Entrypoint":["/entry"],"Cmd":["serve"],"Env":["A=b"],"User":"app","ExposedPorts":{"80/tcp":{}},
                "Volumes":{"/data":{}},"Labels":{"a":"1","b":"2"},"StopSignal":"SIGINT","Shell":null,"OnBuild":null,
                "Healthcheck":{"Test":["CMD","/ok"],"Interval":5000000000}},
            "history":[{"created":"2020-01-01T00:00:00Z","created_by":"ADD","empty_layer":false}]}"#;
        let bundle = r#"{"process":{"args":["/entry","other"],"env":["A=b","C=d","HOSTNAME=x"],"cwd":"/","user":{"uid":7,"gid":8}}}"#;
        let told = Config::from_spec(bundle.as_bytes()).unwrap();
        let told = Config { labels: [("b".to_owned(), "3".to_owned())].into(), ..told };
        let config = told.of_image(serde_json::from_str(image).unwrap());
        assert_eq!(
            (config.entrypoint.join(" "), config.command.join(" ")),
            ("/entry".into(), "other".into())
        );
        assert_eq!(config.env, ["A=b", "C=d"]);
        assert_eq!((config.user.as_str(), config.workdir.as_str()), ("7:8", ""));
        assert_eq!((config.labels["a"].as_str(), config.labels["b"].as_str()), ("1", "3"));
        assert_eq!((config.ports, config.volumes), (vec!["80/tcp".to_owned()], vec!["/data".to_owned()]));
        assert_eq!((config.stop_signal.as_str(), config.platform.variant.as_str()), ("SIGINT", "v8"));
        assert_eq!(config.healthcheck.unwrap().interval, 5_000_000_000);
        assert_eq!(config.history[0].created_by, "ADD");
    }

    #[test]
    fn what_is_of_another_form_hides_nothing() {
        let section: Section = serde_json::from_str(
            r#"{"Cmd":["x"],"Entrypoint":"text","Healthcheck":7,"Env":null,"Later":{}}"#,
        )
        .unwrap();
        let config = Config::from(section);
        assert_eq!(
            (config.command, config.entrypoint, config.healthcheck),
            (vec!["x".to_owned()], vec![], None)
        );
    }
}
