//! Containers of docker, and of whoever speaks its API: podman's service does.
//!
//! `GET /containers/json?all=1` lists them, `GET /containers/ID/json` tells of one; both without a version in the path, so each daemon answers in its own.
//! What is read here has had these names since version 1.20 of the API (docs/api of moby; podman's `pkg/api/handlers/compat`).
//!
//! With the containerd image store docker names no layers: they are a snapshot at its containerd, whose key is the container's id
//! (moby, daemon/containerd/image_snapshot.go). Of what does not run they are asked for there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::wire::{Daemon, Failed, Grpc, Http, Peer, converse};
use super::{Candidate, Wanted, containerd};
use crate::container::candidate::{ImageRef, Layers, SnapshotKey, State};
use crate::container::config::{Config, Section};
use crate::container::places::Socket;
use crate::container::vantage::Vantage;
use crate::model::config::{History, Platform};
use crate::model::reference::Runtime;
use crate::model::rfc3339::rfc3339;

/// Asks one daemon.
pub(super) struct Docker {
    pub(super) runtime: Runtime,
    pub(super) socket: Socket,
    /// Where docker's containerd may be.
    pub(super) containerd: Vec<Socket>,
}

/// The namespace that docker works in at its containerd.
const AT_CONTAINERD: &str = "moby";

/// One of the list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
}

/// A container. The API says null where others say nothing.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    state: InspectedState,
    /// The image's id.
    #[serde(default)]
    image: String,
    config: InspectedConfig,
    graph_driver: Option<GraphDriver>,
    /// With the containerd image store, the snapshotter.
    #[serde(default)]
    driver: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: String,
    pid: u32,
}

/// An image.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedImage {
    os: String,
    architecture: String,
    variant: String,
    /// `REPOSITORY@DIGEST` for each registry that it came from or was pushed to.
    repo_digests: Option<Vec<String>>,
}

/// A step of an image's history, the newest first.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    /// In seconds since the epoch.
    #[serde(default)]
    created: i64,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    size: i64,
}

/// What only the config of a container has.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    image: String,
    #[serde(flatten)]
    section: Section,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    /// Of overlay2 and podman's overlay: `UpperDir`, `WorkDir`, `LowerDir`. The containerd image store has none.
    data: Option<BTreeMap<String, String>>,
}

impl Daemon for Docker {
    fn runtime(&self) -> Runtime {
        self.runtime
    }

    fn socket(&self) -> &Socket {
        &self.socket
    }

