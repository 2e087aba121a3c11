//! Containers of Kubernetes, by the interface the kubelet speaks (CRI, `runtime.v1`): containerd and CRI-O have it.
//!
//! ```text
//!   ListPodSandbox (pod's name, namespace, labels)  +  ListContainers  ─►  NAME, POD/NAME, NAMESPACE/POD/NAME
//!   ImageStatus(verbose)     ─► info["info"]: imageSpec, the image's config
//!   ContainerStatus(verbose) ─► info["info"], JSON of the runtime's own: pid, snapshotKey, snapshotter, runtimeSpec
//! ```
//!
//! As in `containerd`, the messages hold what is read here, by the numbers of cri-api's `runtime/v1/api.proto`.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::containerd::layers;
use super::wire::{Daemon, Failed, Grpc, Peer};
use super::{Candidate, Wanted};
use crate::container::candidate::{ImageRef, SnapshotKey, State};
use crate::container::config::{Config, ImageConfig};
use crate::container::places::Socket;
use crate::model::reference::Runtime;

/// Asks one daemon.
pub(super) struct Cri {
    pub(super) socket: Socket,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Everything {}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
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
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<ImageSpec>,
    /// The image's id or digest at the runtime.
    #[prost(string, tag = "5")]
    image_ref: String,
    #[prost(int32, tag = "6")]
    state: i32,
    #[prost(btree_map = "string, string", tag = "8")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetStatus {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotStatus {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    /// The image by name, where the list has only its id.
    #[prost(message, optional, tag = "8")]
    image: Option<ImageSpec>,
    #[prost(string, tag = "9")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotImage {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// The part of an image's `info["info"]` that containerd and CRI-O have in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageInfo {
    image_spec: ImageConfig,
}

/// The part of `info["info"]` that containerd and CRI-O have in common, and containerd's snapshot.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: u32,
    snapshot_key: String,
    snapshotter: String,
    runtime_spec: serde_json::Value,
}

const LIST_SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const GET_STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";

const GET_IMAGE: &str = "/runtime.v1.ImageService/ImageStatus";

/// The namespace at containerd that its CRI service works in.
const AT_CONTAINERD: &str = "k8s.io";

impl Daemon for Cri {
    fn runtime(&self) -> Runtime {
        Runtime::Cri
    }

    fn socket(&self) -> &Socket {
        &self.socket
    }

