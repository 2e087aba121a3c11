//! One blob.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use reqwest::{Method, Url};

use super::journal::Shared;
use super::pull;
use super::retry::Trouble;
use super::wire::{Answer, Ask, Piece, Wire};
use crate::deliver::DeliverError;
use crate::deliver::content::Blob;

/// What is sent with one request: registries are known that take no more. One may ask for more with `OCI-Chunk-Min-Length`.
const CHUNK: u64 = 4 << 20;

/// The most that is sent with one request, whatever a registry asks for.
const LARGEST_CHUNK: u64 = 256 << 20;

/// How a blob came to be in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Present,
    Mounted,
    Sent {
        /// Bytes that an earlier try had sent.
        continued: u64,
    },
}

/// An upload under way.
#[derive(Debug, Clone)]
struct Upload {
    location: Url,
    offset: u64,
    chunk: u64,
}

/// Sees to it that a blob is in the repository. One of which there is no file is in the first of those nearby.
pub(super) async fn blob(
    wire: &Wire<'_>,
    blob: &Blob,
    near: &[String],
    journal: Shared<'_>,
) -> Result<Fate, DeliverError> {
    if exists(wire, wire.target.repository(), &blob.digest).await? {
        wire.meter.count(blob.size);
        return Ok(Fate::Present);
    }
    let mut upload = None;
    if let Some(location) = journal.location(&blob.digest) {
        upload = known(wire, &location, blob).await?;
    }
    let continued = upload.as_ref().map_or(0, |upload| upload.offset);
    wire.meter.count(continued);
    if upload.is_none() {
        for other in near {
            if exists(wire, other, &blob.digest).await? {
                match mount(wire, other, blob).await? {
                    None => {
                        wire.meter.count(blob.size);
                        return Ok(Fate::Mounted);
                    }
                    begun => upload = begun,
                }
                break;
            }
        }
    }
    if !blob.here {
        let origin = near.first().map_or(wire.target.repository(), String::as_str);
        tracing::info!("{} is fetched from {origin}: the registry does not take it from there", blob.digest);
        pull::blob(wire, origin, blob).await?;
    }
    send(wire, blob, upload, journal).await?;
    journal.note(&blob.digest, None);
    Ok(Fate::Sent { continued })
}

/// Whether a repository has a blob.
pub(super) async fn exists(wire: &Wire<'_>, repository: &str, digest: &str) -> Result<bool, DeliverError> {
    let url = wire.url(&format!("{repository}/blobs/{digest}"))?;
    let own = repository == wire.target.repository();
    let ask = Ask::new(Method::HEAD, url, "the question for a blob");
    let answer = match wire.ask(&ask).await {
        // Another repository may be closed to us.
        Err(DeliverError::Unauthorized { .. }) if !own => return Ok(false),
        answer => answer?,
    };
    match answer.status {
        // One that keeps its blobs elsewhere says where.
        200 | 302 | 303 | 307 | 308 => Ok(true),
        403 if own => match wire.refused(&ask, &answer) {
            Trouble::Lasting(error) | Trouble::Passing { error, .. } => Err(error),
        },
        // A repository that is not there yet is one too.
        _ => Ok(false),
    }
}

/// The registry takes the blob from another repository (`None`), or begins an upload.
async fn mount(wire: &Wire<'_>, other: &str, blob: &Blob) -> Result<Option<Upload>, DeliverError> {
    let mut url = wire.at("blobs/uploads/")?;
    url.query_pairs_mut().append_pair("mount", &blob.digest).append_pair("from", other);
    let ask = Ask::new(Method::POST, url, "a blob's mount");
    let answer = wire.ask(&ask).await?;
    match answer.status {
        201 => Ok(None),
        _ => Ok(begun(wire, &ask, &answer).ok()),
    }
}

fn begun(wire: &Wire<'_>, ask: &Ask, answer: &Answer) -> Result<Upload, Trouble> {
    if answer.status != 202 {
        return Err(wire.refused(ask, answer));
    }
    let least = answer.header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let chunk = CHUNK.max(least).min(LARGEST_CHUNK);
    Ok(Upload { location: wire.location(answer)?, offset: 0, chunk })
}

async fn begin(wire: &Wire<'_>) -> Result<Upload, Trouble> {
    let ask = Ask::new(Method::POST, wire.at("blobs/uploads/")?, "the beginning of a blob");
    let answer = wire.once(&ask).await?;
    begun(wire, &ask, &answer)
}

/// How far an upload is; `None` if the registry knows nothing of it. distribution forgets one that broke off within a chunk.
async fn state(wire: &Wire<'_>, location: &Url, blob: &Blob) -> Result<Option<Upload>, Trouble> {
    let ask = Ask::new(Method::GET, location.clone(), "the question how far a blob is");
    let answer = wire.once(&ask).await?;
    if !(200..300).contains(&answer.status) {
        return Ok(None);
    }
    let range = answer.header("range").unwrap_or("0-0").trim_start_matches("bytes=");
    let last = range.split_once('-').and_then(|(_, last)| last.parse::<u64>().ok());
    // `0-0` stands for nothing, and for one byte: nothing is the likelier.
    let offset = last.filter(|last| *last > 0).map_or(0, |last| last + 1);
    let location = wire.location(&answer).unwrap_or_else(|_| location.clone());
    Ok((offset <= blob.size).then_some(Upload { location, offset, chunk: CHUNK }))
}

