//! The image a container was started from, in a layout: its layers are referred to, and neither read nor stored again.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::image::ImageError;
use crate::image::oci::{self, Bytes, Layer};
use crate::model::base::LayoutImage;
use crate::model::chunk::BlobId;
use crate::model::config::{Config, History, Platform};

/// The longest document that is read.
const MAX_DOCUMENT: u64 = 16 << 20;

/// What a base gives to an image on top of it.
#[derive(Debug)]
pub(super) struct Base {
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    platform: Platform,
    history: Vec<History>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Value,
}

/// An index or a manifest: of one the config is missing, of the other the first list.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
    #[serde(default)]
    history: Vec<History>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Base {
    /// The base that was named.
    ///
    /// # Errors
    /// [`ImageError::NoBase`] with what is wrong with it.
    pub(super) fn named(image: &LayoutImage) -> Result<Base, ImageError> {
        let no = |what| ImageError::NoBase { dir: image.dir.clone(), tag: image.tag.clone(), what };
        let index = oci::read_index(&image.dir)?;
        let descriptors = descriptors(&index.document);
        let tagged = |d: &&Descriptor| d.annotations[oci::REF_NAME].as_str() == Some(&image.tag);
        let found = descriptors.iter().find(tagged).ok_or_else(|| no("there is no such image".to_owned()))?;
        let (_, document) = manifests(&image.dir, found).map_err(no)?;
        base(&image.dir, &document).map_err(no)
    }

    /// The base with this digest of its manifest or its config, if all of it is in the layout.
    pub(super) fn of_digest(dir: &Path, digest: &str) -> Option<Base> {
        let index = oci::read_index(dir).ok()?;
        descriptors(&index.document).iter().find_map(|descriptor| {
            let (manifest, document) = manifests(dir, descriptor).ok()?;
            let config = document.config.as_ref().map(|config| config.digest.as_str());
            let is_it = [Some(descriptor.digest.as_str()), Some(&manifest), config].contains(&Some(digest));
            if is_it { base(dir, &document).ok() } else { None }
        })
    }

    /// The config of a container of it, with what the base says of itself.
    pub(super) fn tell(&self, mut run: Config) -> Config {
        run.history.clone_from(&self.history);
        run.platform.clone_from(&self.platform);
        run
    }
}

fn descriptors(index: &Value) -> Vec<Descriptor> {
    let of = |value: &Value| serde_json::from_value(value.clone()).ok();
    index["manifests"].as_array().into_iter().flatten().filter_map(of).collect()
}

/// The manifest that a descriptor leads to, for this machine if there are several, with its digest.
fn manifests(dir: &Path, descriptor: &Descriptor) -> Result<(String, Document), String> {
    let document: Document = read(dir, &descriptor.digest)?;
    if document.config.is_some() {
        return Ok((descriptor.digest.clone(), document));
    }
    let own = Platform::default().or_this_machine();
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_none_or(|p| (&p.os, &p.architecture) == (&own.os, &own.architecture))
    };
    let of_this_machine = document.manifests.iter().find(fits);
    let digest = &of_this_machine.ok_or("it is not for this machine")?.digest;
    Ok((digest.clone(), read(dir, digest)?))
}

fn base(dir: &Path, manifest: &Document) -> Result<Base, String> {
    let config: ImageConfig = read(dir, &manifest.config.as_ref().ok_or("it has no config")?.digest)?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err("its config and its manifest differ in the number of layers".to_owned());
    }
    let layers = manifest.layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let id = id(&layer.digest)?;
        let path = blob(dir, &id);
        match std::fs::metadata(&path) {
            Ok(stat) if stat.len() == layer.size => {}
            _ => return Err(format!("its layer {} is not there", layer.digest)),
        }
        Ok(Layer {
            media_type: media_type(&layer.media_type)?.to_owned(),
            id,
            size: layer.size,
            diff_id,
            annotations: layer.annotations.clone(),
            bytes: Bytes::File(path),
        })
    });
    Ok(Base {
        layers: layers.collect::<Result<_, String>>()?,
        platform: config.platform,
        history: config.history,
    })
}

/// The same layer's type in an image of the OCI; docker's have other names and the same bytes.
fn media_type(given: &str) -> Result<&str, String> {
    match given {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd" => Ok(given),
        "application/vnd.docker.image.rootfs.diff.tar" => Ok("application/vnd.oci.image.layer.v1.tar"),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok("application/vnd.oci.image.layer.v1.tar+gzip")
        }
        other => Err(format!("it has a layer of the type `{other}`")),
    }
}

fn id(digest: &str) -> Result<BlobId, String> {
    let mut id = [0; 32];
    let hex = digest.strip_prefix("sha256:").ok_or_else(|| format!("`{digest}` is no sha256"))?;
    hex::decode_to_slice(hex, &mut id).map_err(|_| format!("`{digest}` is no sha256"))?;
    Ok(BlobId(id))
}

fn blob(dir: &Path, id: &BlobId) -> PathBuf {
    dir.join("blobs/sha256").join(id.to_string())
}

/// A document, compared with its digest.
fn read<T: for<'a> Deserialize<'a>>(dir: &Path, digest: &str) -> Result<T, String> {
    let id = id(digest)?;
    let path = blob(dir, &id);
    let bad = |what: &dyn std::fmt::Display| format!("{digest}: {what}");
    if std::fs::metadata(&path).map_err(|e| bad(&e))?.len() > MAX_DOCUMENT {
        return Err(bad(&"it is too long for a document"));
    }
    let bytes = std::fs::read(&path).map_err(|e| bad(&e))?;
    if oci::digest(&bytes) != format!("sha256:{id}") {
        return Err(bad(&"it is not what its digest says"));
    }
    serde_json::from_slice(&bytes).map_err(|e| bad(&e))
}
