//! `containerd:NAMESPACE/NAME:TAG`: blobs into the content store, then a name for them.
//!
//! ```text
//!   Namespaces.Create   Leases.Create ─► in it, for each blob: Content.Info? else Content.Write ─► Images.Create | Update ─► Leases.Delete
//! ```
//!
//! What nothing refers to is collected: until the image refers to the manifest, and the manifest by labels to the rest, the lease keeps it. A killed engine's
//! lease expires. Messages hold the fields that are needed, by their numbers in containerd's `api/services/*/v1/*.proto`, which are its promise to every
//! client (as in `container/resolver/containerd.rs`). The transfer service, which would take a whole archive, is only in containerd 1.7 and later.

mod content;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::content::{Blob, Content, Document};
use super::error::said;
use super::{DeliverError, Meter, docker};
use crate::model::access::{Access, Delivery};
use crate::model::rfc3339::rfc3339;

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateNamespace {
    #[prost(message, optional, tag = "1")]
    namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateLease {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeleteLease {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InfoOf {
    #[prost(string, tag = "1")]
    digest: String,
}

/// An answer that is not looked into.
#[derive(Clone, PartialEq, prost::Message)]
struct Whatever {}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteContent {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    reference: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "7")]
    labels: BTreeMap<String, String>,
}

const WRITE: i32 = 1;
const COMMIT: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

/// Of both `CreateImageRequest` and `UpdateImageRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

pub(super) use content::origin;

const PIECE: u64 = 1 << 20;

/// Puts the image into a namespace.
pub(super) fn import(
    content: &Content,
    namespace: &str,
    name: &str,
    access: &Access,
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    let socket = docker::first(&access.containerd);
    super::run(meter, async {
        let mut daemon = Daemon::connect(socket, namespace, access.timeout.as_duration()).await?;
        daemon.import(content, name, meter).await
    })
}

struct Daemon {
    client: tonic::client::Grpc<Channel>,
    who: String,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    patience: Duration,
}

impl Daemon {
    async fn connect(socket: &Path, namespace: &str, patience: Duration) -> Result<Daemon, DeliverError> {
        let who = format!("containerd ({})", socket.display());
        let failed = |why: String| DeliverError::Daemon { daemon: who.clone(), why };
        let stream = UnixStream::connect(socket).await.map_err(|e| failed(e.to_string()))?;
        let mut stream = Some(stream);
        // One connection is all there is: it is not made anew behind our back, where another daemon might answer.
        let connector = tower::service_fn(move |_: hyper::Uri| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        // The host of a socket's address has no meaning.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = tokio::time::timeout(patience, endpoint.connect_with_connector(connector)).await;
        let channel = channel.map_err(|_| DeliverError::Hung { registry: who.clone(), after: patience })?;
        let channel = channel.map_err(|e| failed(e.to_string()))?;
        let client = tonic::client::Grpc::new(channel);
        let namespace = namespace.parse().map_err(|_| failed("no such namespace is possible".to_owned()))?;
        Ok(Daemon { client, who, namespace, lease: None, patience })
    }

    fn failed(&self, status: &tonic::Status) -> DeliverError {
        let why = format!("{:?}: {}", status.code(), said(status.message()));
        DeliverError::Daemon { daemon: self.who.clone(), why }
    }

    fn dress<T>(&self, request: &mut tonic::Request<T>) {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
    }

    async fn call<Q: prost::Message + 'static>(
        &mut self,
        method: &'static str,
        question: Q,
    ) -> Result<Result<(), tonic::Status>, DeliverError> {
        Ok(self.ask::<Q, Whatever>(method, question).await?.map(drop))
    }

    async fn ask<Q: prost::Message + 'static, A: prost::Message + Default + 'static>(
        &mut self,
        method: &'static str,
        question: Q,
    ) -> Result<Result<A, tonic::Status>, DeliverError> {
        let mut request = tonic::Request::new(question);
        self.dress(&mut request);
        let (who, after) = (self.who.clone(), self.patience);
        let whole = async {
            self.client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let path = hyper::http::uri::PathAndQuery::from_static(method);
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            self.client.unary(request, path, codec).await.map(tonic::Response::into_inner)
        };
        tokio::time::timeout(after, whole).await.map_err(|_| DeliverError::Hung { registry: who, after })
    }

    async fn import(
        &mut self,
        content: &Content,
        name: &str,
        meter: &Meter,
    ) -> Result<Delivery, DeliverError> {
        let namespace = self.namespace.to_str().unwrap_or_default().to_owned();
        let create = CreateNamespace { namespace: Some(Namespace { name: namespace }) };
        let made = self.call("/containerd.services.namespaces.v1.Namespaces/Create", create).await?;
        made.or_else(|e| if e.code() == Code::AlreadyExists { Ok(()) } else { Err(self.failed(&e)) })?;
        let unique = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = format!("snapshot-engine-{}-{unique}", std::process::id());
        let day = SystemTime::now() + Duration::from_secs(86_400);
        let expires = rfc3339(day);
        let lease =
            CreateLease { id: id.clone(), labels: [("containerd.io/gc.expire".to_owned(), expires)].into() };
        let made = self.call("/containerd.services.leases.v1.Leases/Create", lease).await?;
        made.map_err(|e| self.failed(&e))?;
        self.lease = id.parse().ok();
        let done = self.fill(content, name, &id, meter).await;
        self.lease = None;
        let gone = self.call("/containerd.services.leases.v1.Leases/Delete", DeleteLease { id }).await;
        if let Ok(Err(e)) = gone {
            tracing::warn!("a lease of containerd stays until it expires: {}", e.message());
        }
        done
    }

    async fn fill(
        &mut self,
        content: &Content,
        name: &str,
        id: &str,
        meter: &Meter,
    ) -> Result<Delivery, DeliverError> {
        let mut delivery = Delivery { digest: content.root()?.blob.digest.clone(), ..Delivery::default() };
        let documents = content.documents.iter().map(|d| (&d.blob, references(d)));
        let all = content.blobs.iter().map(|blob| (blob, BTreeMap::new())).chain(documents);
        for (blob, labels) in all {
            if meter.is_stopped() {
                return Err(DeliverError::Stopped);
            }
            let info = InfoOf { digest: blob.digest.clone() };
            let there = self.call("/containerd.services.content.v1.Content/Info", info).await?;
            let sent = match there {
                Err(e) if e.code() == Code::NotFound => self.write(blob, labels, id, meter).await?,
                other => other.map(|()| false).map_err(|e| self.failed(&e))?,
            };
            if sent {
                delivery.sent += 1;
                delivery.sent_bytes += blob.size;
            } else {
                delivery.present += 1;
            }
            meter.count(blob.size);
        }
        let root = &content.root()?.blob;
        let target = Descriptor {
            media_type: root.media_type.clone(),
            digest: root.digest.clone(),
            size: i64::try_from(root.size).unwrap_or(i64::MAX),
        };
        let image = PutImage { image: Some(Image { name: name.to_owned(), target: Some(target) }) };
        let made = self.call("/containerd.services.images.v1.Images/Create", image.clone()).await?;
        let made = match made {
            Err(e) if e.code() == Code::AlreadyExists => {
                self.call("/containerd.services.images.v1.Images/Update", image).await?
            }
            made => made,
        };
        made.map_err(|e| self.failed(&e))?;
        Ok(delivery)
    }

    /// Sends a blob; `false` if it came to be there meanwhile.
    async fn write(
        &mut self,
        blob: &Blob,
        labels: BTreeMap<String, String>,
        id: &str,
        meter: &Meter,
    ) -> Result<bool, DeliverError> {
        let file = File::open(&blob.path).map_err(DeliverError::io("read", &blob.path))?;
        let (size, total) = (blob.size, i64::try_from(blob.size).unwrap_or(i64::MAX));
        // A name of its own: what an earlier try left under one is not looked at, and is collected with its lease.
        let base = WriteContent {
            reference: format!("{id}-{}", blob.hex()),
            total,
            expected: blob.digest.clone(),
            ..WriteContent::default()
        };
        let broken = std::sync::Arc::new(std::sync::Mutex::new(None));
        let told = std::sync::Arc::clone(&broken);
        let pieces = (0..size.div_ceil(PIECE)).map({
            let base = base.clone();
            move |n| {
                let at = n * PIECE;
                let mut data = vec![0; usize::try_from((size - at).min(PIECE)).unwrap_or(0)];
                if let Err(e) = file.read_exact_at(&mut data, at) {
                    *told.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                }
                let offset = i64::try_from(at).unwrap_or(i64::MAX);
                WriteContent { action: WRITE, offset, data, ..base.clone() }
            }
        });
        let last = WriteContent { action: COMMIT, offset: total, labels, ..base };
        let mut request = tonic::Request::new(futures_util::stream::iter(pieces.chain([last])));
        self.dress(&mut request);
        let limit = self.patience + Duration::from_secs(size / (4 << 20));
        let (who, client) = (self.who.clone(), &mut self.client);
        let whole = async {
            client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let path =
                hyper::http::uri::PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
            let codec = tonic_prost::ProstCodec::<WriteContent, Whatever>::default();
            let mut answers = client.streaming(request, path, codec).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        let done: Result<(), tonic::Status> = tokio::time::timeout(limit, whole)
            .await
            .map_err(|_| DeliverError::Hung { registry: who, after: limit })?;
        if let Some(e) = broken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            return Err(DeliverError::io("read", &blob.path)(e));
        }
        match done {
            Err(e) if e.code() == Code::AlreadyExists => Ok(false),
            Err(e) => Err(self.failed(&e)),
            Ok(()) => {
                meter.count_sent(size);
                Ok(true)
            }
        }
    }
}

/// The labels by which the collector finds what a manifest or an index refers to.
fn references(document: &Document) -> BTreeMap<String, String> {
    let digest = |d: &serde_json::Value| d["digest"].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| document.json[name].as_array().cloned().unwrap_or_default();
    let mut labels = BTreeMap::new();
    for (kind, key) in [("layers", "l"), ("manifests", "m")] {
        for (n, descriptor) in list(kind).iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.{key}.{n}"), digest(descriptor));
        }
    }
    if document.json["config"].is_object() {
        labels.insert("containerd.io/gc.ref.content.config".to_owned(), digest(&document.json["config"]));
    }
    labels
}