    async fn ask(&self, peer: Peer, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Failed> {
        let mut grpc = Grpc::over(peer).await?;
        let Some(list) = grpc.call(LIST_CONTAINERS, None, Everything {}).await? else {
            return Ok(Vec::new());
        };
        let Containers { containers } = list;
        if containers.is_empty() {
            return Ok(Vec::new());
        }
        let list: Sandboxes = grpc.call(LIST_SANDBOXES, None, Everything {}).await?.unwrap_or_default();
        let pods: HashMap<String, Sandbox> =
            list.items.into_iter().map(|pod| (pod.id.clone(), pod)).collect();
        let mut found = Vec::new();
        for container in containers {
            let pod = pods.get(&container.sandbox);
            let names = names(&container, pod);
            let Some(exact) = wanted.fits(&container.id, &names) else { continue };
            let question = GetStatus { id: container.id.clone(), verbose: true };
            // Removed since it was listed: it is not wanted any more.
            let Some(status) = grpc.call(GET_STATUS, None, question).await? else { continue };
            let pod_labels = pod.map(|pod| pod.labels.clone()).unwrap_or_default();
            let mut candidate = self.candidate(&mut grpc, container, status).await?;
            // A list of all containers shows nothing of it.
            if let (Wanted::Named(_), Some(image)) = (wanted, &candidate.image)
                && let Some(of_image) = image_config(&mut grpc, image).await?
            {
                candidate.config = candidate.config.map(|config| config.of_image(of_image));
            }
            let mut labels = pod_labels;
            labels.extend(candidate.labels);
            found.push(Candidate { names, exact, labels, ..candidate });
        }
        Ok(found)
    }
}

impl Cri {
    async fn candidate(
        &self,
        grpc: &mut Grpc,
        told: Container,
        status: GotStatus,
    ) -> Result<Candidate, Failed> {
        // runtime.v1.ContainerState: created, running, exited, unknown.
        let state = match told.state {
            0 => State::Created,
            1 => State::Running,
            _ => State::Stopped,
        };
        let info = status.info.get("info").map(String::as_str).unwrap_or_default();
        let info: Info = serde_json::from_str(info).unwrap_or_default();
        let snapshot = (!info.snapshot_key.is_empty()).then(|| SnapshotKey {
            address: self.socket.path.clone(),
            namespace: AT_CONTAINERD.to_owned(),
            snapshotter: if info.snapshotter.is_empty() {
                "overlayfs".to_owned()
            } else {
                info.snapshotter.clone()
            },
            key: info.snapshot_key.clone(),
        });
        // containerd serves both APIs at one socket. CRI-O's layers are in its storage, which is read by itself.
        let layers = match &snapshot {
            Some(snapshot) if state != State::Running => layers(grpc, snapshot).await?,
            _ => None,
        };
        let known = status.status.unwrap_or_default();
        let name = known.image.or(told.image).map(|spec| spec.image).unwrap_or_default();
        let digest = if known.image_ref.is_empty() { told.image_ref } else { known.image_ref };
        // `REPOSITORY@DIGEST` of what came from a registry.
        let at = digest.contains('@').then(|| digest.clone()).into_iter().collect();
        let digest = digest.rsplit('@').next().unwrap_or_default().to_owned();
        let init = if state == State::Stopped { None } else { grpc.vantage.process(info.pid) };
        Ok(Candidate {
            state,
            init,
            config: Config::from_spec(info.runtime_spec.to_string().as_bytes()),
            image: Some(ImageRef { name, digest, at }),
            labels: told.labels,
            layers,
            snapshot,
            ..Candidate::new(Runtime::Cri, told.id, self.socket.path.clone())
        })
    }
}

/// The config of a container's image, if the runtime says it.
async fn image_config(grpc: &mut Grpc, image: &ImageRef) -> Result<Option<ImageConfig>, Failed> {
    let name = if image.digest.is_empty() { &image.name } else { &image.digest };
    let question = GetImage { image: Some(ImageSpec { image: name.clone() }), verbose: true };
    let got: GotImage = grpc.call(GET_IMAGE, None, question).await?.unwrap_or_default();
    let info = got.info.get("info").and_then(|text| serde_json::from_str::<ImageInfo>(text).ok());
    Ok(info.map(|info| info.image_spec))
}

/// `app`, `pod/app`, `namespace/pod/app`, the longest first: it is the only one that is always clear.
fn names(container: &Container, pod: Option<&Sandbox>) -> Vec<String> {
    let Some(own) = container.metadata.as_ref().map(|m| m.name.clone()) else { return Vec::new() };
    let Some(pod) = pod.and_then(|pod| pod.metadata.as_ref()) else { return vec![own] };
    vec![format!("{}/{}/{own}", pod.namespace, pod.name), format!("{}/{own}", pod.name), own]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_its_pods_names() {
        let metadata = Some(ContainerMetadata { name: "app".into() });
        let container = Container { metadata, ..Container::default() };
        let metadata = Some(SandboxMetadata { name: "web-7".into(), namespace: "shop".into() });
        let pod = Sandbox { metadata, ..Sandbox::default() };
        assert_eq!(names(&container, Some(&pod)), ["shop/web-7/app", "web-7/app", "app"]);
        assert_eq!(names(&container, None), ["app"]);
    }

    #[test]
    fn what_runtimes_say_beyond_the_interface_may_be_missing() {
        let info: Info = serde_json::from_str(
            r#"{"sandboxID":"s","pid":7,"runtimeSpec":{"process":{"args":["x"]}},"privileged":false}"#,
        )
        .unwrap();
        assert_eq!((info.pid, info.snapshot_key.as_str()), (7, ""));
        let config = Config::from_spec(info.runtime_spec.to_string().as_bytes()).unwrap();
        assert_eq!(config.command, ["x"]);
        assert_eq!(serde_json::from_str::<Info>("").unwrap_or_default().pid, 0);
    }
}
