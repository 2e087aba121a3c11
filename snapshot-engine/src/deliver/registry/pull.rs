//! What is read from a registry: the documents of an image, and layers that the registry would not take from its own other repository.

use std::fs::File;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_client::Reference;
use reqwest::Method;

use super::retry::Trouble;
use super::upload::exists;
use super::wire::{Answer, Ask, Wire};
use super::{AT_ONCE, repositories};
use crate::deliver::DeliverError;
use crate::deliver::content::Blob;
use crate::deliver::origin::{Found, Library, Question, follow};

/// What a manifest or an index may be.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Where a registry that keeps its blobs elsewhere may send us, one after the other.
const HOPS: u32 = 5;

/// One repository.
struct Repository<'w, 'a> {
    wire: &'w Wire<'a>,
    name: &'w str,
}

impl Repository<'_, '_> {
    async fn document(&self, path: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        let url = self.wire.url(&format!("{}/{path}", self.name))?;
        let ask = Ask::new(Method::GET, url, "the question for an image").with("accept", ACCEPTED);
        let mut tries = self.wire.tries();
        loop {
            match once(self.wire, &ask).await {
                Ok(answer) => return Ok((answer.status == 200).then(|| answer.body.to_vec())),
                // distribution says so of a digest that is a config's; and a repository may be closed to us.
                Err(
                    Trouble::Passing { error: DeliverError::Refused { status: 500, .. }, .. }
                    | Trouble::Lasting(DeliverError::Unauthorized { .. }),
                ) => return Ok(None),
                Err(trouble) => tries.again(trouble).await?,
            }
        }
    }
}

impl Library for Repository<'_, '_> {
    async fn manifest(&mut self, name: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        self.document(&format!("manifests/{name}")).await
    }

    async fn config(&mut self, digest: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        self.document(&format!("blobs/{digest}")).await
    }
}

/// The image that is looked for, with the repository that has all of it.
pub(super) async fn image(
    wire: &Wire<'_>,
    question: &Question<'_>,
) -> Result<Option<(Found, String)>, DeliverError> {
    let references: Vec<Reference> = question.names.iter().filter_map(|name| name.parse().ok()).collect();
    for repository in repositories(&wire.target, question.names) {
        let of_it = references
            .iter()
            .filter(|r| r.registry() == wire.target.registry() && r.repository() == repository);
        let (digests, tags): (Vec<_>, Vec<_>) = of_it.map(|r| (r.digest(), r.tag())).unzip();
        let mut names: Vec<&str> = Vec::new();
        // What the runtime says may be the digest of a config, of which a registry knows no manifest; a tag may have moved.
        for name in digests.into_iter().chain([Some(question.digest)]).chain(tags).flatten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut library = Repository { wire, name: &repository };
        for name in names {
            if let Some(found) = follow(&mut library, name, question).await? {
                let all = stream::iter(&found.layers)
                    .map(|(digest, _)| exists(wire, &repository, digest))
                    .buffer_unordered(AT_ONCE)
                    .try_collect::<Vec<bool>>()
                    .await?;
                if all.into_iter().all(|there| there) {
                    return Ok(Some((found, repository)));
                }
                tracing::info!("{repository} has the container's image, but not all of its layers any more");
            }
        }
    }
    Ok(None)
}

/// Fetches a blob to where it is looked for.
///
/// # Errors
/// [`DeliverError::Gone`] when the repository does not have it any more.
pub(super) async fn blob(wire: &Wire<'_>, repository: &str, blob: &Blob) -> Result<(), DeliverError> {
    let dir = blob.path.parent().unwrap_or(&blob.path);
    let file = tempfile::Builder::new()
        .prefix(".blob-")
        .tempfile_in(dir)
        .map_err(DeliverError::io("create a file in", dir))?;
    let into = file.as_file().try_clone().map_err(DeliverError::io("write in", dir))?;
    let url = wire.url(&format!("{repository}/blobs/{}", blob.digest))?;
    let ask = Ask::new(Method::GET, url, "the question for a layer").into_file(Arc::new(into), blob.size);
    let answer = get(wire, &ask).await?;
    let gone = || DeliverError::Gone {
        registry: wire.target.registry().to_owned(),
        repository: repository.to_owned(),
        digest: blob.digest.clone(),
    };
    match answer.status {
        200 => {}
        404 => return Err(gone()),
        _ => match wire.refused(&ask, &answer) {
            Trouble::Lasting(error) | Trouble::Passing { error, .. } => return Err(error),
        },
    }
    let read = Blob { path: file.path().to_owned(), ..blob.clone() };
    let length = file.as_file().metadata().map_err(DeliverError::io("read", &read.path))?.len();
    if length != blob.size || !read.is_whole().map_err(DeliverError::io("read", &read.path))? {
        return Err(wire.nonsense(format!("{} is not what its name says", blob.digest)));
    }
    let named = file.persist(&blob.path).map_err(|e| DeliverError::io("write", &blob.path)(e.error))?;
    named.sync_all().map_err(DeliverError::io("write", &blob.path))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(DeliverError::io("write", dir))?;
    Ok(())
}

/// Makes a request until it is answered, by whomever the registry names.
async fn get(wire: &Wire<'_>, ask: &Ask) -> Result<Answer, DeliverError> {
    let mut tries = wire.tries();
    loop {
        match once(wire, ask).await {
            Ok(answer) => return Ok(answer),
            Err(trouble) => tries.again(trouble).await?,
        }
    }
}

async fn once(wire: &Wire<'_>, ask: &Ask) -> Result<Answer, Trouble> {
    let mut ask = ask.clone();
    for _ in 0..=HOPS {
        let answer = wire.once(&ask).await?;
        match answer.status {
            // An address of another host is asked without credentials (`Wire::once`).
            301 | 302 | 303 | 307 | 308 => ask = ask.at(wire.location(&answer)?),
            _ => return Ok(answer),
        }
    }
    Err(wire.nonsense("it sends us on without end".to_owned()).into())
}
