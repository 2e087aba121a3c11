//! A push.
//!
//! ```text
//!   GET /v2/ ─► which scheme, which credentials
//!   for each blob, several at a time:   HEAD blob ── there ─► nothing to do
//!                                          │
//!                                       HEAD in a repository nearby ── there ─► POST ?mount=&from= ── 201 ─► nothing to do
//!                                          │
//!                                       an upload that an earlier try has begun (GET its state), or POST a new one
//!                                          '─► PATCH, PATCH, ..  ─► PUT ?digest=
//!   PUT manifest under its tag
//! ```
//!
//! A layer of the container's own image, which the registry has, need not be here: should the registry not take it from its own other repository, it is fetched
//! from there first ([`pull`]).
//!
//! **Why these requests are our own.** oci-client, whose names, credentials and error documents are used here, sends the same requests, but keeps to itself
//! what a push that is resumed needs: where an upload is and how far (its sessions are private), how long a registry wants to be left alone (`Retry-After` is not
//! in its errors), and a token that has expired (it waits for its own clock; a failed renewal counts as no token). It has no client certificates. So a
//! thin layer over the same HTTP client is here instead: [`wire`] one request, [`auth`] who asks, [`retry`] when to ask again, [`upload`] one blob.

mod auth;
mod credentials;
mod helper;
mod journal;
mod pull;
mod retry;
mod tls;
mod upload;
mod wire;

#[cfg(test)]
mod scripted_tests;
#[cfg(test)]
mod tests;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_client::Reference;

use super::content::{Content, Document};
use super::origin::{Found, Question};
use super::{DeliverError, Meter, Request};
use crate::model::access::Delivery;
use crate::model::base::{Origin, Whereabouts};
use journal::Journal;
use upload::Fate;
use wire::Wire;

pub use tls::check;
pub(super) use tls::client;
pub(super) use wire::chain;

/// Blobs sent at the same time, each over a connection of its own.
const AT_ONCE: usize = 4;

/// Pushes the image.
pub(super) fn push(
    content: &Content,
    request: &Request<'_>,
    name: [&String; 3],
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    let [registry, repository, tag] = name.map(Clone::clone);
    let target = Reference::with_tag(registry, repository, tag);
    super::run(meter, pushed(content, request, target, retry::Policy::new(request.access.timeout), meter))
}

/// The image that a container was started from, if the registry that the new one goes to has it.
pub(super) fn origin(
    question: &Question<'_>,
    name: [&String; 3],
    meter: &Meter,
) -> Result<Option<Origin>, DeliverError> {
    let [registry, repository, tag] = name.map(Clone::clone);
    let target = Reference::with_tag(registry, repository, tag);
    let policy = retry::Policy::new(question.access.timeout);
    super::run(meter, async {
        match tokio::time::timeout(policy.request, found(question, target.clone(), policy, meter)).await {
            Ok(found) => found,
            Err(_) => {
                Err(DeliverError::Hung { registry: target.registry().to_owned(), after: policy.request })
            }
        }
    })
}

async fn found(
    question: &Question<'_>,
    target: Reference,
    policy: retry::Policy,
    meter: &Meter,
) -> Result<Option<Origin>, DeliverError> {
    let near = repositories(&target, question.names);
    if near.is_empty() {
        return Ok(None);
    }
    let wire = Wire::open(target, &near, question.access, question.login, policy, meter).await?;
    Ok(pull::image(&wire, question).await?.map(|(Found { manifest, config, .. }, repository)| {
        let at = format!("{}/{repository}", wire.target.registry());
        Origin { manifest, config, layers: Whereabouts::Repository(at) }
    }))
}

async fn pushed(
    content: &Content,
    request: &Request<'_>,
    target: Reference,
    policy: retry::Policy,
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    let near = nearby(&target, request.origin, request.near);
    let journal = Journal::open(&request.journal, &target);
    let wire = Wire::open(target, &near, request.access, request.login, policy, meter).await?;
    let root = content.root()?;
    let mut delivery = Delivery { digest: root.blob.digest.clone(), ..Delivery::default() };
    let tag = wire.target.tag().unwrap_or_default().to_owned();
    if !wire.has_manifest(&tag, &root.blob.digest).await? {
        let shared = &journal;
        let fates: Vec<Fate> = stream::iter(&content.blobs)
            .map(|blob| upload::blob(&wire, blob, &near, shared))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for fate in fates {
            match fate {
                Fate::Present => delivery.present += 1,
                Fate::Mounted => delivery.mounted += 1,
                Fate::Sent { continued } => {
                    delivery.sent += 1;
                    delivery.continued_bytes += continued;
                }
            }
        }
        let (last, before) = content.documents.split_last().ok_or(DeliverError::Stopped)?;
        for document in before {
            put(&wire, document, &document.blob.digest).await?;
        }
        put(&wire, last, &tag).await?;
    } else {
        delivery.present = u32::try_from(content.blobs.len()).unwrap_or(u32::MAX);
        meter.count(content.total());
    }
    journal.remove();
    delivery.sent_bytes = meter.sent();
    delivery.retries = meter.retries();
    Ok(delivery)
}

async fn put(wire: &Wire<'_>, document: &Document, name: &str) -> Result<(), DeliverError> {
    wire.put_manifest(name, &document.blob.media_type, &document.blob.digest, document.bytes.clone()).await
}

/// Each that is asked costs a request a blob.
const MOST_NEARBY: usize = 3;

/// Repositories of the same registry that may have some of the blobs, but for the target's own; the one that has what is not here is the first.
fn nearby(target: &Reference, origin: Option<&str>, images: &[String]) -> Vec<String> {
    let images: Vec<String> = origin.map(str::to_owned).into_iter().chain(images.iter().cloned()).collect();
    let mut near = repositories(target, &images);
    near.retain(|other| other != target.repository());
    near.truncate(MOST_NEARBY);
    near
}

/// The repositories of images of the same registry, each once.
fn repositories(target: &Reference, images: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for image in images {
        let Ok(image) = image.parse::<Reference>() else { continue };
        if image.registry() == target.registry() && !all.iter().any(|known| known == image.repository()) {
            all.push(image.repository().to_owned());
        }
    }
    all.truncate(MOST_NEARBY + 1);
    all
}
