//! Containers of containerd: ctr's, nerdctl's, and in other namespaces docker's (`moby`) and Kubernetes' (`k8s.io`).
//!
//! ```text
//!   Namespaces.List ─► in each: Containers.List (id, image, labels, snapshot, spec)   Tasks.List (pid, status)
//!                               Images.Get (digest)                                   Snapshots.Mounts (layers, of what has no task)
//! ```
//!
//! The messages hold the few fields that are read here, by their numbers in containerd's `api/services/*/v1/*.proto`; those numbers are
//! its promise to every client. So nothing has to be generated, and no `protoc` is needed to build the engine.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::wire::{Daemon, Failed, Grpc, Peer};
use super::{Candidate, Wanted};
use crate::container::candidate::{ImageRef, Layers, SnapshotKey, State};
use crate::container::config::{Config, ImageConfig};
use crate::container::options;
use crate::container::places::Socket;
use crate::container::vantage::Vantage;
use crate::model::config::Platform;
use crate::model::reference::Runtime;

/// Asks one daemon.
pub(super) struct Containerd {
    pub(super) socket: Socket,
}

/// A request without anything to choose by.
#[derive(Clone, PartialEq, prost::Message)]
struct Everything {}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    image: String,
    #[prost(message, optional, tag = "5")]
    spec: Option<Any>,
    #[prost(string, tag = "6")]
    snapshotter: String,
    #[prost(string, tag = "7")]
    snapshot_key: String,
}

/// `google.protobuf.Any`; of a container's spec the value is JSON.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tasks {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<Task>,
}