async fn known(wire: &Wire<'_>, location: &str, blob: &Blob) -> Result<Option<Upload>, DeliverError> {
    // The file is ours, but what it names is asked with our credentials.
    let Some(url) = Url::parse(location).ok().filter(|url| wire.is_own(url)) else { return Ok(None) };
    let mut tries = wire.tries();
    loop {
        match state(wire, &url, blob).await {
            Ok(upload) => return Ok(upload.filter(|upload| upload.offset > 0)),
            Err(trouble) => tries.again(trouble).await?,
        }
    }
}

/// Where an upload is.
enum Place {
    Nowhere,
    At(Upload),
    /// It was there before something went wrong.
    Perhaps(Url),
}

/// Sends what the registry has not yet of a blob, in chunks; after each it could be left and gone on with.
async fn send(
    wire: &Wire<'_>,
    blob: &Blob,
    upload: Option<Upload>,
    journal: Shared<'_>,
) -> Result<(), DeliverError> {
    let file = Arc::new(File::open(&blob.path).map_err(DeliverError::io("read", &blob.path))?);
    let mut tries = wire.tries();
    let mut told = upload.as_ref().map_or(0, |upload| upload.offset);
    let mut place = upload.map_or(Place::Nowhere, Place::At);
    let mut whole_again = false;
    loop {
        if wire.meter.is_stopped() {
            return Err(DeliverError::Stopped);
        }
        let found = match &place {
            Place::Nowhere => begin(wire).await.map(Some),
            Place::At(upload) => Ok(Some(upload.clone())),
            Place::Perhaps(location) => state(wire, location, blob).await,
        };
        let now = match found {
            Ok(Some(upload)) => upload,
            Ok(None) => {
                // The last answer may have been lost, and not the last request.
                if exists(wire, wire.target.repository(), &blob.digest).await? {
                    break;
                }
                journal.note(&blob.digest, None);
                place = Place::Nowhere;
                continue;
            }
            Err(trouble) => {
                tries.again(trouble).await?;
                continue;
            }
        };
        let (location, offset) = (now.location.clone(), now.offset);
        match step(wire, blob, &file, now).await {
            Ok(Step::Done) => break,
            Ok(Step::Next(next)) => {
                if next.offset > offset {
                    // It goes on: earlier troubles are over.
                    tries = wire.tries();
                }
                if next.offset > told {
                    wire.meter.count(next.offset - told);
                    told = next.offset;
                }
                if wire.is_own(&next.location) {
                    journal.note(&blob.digest, Some(next.location.as_str()));
                }
                place = Place::At(next);
            }
            Ok(Step::Wrong(error)) => {
                // What arrived is not what was sent, or what was read is not what was written.
                if whole_again {
                    return Err(error);
                }
                if !blob.is_whole().map_err(DeliverError::io("read", &blob.path))? {
                    let why = "its content is not that of its name".to_owned();
                    return Err(DeliverError::Damaged { path: blob.path.clone(), why });
                }
                whole_again = true;
                journal.note(&blob.digest, None);
                place = Place::Nowhere;
            }
            Err(trouble) => {
                tries.again(trouble).await?;
                place = Place::Perhaps(location);
            }
        }
    }
    wire.meter.count(blob.size - told);
    Ok(())
}

enum Step {
    Next(Upload),
    Done,
    Wrong(DeliverError),
}

async fn step(wire: &Wire<'_>, blob: &Blob, file: &Arc<File>, now: Upload) -> Result<Step, Trouble> {
    let rest = blob.size - now.offset;
    let length = rest.min(now.chunk);
    let piece =
        Piece { file: Arc::clone(file), offset: now.offset, length, given: Arc::new(AtomicU64::new(0)) };
    let mut url = now.location.clone();
    // A blob that is one chunk, and the end of every other, is one request.
    let last = rest == 0 || (now.offset == 0 && length == blob.size);
    let ask = if last {
        url.query_pairs_mut().append_pair("digest", &blob.digest);
        Ask::new(Method::PUT, url, "the end of a blob")
    } else {
        let range = format!("{}-{}", now.offset, now.offset + length - 1);
        Ask::new(Method::PATCH, url, "a part of a blob").with("content-range", &range)
    };
    let answer =
        wire.once(&ask.clone().with("content-type", "application/octet-stream").piece(piece)).await?;
    match (answer.status, last) {
        (200..=299, true) => Ok(Step::Done),
        (200..=299, false) => {
            let location = wire.location(&answer).unwrap_or(now.location);
            Ok(Step::Next(Upload { location, offset: now.offset + length, chunk: now.chunk }))
        }
        // In chunks it cannot: all at once, then.
        (404 | 405 | 501, false) if now.offset == 0 && now.chunk < blob.size => {
            let mut fresh = begin(wire).await?;
            fresh.chunk = u64::MAX;
            Ok(Step::Next(fresh))
        }
        (400, true) => match wire.refused(&ask, &answer) {
            Trouble::Lasting(error) | Trouble::Passing { error, .. } => Ok(Step::Wrong(error)),
        },
        // It has something else than we think: 416, or an upload it has forgotten.
        (400 | 404 | 416, _) => match wire.refused(&ask, &answer) {
            Trouble::Lasting(error) => Err(Trouble::Passing { error, after: None }),
            trouble => Err(trouble),
        },
        _ => Err(wire.refused(&ask, &answer)),
    }
}