    async fn ask(&self, peer: Peer, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Failed> {
        let mut http = Http::over(peer).await?;
        let listed: Vec<Listed> = http.get("/containers/json?all=1").await?.unwrap_or_default();
        let mut found = Vec::new();
        for one in listed {
            let names: Vec<String> = one.names.unwrap_or_default().iter().map(|n| plain(n)).collect();
            let Some(exact) = wanted.fits(&one.id, &names) else { continue };
            // Removed since it was listed: it is not wanted any more.
            let inspected: Option<Inspected> = http.get(&format!("/containers/{}/json", one.id)).await?;
            let Some(inspected) = inspected else { continue };
            let image = inspected.image.clone();
            let mut candidate = self.candidate(inspected, http.vantage);
            // A list of all containers shows nothing of it.
            if let (Wanted::Named(_), Some(config), Some(known)) =
                (wanted, &mut candidate.config, &mut candidate.image)
            {
                (config.platform, config.history, known.at) = of_image(&mut http, &image).await?;
            }
            found.push(Candidate { exact, ..candidate });
        }
        Ok(found)
    }

    /// The snapshot of a container whose layers docker does not name, at the containerd that has it.
    fn completed(&self, mut candidate: Candidate) -> Candidate {
        let Some(mut snapshot) = candidate.snapshot.take() else { return candidate };
        for socket in &self.containerd {
            let found = converse(Runtime::Containerd, socket, async |peer| {
                containerd::layers(&mut Grpc::over(peer).await?, &snapshot).await
            });
            // That one cannot be asked is said by its own resolver.
            if let Ok(Some(Some(layers))) = found {
                snapshot.address.clone_from(&socket.path);
                return Candidate { snapshot: Some(snapshot), layers: Some(layers), ..candidate };
            }
        }
        Candidate { snapshot: Some(snapshot), ..candidate }
    }
}

impl Docker {
    fn candidate(&self, told: Inspected, vantage: Vantage) -> Candidate {
        let state = match told.state.status.as_str() {
            "running" | "restarting" | "stopping" => State::Running,
            "paused" => State::Paused,
            "created" | "initialized" => State::Created,
            _ => State::Stopped,
        };
        let InspectedConfig { image, section } = told.config;
        let config = Config::from(section);
        let image = ImageRef { name: image, digest: told.image, at: Vec::new() };
        let layers = told.graph_driver.and_then(|driver| layers(&driver.data?, vantage));
        let snapshot = SnapshotKey {
            address: PathBuf::new(),
            namespace: AT_CONTAINERD.to_owned(),
            snapshotter: told.driver,
            key: told.id.clone(),
        };
        let elsewhere = layers.is_none() && self.runtime == Runtime::Docker;
        Candidate {
            names: vec![plain(&told.name)],
            state,
            init: vantage.process(told.state.pid),
            image: Some(image),
            labels: config.labels.clone(),
            layers,
            snapshot: elsewhere.then_some(snapshot),
            config: Some(config),
            ..Candidate::new(self.runtime, told.id, self.socket.path.clone())
        }
    }
}

/// What the image with this id is for, how it came about, and where registries have it; nothing if it was removed since.
async fn of_image(http: &mut Http, id: &str) -> Result<(Platform, Vec<History>, Vec<String>), Failed> {
    let image: InspectedImage = http.get(&format!("/images/{id}/json")).await?.unwrap_or_default();
    // With the containerd image store, null of an image that has none.
    let steps: Option<Option<Vec<Step>>> = http.get(&format!("/images/{id}/history")).await?;
    let InspectedImage { os, architecture, variant, repo_digests } = image;
    let history = steps.flatten().unwrap_or_default().into_iter().rev().map(History::from).collect();
    Ok((Platform { os, architecture, variant }, history, repo_digests.unwrap_or_default()))
}

/// The API writes names with a slash before them (a link's name has two).
fn plain(name: &str) -> String {
    name.strip_prefix('/').unwrap_or(name).to_owned()
}

fn layers(data: &BTreeMap<String, String>, vantage: Vantage) -> Option<Layers> {
    let path = |key| data.get(key).map(|text| vantage.path(Path::new(text)));
    let lowers = data.get("LowerDir").map(String::as_str).unwrap_or_default();
    let lowers: Vec<PathBuf> =
        lowers.split(':').filter(|text| !text.is_empty()).map(|text| vantage.path(Path::new(text))).collect();
    Some(Layers { upper: path("UpperDir")?, work: path("WorkDir")?, lowers, userxattr: false })
}

fn since_epoch(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

impl From<Step> for History {
    fn from(told: Step) -> History {
        History {
            created: rfc3339(since_epoch(told.created)),
            created_by: told.created_by,
            comment: told.comment,
            // The API does not say which steps made a layer, but how large it is.
            empty_layer: told.size == 0,
            ..History::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Resolver as _;
    use super::*;
    use crate::container::{Error, Stopped};

    /// What docker 20.10 and podman 4.3 have answered; the parts that are not read here are left out.
    fn recorded(text: &str) -> Candidate {
        let socket = Socket { path: "/run/docker.sock".into(), usual: true };
        let asked = Docker { runtime: Runtime::Docker, socket, containerd: Vec::new() };
        asked.candidate(serde_json::from_str(text).unwrap(), Vantage::of(None))
    }

    #[test]
    fn what_docker_says_of_a_container() {
        let told = recorded(include_str!("recorded/docker-running.json"));
        assert_eq!((told.names.as_slice(), told.state), (&["web".to_owned()][..], State::Running));
        assert!(told.id.starts_with("00095509f05c") && told.init.is_some_and(|init| init.0 == 116));
        let image = told.image.unwrap();
        assert_eq!(image.name, "localhost/busy:1");
        assert!(image.digest.starts_with("sha256:34479cb3"), "{}", image.digest);
        let config = told.config.unwrap();
        assert_eq!(
            (config.command.join(" "), config.env),
            ("/bin/busybox sleep 1000".into(), vec!["A=b".into()])
        );
        assert_eq!(config.labels["x"], "y");
        let layers = told.layers.unwrap();
        assert!(layers.upper.starts_with("/var/lib/docker/overlay2") && layers.upper.ends_with("diff"));
        assert!(layers.work.ends_with("work"));
        assert_eq!(layers.lowers.len(), 2);
        assert!(layers.lowers[0].to_string_lossy().contains("-init/diff"), "the uppermost is first");
    }

    #[test]
    fn states_are_told_apart() {
        let paused = recorded(include_str!("recorded/docker-paused.json"));
        assert_eq!((paused.state, paused.init.is_some()), (State::Paused, true));
        let stopped = recorded(include_str!("recorded/docker-stopped.json"));
        assert_eq!((stopped.state, stopped.init), (State::Stopped, None));
        assert!(stopped.layers.is_some());
    }

    #[test]
    fn podmans_service_says_the_same_in_the_same_words() {
        let running = recorded(include_str!("recorded/podman-running.json"));
        assert_eq!((running.shown(), running.state), ("web", State::Running));
        let config = running.config.unwrap();
        assert_eq!((config.workdir.as_str(), config.stop_signal.as_str()), ("/", "15"));
        let created = recorded(include_str!("recorded/podman-created.json"));
        assert_eq!((created.state, created.init), (State::Created, None));
        assert!(created.layers.unwrap().upper.starts_with("/var/lib/containers/storage/overlay"));
        for list in [include_str!("recorded/docker-list.json"), include_str!("recorded/podman-list.json")] {
            let listed: Vec<Listed> = serde_json::from_str(list).unwrap();
            assert!(listed.iter().any(|one| one.names.as_deref() == Some(&["/web".to_owned()])));
        }
    }

    #[test]
    fn with_the_containerd_image_store_there_is_a_snapshot_instead() {
        let recorded_layers = recorded(include_str!("recorded/docker-stopped.json"));
        assert_eq!(recorded_layers.snapshot, None);
        let mut told: serde_json::Value =
            serde_json::from_str(include_str!("recorded/docker-stopped.json")).unwrap();
        for data in [serde_json::json!({ "Data": null, "Name": "overlayfs" }), serde_json::Value::Null] {
            told["GraphDriver"] = data;
            told["Driver"] = "overlayfs".into();
            let candidate = recorded(&told.to_string());
            assert_eq!(candidate.layers, None);
            let snapshot = candidate.snapshot.unwrap();
            assert_eq!((snapshot.namespace.as_str(), snapshot.snapshotter.as_str()), ("moby", "overlayfs"));
            assert_eq!(snapshot.key, candidate.id);
            // Nobody has them: what to do is said.
            let error = Stopped::of("web", recorded(&told.to_string())).unwrap_err();
            assert!(matches!(error, Error::LayersElsewhere { .. }), "{error:?}");
            assert!(error.to_string().contains("--containerd-address"), "{error}");
        }
    }

    /// Answers each request with what is written for its path, and nothing for others.
    fn serve(at: &Path, answers: Vec<(String, String)>) {
        use std::io::{BufRead as _, BufReader, Write as _};
        let listener = std::os::unix::net::UnixListener::bind(at).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(request)) = lines.next() {
                lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let found = answers.iter().find(|(known, _)| *known == path);
                let (status, body) = found.map_or(("404 No", ""), |(_, body)| ("200 OK", body.as_str()));
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                if (&stream).write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_err() {
                    return;
                }
            }
        });
    }

    #[test]
    fn of_the_container_that_is_wanted_the_image_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let told: serde_json::Value =
            serde_json::from_str(include_str!("recorded/docker-running.json")).unwrap();
        let (id, image) = (told["Id"].as_str().unwrap(), told["Image"].as_str().unwrap());
        let list = format!(r#"[{{"Id":"{id}","Names":["/web"]}}]"#);
        let history = r#"[{"Created":1700000000,"CreatedBy":"CMD x","Size":0,"Comment":"c"},{"Created":0,"CreatedBy":"ADD y","Size":7}]"#;
        let answers = vec![
            ("/containers/json?all=1".to_owned(), list),
            (format!("/containers/{id}/json"), told.to_string()),
            (
                format!("/images/{image}/json"),
                r#"{"Os":"linux","Architecture":"arm64","Variant":"v8","RepoDigests":["reg/busy@sha256:1"]}"#
                    .to_owned(),
            ),
            (format!("/images/{image}/history"), history.to_owned()),
        ];
        let ask = |wanted: Wanted<'_>, name: &str, answers: Vec<(String, String)>| {
            let socket = Socket { path: dir.path().join(name), usual: false };
            serve(&socket.path, answers);
            let docker = Docker { runtime: Runtime::Docker, socket, containerd: Vec::new() };
            let found = docker.find(wanted).unwrap().remove(0);
            (found.config.unwrap(), found.image.unwrap().at)
        };
        let (config, at) = ask(Wanted::Named("web"), "a.sock", answers.clone());
        assert_eq!(at, ["reg/busy@sha256:1"]);
        assert_eq!(
            (config.platform.architecture.as_str(), config.platform.variant.as_str()),
            ("arm64", "v8")
        );
        let history: Vec<_> = config.history.iter().map(|h| (h.created_by.as_str(), h.empty_layer)).collect();
        assert_eq!(history, [("ADD y", false), ("CMD x", true)]);
        assert_eq!(config.history[1].created, "2023-11-14T22:13:20Z");
        // Of an image that was removed meanwhile nothing is known.
        let (config, at) = ask(Wanted::Named("web"), "b.sock", answers[..2].to_vec());
        assert!(at.is_empty() && config.history.is_empty() && config.platform == Platform::default());
        let mut none = answers.clone();
        none[3].1 = "null".to_owned();
        let (config, _) = ask(Wanted::Named("web"), "d.sock", none);
        assert!(config.history.is_empty() && config.platform.architecture == "arm64");
        let (config, _) = ask(Wanted::All, "c.sock", answers);
        assert!(config.history.is_empty(), "a list does not ask for it");
    }
}
