//! The way back: the image that a container was started from, found where it came from or where its runtime keeps it.
//!
//! ```text
//!   the registry that the image goes to, if the container's came from there  ─► its documents; the layers stay where they are      registry/pull
//!   the containerd that keeps it, if it still has every blob                 ─► its documents, and the layers read into files     containerd/content
//! ```
//!
//! What is found is the very image that the runtime names: the digest of its index, its manifest or its config is the one given, and each document is what the
//! one before it says. Whatever else happens is no failure, for the layers can be made of the container's lower directories: it is logged, and nothing is found.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{DeliverError, Meter, containerd, registry, watched};
use crate::model::access::{Access, Login};
use crate::model::base::Origin;
use crate::model::config::Platform;
use crate::model::progress::Progress;
use crate::model::snapshot::ImageStore;
use crate::model::target::ImageTarget;

/// Which image is looked for, and where.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The digest by which its runtime knows it: of its index, its manifest or its config.
    pub digest: &'a str,
    /// What the container is made for; of an index the manifest for it is meant.
    pub platform: Platform,
    /// Names that it has in registries, the surest first.
    pub names: &'a [String],
    /// Where the new image goes.
    pub target: &'a ImageTarget,
    /// How that is reached.
    pub access: &'a Access,
    /// Who we are there; `None` to look into the configuration of docker and podman.
    pub login: Option<&'a Login>,
    /// The containerd that may have it.
    pub store: Option<&'a ImageStore>,
    /// The name that it has in that containerd.
    pub name: &'a str,
    /// A directory for layers, in files named by their digests; those that are there are not read again.
    pub blobs: &'a Path,
}

/// Looks for the image. It takes no longer than the target may take for one answer, beside what bytes need.
///
/// # Errors
/// [`DeliverError::Stopped`] when somebody wants it to end, and no other.
pub fn find(question: &Question<'_>, progress: &dyn Progress) -> Result<Option<Origin>, DeliverError> {
    let meter = Meter::default();
    let said = |place: &str, answer: Result<Option<Origin>, DeliverError>| match answer {
        Ok(Some(origin)) => {
            tracing::info!("the layers of the container's image are referred to: {place} has it");
            Ok(Some(origin))
        }
        Ok(None) => {
            tracing::info!(
                "the container's image {} is not whole in {place}, or not from there",
                question.digest
            );
            Ok(None)
        }
        Err(DeliverError::Stopped) => Err(DeliverError::Stopped),
        Err(error) => {
            tracing::warn!("the container's image cannot be looked for in {place}: {}", error.said());
            Ok(None)
        }
    };
    watched(&meter, progress, || {
        if let ImageTarget::Registry { registry, repository, tag } = question.target {
            let answer = registry::origin(question, [registry, repository, tag], &meter);
            if let Some(origin) = said(registry, answer)? {
                return Ok(Some(origin));
            }
        }
        match question.store {
            None => Ok(None),
            Some(store) => said("containerd", containerd::origin(question, store, progress, &meter)),
        }
    })
}

/// Documents by their digest, or by a name.
pub(super) trait Library {
    /// A manifest or an index; `None` if there is no such thing. Of this digest, if it is asked for by one.
    async fn manifest(&mut self, name: &str) -> Result<Option<Vec<u8>>, DeliverError>;

    /// A config, by its digest.
    async fn config(&mut self, digest: &str) -> Result<Option<Vec<u8>>, DeliverError>;
}

/// An image's documents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
    /// Digest and length of each layer, the lowest first.
    pub(super) layers: Vec<(String, u64)>,
}

/// An index or a manifest: of one the config is missing, of the other the first list.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Listed>,
    config: Option<Listed>,
    #[serde(default)]
    layers: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

/// The most manifests of an index that are looked into.
const MOST: usize = 4;

/// The image behind a name, if it is the one that is looked for.
pub(super) async fn follow(
    library: &mut impl Library,
    name: &str,
    question: &Question<'_>,
) -> Result<Option<Found>, DeliverError> {
    let Some(bytes) = library.manifest(name).await? else { return Ok(None) };
    let root = digest(&bytes);
    if name.starts_with("sha256:") && root != name {
        return Ok(None);
    }
    let Ok(document) = serde_json::from_slice::<Document>(&bytes) else { return Ok(None) };
    if let Some(config) = &document.config {
        let is_it = root == question.digest || config.digest == question.digest;
        return if is_it { whole(library, bytes, &document).await } else { Ok(None) };
    }
    let fits: Vec<&Listed> = document.manifests.iter().filter(|m| fits(m, &question.platform)).collect();
    // By the index' digest alone nobody knows which of several it is.
    let sure = root == question.digest && fits.len() == 1;
    for listed in fits.into_iter().take(MOST) {
        let Some(bytes) = library.manifest(&listed.digest).await? else { continue };
        let Ok(document) = serde_json::from_slice::<Document>(&bytes) else { continue };
        let Some(config) = &document.config else { continue };
        let named = [&listed.digest, &config.digest].into_iter().any(|digest| digest == question.digest);
        if digest(&bytes) == listed.digest && (sure || named) {
            return whole(library, bytes, &document).await;
        }
    }
    Ok(None)
}

async fn whole(
    library: &mut impl Library,
    manifest: Vec<u8>,
    document: &Document,
) -> Result<Option<Found>, DeliverError> {
    let Some(named) = document.config.as_ref().map(|config| &config.digest) else { return Ok(None) };
    let Some(config) = library.config(named).await? else { return Ok(None) };
    let layers = document.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
    Ok((digest(&config) == *named).then_some(Found { manifest, config, layers }))
}

fn fits(listed: &Listed, own: &Platform) -> bool {
    listed.platform.as_ref().is_none_or(|p| {
        let either = p.variant.is_empty() || own.variant.is_empty();
        p.os == own.os && p.architecture == own.architecture && (either || p.variant == own.variant)
    })
}

pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
