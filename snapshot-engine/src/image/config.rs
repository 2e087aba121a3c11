//! The config of an image: how to start a container of it, and how it came about (image-spec, `config.md`).

use serde_json::{Map, Value, json};

use crate::model::config::{Config, History};

/// What the image's config says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// How to start a container of it; its platform and history are those of the base.
    pub run: Config,
    /// Who made the snapshot.
    pub author: String,
    /// Why.
    pub message: String,
    /// The command that made it.
    pub created_by: String,
}

/// What became of the base's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// They are no layers of this image: what is in them is in its own.
    Merged,
    /// The first of this image's layers are the base's, so many of them.
    Layers(usize),
}

impl ImageConfig {
    /// The document, with an entry of its history for each layer.
    pub(super) fn document(&self, created: &str, diff_ids: &[String], base: Base) -> Value {
        let platform = self.run.platform.clone().or_this_machine();
        let mut document = json!({
            "created": created,
            "architecture": platform.architecture,
            "os": platform.os,
            "config": run(&self.run),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": self.history(created, diff_ids.len(), base),
        });
        if !platform.variant.is_empty() {
            document["variant"] = json!(platform.variant);
        }
        if !self.author.is_empty() {
            document["author"] = json!(self.author);
        }
        document
    }

    /// The base's history goes on; who reads it counts the entries that made a layer, and there must be as many as layers.
    fn history(&self, created: &str, layers: usize, base: Base) -> Vec<History> {
        let mut history = self.run.history.clone();
        let known = history.iter().filter(|entry| !entry.empty_layer).count();
        let of_base = match base {
            Base::Layers(count) => count,
            Base::Merged => 0,
        };
        let told = if known > of_base {
            history.iter_mut().for_each(|entry| entry.empty_layer = true);
            0
        } else {
            known
        };
        // A runtime may put a layer of its own on top of the image's, as docker does.
        let own = |what: &str| History {
            created: created.to_owned(),
            created_by: format!("snapshot-engine: {what}"),
            ..History::default()
        };
        history.extend((told..of_base).map(|_| own("layer below the container")));
        history.extend((of_base + 1..layers).map(|_| own("blob")));
        let by = if self.created_by.is_empty() { "snapshot-engine" } else { &self.created_by };
        history.push(History {
            created: created.to_owned(),
            created_by: by.to_owned(),
            author: self.author.clone(),
            comment: self.message.clone(),
            empty_layer: false,
        });
        history
    }
}

fn run(config: &Config) -> Value {
    let mut section = Map::new();
    let mut set = |name: &str, value: Value| {
        let empty = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            section.insert(name.to_owned(), value);
        }
    };
    let names = |list: &[String]| Value::Object(list.iter().map(|n| (n.clone(), json!({}))).collect());
    set("Cmd", json!(config.command));
    set("Entrypoint", json!(config.entrypoint));
    set("Env", json!(config.env));
    set("User", json!(config.user));
    set("WorkingDir", json!(config.workdir));
    set("Labels", json!(config.labels));
    set("ExposedPorts", names(&config.ports));
    set("Volumes", names(&config.volumes));
    set("StopSignal", json!(config.stop_signal));
    set("Healthcheck", json!(config.healthcheck));
    set("Shell", json!(config.shell));
    set("OnBuild", json!(config.on_build));
    Value::Object(section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::{Healthcheck, Platform};

    fn base() -> Config {
        let entry =
            |by: &str, empty| History { created_by: by.into(), empty_layer: empty, ..History::default() };
        Config {
            command: vec!["serve".into()],
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ports: vec!["80/tcp".into()],
            volumes: vec!["/data".into()],
            stop_signal: "SIGINT".into(),
            healthcheck: Some(Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() }),
            shell: vec!["/bin/bash".into(), "-c".into()],
            platform: Platform { architecture: "arm".into(), variant: "v6".into(), os: String::new() },
            history: vec![entry("ADD", false), entry("ENV", true), entry("RUN", false)],
            ..Config::default()
        }
    }

    fn made_layers(document: &Value) -> usize {
        document["history"].as_array().unwrap().iter().filter(|e| e["empty_layer"] != true).count()
    }

    #[test]
    fn what_the_base_says_is_kept() {
        let config =
            ImageConfig { run: base(), author: "me".into(), message: "why".into(), created_by: "x".into() };
        let document = config.document("2020", &["a".into(), "b".into(), "c".into()], Base::Layers(2));
        let run = &document["config"];
        assert_eq!(
            (&run["Cmd"][0], &run["Labels"]["a"], &run["StopSignal"]),
            (&json!("serve"), &json!("b"), &json!("SIGINT"))
        );
        assert_eq!((&run["ExposedPorts"], &run["Volumes"]), (&json!({"80/tcp": {}}), &json!({"/data": {}})));
        assert_eq!((&run["Healthcheck"]["Test"][0], &run["Shell"][0]), (&json!("NONE"), &json!("/bin/bash")));
        assert!(run.get("Entrypoint").is_none() && run.get("OnBuild").is_none());
        assert_eq!(
            (&document["architecture"], &document["variant"], &document["os"]),
            (&json!("arm"), &json!("v6"), &json!("linux"))
        );
        let last = document["history"].as_array().unwrap().last().unwrap();
        assert_eq!(last, &json!({"created": "2020", "created_by": "x", "author": "me", "comment": "why"}));
        assert_eq!((document["history"].as_array().unwrap().len(), made_layers(&document)), (4, 3));
    }

    #[test]
    fn the_history_has_an_entry_for_each_layer_whatever_the_base_says() {
        let config = ImageConfig { run: base(), ..ImageConfig::default() };
        for (layers, base) in [
            (1, Base::Merged),
            (4, Base::Merged),
            (3, Base::Layers(2)),
            (6, Base::Layers(5)),
            (1, Base::Layers(0)),
        ] {
            let ids: Vec<String> = (0..layers).map(|n| n.to_string()).collect();
            let document = config.document("2020", &ids, base);
            assert_eq!(made_layers(&document), layers, "{base:?}: {document:#}");
            assert!(document["history"].as_array().unwrap().len() > 3);
        }
    }
}