/// `containerd.v1.types.Process`.
#[derive(Clone, PartialEq, prost::Message)]
struct Task {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint32, tag = "3")]
    pid: u32,
    #[prost(int32, tag = "4")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetImage {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(string, tag = "2")]
    digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetMounts {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mounts {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadContent {
    #[prost(string, tag = "1")]
    digest: String,
}

/// A piece of the content, in the order of its offsets.
#[derive(Clone, PartialEq, prost::Message)]
struct Content {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

/// An index or a manifest: of one the first list is empty, of the other the config is missing.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Listed>,
    config: Option<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

const LIST_NAMESPACES: &str = "/containerd.services.namespaces.v1.Namespaces/List";
const LIST_CONTAINERS: &str = "/containerd.services.containers.v1.Containers/List";
const LIST_TASKS: &str = "/containerd.services.tasks.v1.Tasks/List";
const GET_IMAGE: &str = "/containerd.services.images.v1.Images/Get";
const READ_CONTENT: &str = "/containerd.services.content.v1.Content/Read";
const GET_MOUNTS: &str = "/containerd.services.snapshots.v1.Snapshots/Mounts";

impl Daemon for Containerd {
    fn runtime(&self) -> Runtime {
        Runtime::Containerd
    }

    fn socket(&self) -> &Socket {
        &self.socket
    }

    async fn ask(&self, peer: Peer, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Failed> {
        let mut grpc = Grpc::over(peer).await?;
        let all: Namespaces = grpc.call(LIST_NAMESPACES, None, Everything {}).await?.unwrap_or_default();
        let mut found = Vec::new();
        for Namespace { name } in all.namespaces {
            let list = grpc.call(LIST_CONTAINERS, Some(&name), Everything {}).await?;
            let containers: Containers = list.unwrap_or_default();
            let fitting = |container: Container| {
                let exact = wanted.fits(&container.id, &names(&container, &name))?;
                Some((container, exact))
            };
            let fitting: Vec<_> = containers.containers.into_iter().filter_map(fitting).collect();
            if fitting.is_empty() {
                continue;
            }
            let list = grpc.call(LIST_TASKS, Some(&name), Everything {}).await?;
            let tasks = by_container(list.unwrap_or_default());
            for (container, exact) in fitting {
                let task = tasks.get(container.id.as_str());
                let mut candidate = self.candidate(&mut grpc, &name, container, task).await?;
                // A list of all containers shows nothing of it.
                if let (Wanted::Named(_), Some(image)) = (wanted, &candidate.image)
                    && let Some(of_image) = image_config(&mut grpc, &name, &image.digest).await?
                {
                    candidate.config = candidate.config.map(|config| config.of_image(of_image));
                }
                found.push(Candidate { exact, ..candidate });
            }
        }
        Ok(found)
    }
}

impl Containerd {
    async fn candidate(
        &self,
        grpc: &mut Grpc,
        namespace: &str,
        told: Container,
        task: Option<&Task>,
    ) -> Result<Candidate, Failed> {
        // types.Status: created, running, stopped, paused, pausing.
        let state = match task.map_or(0, |task| task.status) {
            1 => State::Created,
            2 => State::Running,
            4 | 5 => State::Paused,
            _ => State::Stopped,
        };
        let image = match told.image.as_str() {
            "" => None,
            name => {
                let question = GetImage { name: name.to_owned() };
                let got: Option<GotImage> = grpc.call(GET_IMAGE, Some(namespace), question).await?;
                let target = got.and_then(|got| got.image?.target);
                let digest = target.map(|target| target.digest).unwrap_or_default();
                Some(ImageRef { name: name.to_owned(), digest, at: Vec::new() })
            }
        };
        let snapshot = (!told.snapshot_key.is_empty()).then(|| SnapshotKey {
            address: self.socket.path.clone(),
            namespace: namespace.to_owned(),
            snapshotter: told.snapshotter.clone(),
            key: told.snapshot_key.clone(),
        });
        // Of what runs the kernel tells the layers.
        let layers = match &snapshot {
            Some(snapshot) if state == State::Stopped => layers(grpc, snapshot).await?,
            _ => None,
        };
        Ok(Candidate {
            names: names(&told, namespace),
            state,
            init: task.filter(|_| state != State::Stopped).and_then(|task| grpc.vantage.process(task.pid)),
            config: told.spec.and_then(|spec| Config::from_spec(&spec.value)),
            image,
            labels: told.labels,
            layers,
            snapshot,
            ..Candidate::new(Runtime::Containerd, told.id, self.socket.path.clone())
        })
    }
}

/// The config of the image whose index or manifest has this digest, out of containerd's content store; `None` if it is not there any more, or
/// is no such document.
async fn image_config(grpc: &mut Grpc, namespace: &str, digest: &str) -> Result<Option<ImageConfig>, Failed> {
    let mut digest = digest.to_owned();
    // From an index to a manifest to the config.
    for _ in 0..2 {
        let Some(text) = content(grpc, namespace, &digest).await? else { return Ok(None) };
        let Ok(document) = serde_json::from_slice::<Document>(&text) else { return Ok(None) };
        if let Some(config) = document.config {
            let text = content(grpc, namespace, &config.digest).await?;
            return Ok(text.and_then(|text| serde_json::from_slice(&text).ok()));
        }
        let Some(own) = of_this_machine(document.manifests) else { return Ok(None) };
        digest = own;
    }
    Ok(None)
}

fn of_this_machine(manifests: Vec<Listed>) -> Option<String> {
    let own = Platform::default().or_this_machine();
    let fits = |listed: &Listed| {
        listed.platform.as_ref().is_none_or(|p| p.os == own.os && p.architecture == own.architecture)
    };
    manifests.into_iter().find(fits).map(|listed| listed.digest)
}

async fn content(grpc: &mut Grpc, namespace: &str, digest: &str) -> Result<Option<Vec<u8>>, Failed> {
    if digest.is_empty() {
        return Ok(None);
    }
    let question = ReadContent { digest: digest.to_owned() };
    let pieces: Option<Vec<Content>> =
        grpc.stream(READ_CONTENT, Some(namespace), question, |p: &Content| p.data.len()).await?;
    Ok(pieces.map(|pieces| pieces.into_iter().flat_map(|piece| piece.data).collect()))
}

/// nerdctl's name, the id, and both with the namespace before them: an id is unique only within its namespace.
fn names(container: &Container, namespace: &str) -> Vec<String> {
    let own = container.labels.get("nerdctl/name").filter(|name| !name.is_empty());
    let mut names: Vec<String> = own.into_iter().chain([&container.id]).cloned().collect();
    names.extend(names.clone().iter().map(|name| format!("{namespace}/{name}")));
    names
}

/// containerd 1.6 leaves the container's id out of a task, whose own id is the same.
fn by_container(tasks: Tasks) -> HashMap<String, Task> {
    let id =
        |task: &Task| if task.container_id.is_empty() { task.id.clone() } else { task.container_id.clone() };
    tasks.tasks.into_iter().map(|task| (id(&task), task)).collect()
}

/// The layers of an active snapshot, as the snapshotter would mount them; `None` if it is gone, or no overlay.
pub(super) async fn layers(grpc: &mut Grpc, snapshot: &SnapshotKey) -> Result<Option<Layers>, Failed> {
    let question = GetMounts { snapshotter: snapshot.snapshotter.clone(), key: snapshot.key.clone() };
    let mounts: Option<Mounts> = grpc.call(GET_MOUNTS, Some(&snapshot.namespace), question).await?;
    Ok(mounts.and_then(|mounts| overlay(mounts, grpc.vantage)))
}

fn overlay(mounts: Mounts, vantage: Vantage) -> Option<Layers> {
    let mount = mounts.mounts.into_iter().find(|mount| mount.kind == "overlay")?;
    // One option a string, so a comma is part of a name, which it never is in mountinfo.
    let parsed = mount.options.iter().map(|option| options::parse(option.replace(',', "\\054").as_bytes()));
    let mut told = options::Options::default();
    for one in parsed {
        told.upper = told.upper.or(one.upper);
        told.work = told.work.or(one.work);
        told.lowers.extend(one.lowers);
        told.userxattr |= one.userxattr;
    }
    let path = |bytes: Vec<u8>| vantage.path(Path::new(&OsString::from_vec(bytes)));
    let first = |written: Option<Vec<u8>>| options::meanings(&written?).into_iter().next().map(path);
    let lowers: Vec<PathBuf> = told.lowers.into_iter().map(path).collect();
    Some(Layers { upper: first(told.upper)?, work: first(told.work)?, lowers, userxattr: told.userxattr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_namespace() {
        let plain = Container { id: "a1".into(), ..Container::default() };
        assert_eq!(names(&plain, "default"), ["a1", "default/a1"]);
        let labels = BTreeMap::from([("nerdctl/name".to_owned(), "web".to_owned())]);
        let named = Container { labels, ..plain };
        assert_eq!(names(&named, "x"), ["web", "a1", "x/web", "x/a1"]);
    }

    #[test]
    fn of_an_index_the_manifest_for_this_machine_is_read() {
        let own = Platform::default().or_this_machine().architecture;
        let text = format!(
            r#"{{"manifests":[{{"digest":"sha256:1","platform":{{"os":"linux","architecture":"other"}}}},
                {{"digest":"sha256:2","platform":{{"os":"linux","architecture":"{own}","variant":"v8"}}}}]}}"#
        );
        let document: Document = serde_json::from_str(&text).unwrap();
        assert!(document.config.is_none());
        assert_eq!(of_this_machine(document.manifests).as_deref(), Some("sha256:2"));
    }

    #[test]
    fn a_snapshots_mount_becomes_layers() {
        let mount = |kind: &str, options: &[&str]| Mounts {
            mounts: vec![Mount {
                kind: kind.into(),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
            }],
        };
        let options =
            ["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1,a/fs", "userxattr"];
        let layers = overlay(mount("overlay", &options), Vantage::of(None)).unwrap();
        assert_eq!((layers.upper.to_str(), layers.work.to_str()), (Some("/s/9/fs"), Some("/s/9/work")));
        assert_eq!(layers.lowers, [Path::new("/s/2/fs"), Path::new("/s/1,a/fs")]);
        assert!(layers.userxattr);
        // A snapshot without a parent, and one that is only to be looked at.
        assert_eq!(overlay(mount("bind", &["rbind", "rw"]), Vantage::of(None)), None);
        assert_eq!(overlay(mount("overlay", &["lowerdir=/a:/b"]), Vantage::of(None)), None);
    }
}
