//! An image out of containerd's content store, if all of it is there: pulled with `discard_unpacked_layers`, or converted, it is not.
//!
//! ```text
//!   Images.Get (digest) ─► Content.Read index, manifest, config ─► Content.Info each layer ─► Content.Read those that are not in the directory yet
//! ```

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::{Daemon, Descriptor, InfoOf};
use crate::deliver::content::hex_of;
use crate::deliver::origin::{Found, Library, Question, follow};
use crate::deliver::{DeliverError, Meter};
use crate::model::base::{Origin, Whereabouts};
use crate::model::progress::Progress;
use crate::model::snapshot::ImageStore;

#[derive(Clone, PartialEq, prost::Message)]
struct GetImage {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotImage {
    #[prost(message, optional, tag = "1")]
    image: Option<super::Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotInfo {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Info {
    #[prost(int64, tag = "2")]
    size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadContent {
    #[prost(string, tag = "1")]
    digest: String,
}

/// A piece of the content, in the order of its offsets.
#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

const GET_IMAGE: &str = "/containerd.services.images.v1.Images/Get";
const INFO: &str = "/containerd.services.content.v1.Content/Info";
const READ: &str = "/containerd.services.content.v1.Content/Read";

/// The longest document that is read.
const LARGEST: usize = 16 << 20;

/// The slowest that content may come, in bytes a second: it is a local disk's.
const SLOWEST: u64 = 4 << 20;

/// The image that a container was started from, with its layers in the question's directory.
pub(in crate::deliver) fn origin(
    question: &Question<'_>,
    store: &ImageStore,
    progress: &dyn Progress,
    meter: &Meter,
) -> Result<Option<Origin>, DeliverError> {
    let patience = question.access.timeout.as_duration();
    crate::deliver::run(meter, async {
        let mut daemon = Daemon::connect(&store.address, &store.namespace, patience).await?;
        let Some(found) = image(&mut daemon, question).await? else { return Ok(None) };
        // All or nothing: what is not there is seen before any of it is read.
        for (digest, size) in &found.layers {
            if daemon.size(digest).await? != Some(*size) {
                return Ok(None);
            }
        }
        progress.total(found.layers.iter().map(|(_, size)| size).sum());
        for (digest, size) in &found.layers {
            let Some(hex) = hex_of(digest) else { return Ok(None) };
            let path = question.blobs.join(hex);
            if !std::fs::metadata(&path).is_ok_and(|there| there.is_file() && there.len() == *size) {
                daemon.fetch(digest, *size, &path, meter).await?;
            }
            meter.count(*size);
        }
        let layers = Whereabouts::Files(question.blobs.to_owned());
        Ok(Some(Origin { manifest: found.manifest, config: found.config, layers }))
    })
}

async fn image(daemon: &mut Daemon, question: &Question<'_>) -> Result<Option<Found>, DeliverError> {
    // What the runtime says may be the digest of a config, which leads to no manifest; the image's name does.
    if let Some(found) = follow(daemon, question.digest, question).await? {
        return Ok(Some(found));
    }
    let name = GetImage { name: question.name.to_owned() };
    let got = match daemon.ask::<_, GotImage>(GET_IMAGE, name).await? {
        Err(e) if e.code() == Code::NotFound => return Ok(None),
        got => got.map_err(|e| daemon.failed(&e))?,
    };
    match got.image.and_then(|image| image.target) {
        Some(Descriptor { digest, .. }) if digest != question.digest => {
            follow(daemon, &digest, question).await
        }
        _ => Ok(None),
    }
}

impl Library for Daemon {
    async fn manifest(&mut self, name: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        let mut all = Vec::new();
        let mut keep = |data: &[u8]| {
            all.extend_from_slice(data);
            if all.len() > LARGEST { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
        };
        let there = self.read(name, self.patience, &mut keep).await?;
        Ok(there.then_some(all))
    }

    async fn config(&mut self, digest: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        self.manifest(digest).await
    }
}

impl Daemon {
    /// How long a blob is, if it is there.
    async fn size(&mut self, digest: &str) -> Result<Option<u64>, DeliverError> {
        let info = InfoOf { digest: digest.to_owned() };
        match self.ask::<_, GotInfo>(INFO, info).await? {
            Err(e) if e.code() == Code::NotFound => Ok(None),
            got => {
                let got = got.map_err(|e| self.failed(&e))?;
                Ok(got.info.and_then(|info| u64::try_from(info.size).ok()))
            }
        }
    }

    /// Reads a blob into a file, which has its name once all of it is there.
    async fn fetch(
        &mut self,
        digest: &str,
        size: u64,
        path: &Path,
        meter: &Meter,
    ) -> Result<(), DeliverError> {
        let dir = path.parent().unwrap_or(path);
        let file = tempfile::Builder::new().prefix(".blob-").tempfile_in(dir);
        let mut file = file.map_err(DeliverError::io("create a file in", dir))?;
        let mut sum = Sha256::new();
        let limit = self.patience + Duration::from_secs(size / SLOWEST);
        let mut keep = |data: &[u8]| {
            if meter.is_stopped() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            sum.update(data);
            file.write_all(data)
        };
        let there = self.read(digest, limit, &mut keep).await;
        if meter.is_stopped() {
            return Err(DeliverError::Stopped);
        }
        if !there? || format!("sha256:{}", hex::encode(sum.finalize())) != digest {
            let why = format!("what it has of {digest} is not that");
            return Err(DeliverError::Daemon { daemon: self.who.clone(), why });
        }
        file.as_file().sync_all().map_err(DeliverError::io("write", path))?;
        file.persist(path).map_err(|e| DeliverError::io("write", path)(e.error))?;
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(DeliverError::io("write", dir))
    }

    /// Gives the pieces of a blob to `keep`; `false` if it is not there.
    async fn read(
        &mut self,
        digest: &str,
        limit: Duration,
        keep: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<bool, DeliverError> {
        let mut request = tonic::Request::new(ReadContent { digest: digest.to_owned() });
        self.dress(&mut request);
        let client = &mut self.client;
        let whole = async {
            client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let path = hyper::http::uri::PathAndQuery::from_static(READ);
            let codec = tonic_prost::ProstCodec::<ReadContent, Piece>::default();
            let mut pieces = client.server_streaming(request, path, codec).await?.into_inner();
            while let Some(piece) = pieces.message().await? {
                if let Err(e) = keep(&piece.data) {
                    return Ok(Err(e));
                }
            }
            Ok(Ok(()))
        };
        let done: Result<std::io::Result<()>, tonic::Status> = tokio::time::timeout(limit, whole)
            .await
            .map_err(|_| DeliverError::Hung { registry: self.who.clone(), after: limit })?;
        match done {
            // A digest of another form than it knows is one that it does not have.
            Err(e) if matches!(e.code(), Code::NotFound | Code::InvalidArgument) => Ok(false),
            Err(e) => Err(self.failed(&e)),
            Ok(kept) => {
                let failed = |e: std::io::Error| DeliverError::Daemon {
                    daemon: self.who.clone(),
                    why: format!("what it has of {digest} cannot be kept: {e}"),
                };
                kept.map(|()| true).map_err(failed)
            }
        }
    }
}
