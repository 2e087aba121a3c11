//! The little of the kubelet's side of CRI that makes a pod on the host's network with a container in it. The numbers are those of
//! cri-api's `runtime/v1/api.proto`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

#[derive(Clone, PartialEq, prost::Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<PodLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodLinux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

/// `LinuxSandboxSecurityContext`, and `LinuxContainerSecurityContext`, whose options have another number.
#[derive(Clone, PartialEq, prost::Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

/// `NamespaceMode`: the node's network, for which no plugin is needed; a PID namespace for each container.
const OPTIONS: NamespaceOptions = NamespaceOptions { network: 2, pid: 1 };

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

/// A request or an answer that is an id and nothing else.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// A pod that was made, with what its containers must be told of it.
pub(crate) struct Pod {
    id: String,
    config: PodConfig,
    attempts: std::cell::Cell<u32>,
}

/// See the head of this file.
pub(crate) struct Kubelet {
    socket: PathBuf,
}

impl Kubelet {
    pub(crate) fn new(socket: &Path) -> Kubelet {
        Kubelet { socket: socket.to_owned() }
    }

    fn call<Q, A>(&self, method: &'static str, question: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let socket = self.socket.clone();
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
            let connector = tower::service_fn(move |_: tonic::transport::Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let service = if method == "PullImage" { "ImageService" } else { "RuntimeService" };
            let path = format!("/runtime.v1.{service}/{method}").parse()?;
            let answer = client.unary(tonic::Request::new(question), path, codec).await;
            Ok(answer.with_context(|| method)?.into_inner())
        })
    }

    /// Has an image pulled from its registry.
    pub(crate) fn pull(&self, image: &str) -> Result<()> {
        // The answer is the image's name again, under the number of an id.
        let question = PullImage { image: Some(ImageSpec { image: image.to_owned() }) };
        self.call("PullImage", question).map(|Id { .. }| ())
    }

    /// A pod on the node's network.
    pub(crate) fn run_pod(&self, name: &str, namespace: &str, cgroup: &str) -> Result<Pod> {
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: namespace.into(),
            }),
            labels: HashMap::from([("team".to_owned(), "blue".to_owned())]),
            linux: Some(PodLinux {
                cgroup_parent: cgroup.to_owned(),
                security: Some(Security { namespaces: Some(OPTIONS) }),
            }),
        };
        let Id { id } = self.call("RunPodSandbox", RunPod { config: Some(config.clone()) })?;
        Ok(Pod { id, config, attempts: std::cell::Cell::new(0) })
    }

    /// A container in it, started. Its id.
    pub(crate) fn run_container(
        &self,
        pod: &Pod,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let attempt = pod.attempts.replace(pod.attempts.get() + 1);
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(ContainerLinux { security: Some(ContainerSecurity { namespaces: Some(OPTIONS) }) }),
        };
        let question = CreateContainer {
            pod: pod.id.clone(),
            config: Some(config),
            pod_config: Some(pod.config.clone()),
        };
        let Id { id } = self.call("CreateContainer", question)?;
        let Empty {} = self.call("StartContainer", Id { id: id.clone() })?;
        Ok(id)
    }

    /// Ends a container at once.
    pub(crate) fn stop(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("StopContainer", Id { id: id.to_owned() })?;
        Ok(())
    }
}
