//! The image a container was started from, in a layout or where it came from: its layers are referred to, and neither read nor stored again.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::image::ImageError;
use crate::image::oci::{self, Bytes, Layer};
use crate::model::base::{LayoutImage, Origin, Whereabouts};
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

    /// The base that was found.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn found(origin: &Origin) -> Result<Base, String> {
        let manifest = serde_json::from_slice(&origin.manifest).map_err(|e| format!("its manifest: {e}"))?;
        let config = serde_json::from_slice(&origin.config).map_err(|e| format!("its config: {e}"))?;
        put_together(&manifest, config, &|id, size| match &origin.layers {
            Whereabouts::Files(dir) => file(dir.join(id.to_string()), size),
            Whereabouts::Repository(_) => Some(Bytes::Elsewhere),
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
    let config = read(dir, &manifest.config.as_ref().ok_or("it has no config")?.digest)?;
    put_together(manifest, config, &|id, size| file(blob(dir, id), size))
}

/// A file, if it is so long.
fn file(path: PathBuf, size: u64) -> Option<Bytes> {
    let whole = std::fs::metadata(&path).is_ok_and(|stat| stat.is_file() && stat.len() == size);
    whole.then_some(Bytes::File(path))
}

/// `bytes` says where those of a layer are, if they are anywhere.
fn put_together(
    manifest: &Document,
    config: ImageConfig,
    bytes: &dyn Fn(&BlobId, u64) -> Option<Bytes>,
) -> Result<Base, String> {
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err("its config and its manifest differ in the number of layers".to_owned());
    }
    let layers = manifest.layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let id = id(&layer.digest)?;
        let bytes =
            bytes(&id, layer.size).ok_or_else(|| format!("its layer {} is not there", layer.digest))?;
        Ok(Layer {
            media_type: media_type(&layer.media_type)?.to_owned(),
            id,
            size: layer.size,
            diff_id,
            annotations: layer.annotations.clone(),
            bytes,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn origin(kind: &str, diff_ids: &[&str]) -> Origin {
        let digest = oci::digest(b"layer");
        let layer = json!({"mediaType": kind, "digest": digest, "size": 7, "annotations": {"a": "b"}});
        let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Origin {
            manifest: json!({"config": {"digest": "sha256:0", "size": 1}, "layers": [layer]})
                .to_string()
                .into(),
            config: config.to_string().into(),
            layers: Whereabouts::Repository("localhost:5000/base/os".into()),
        }
    }

    #[test]
    fn layers_that_are_elsewhere_are_referred_to_as_they_are() {
        let base =
            Base::found(&origin("application/vnd.docker.image.rootfs.diff.tar.gzip", &["sha256:d"])).unwrap();
        let [layer] = &base.layers[..] else { panic!("{base:?}") };
        assert_eq!(
            (layer.bytes.clone(), layer.size, layer.diff_id.as_str()),
            (Bytes::Elsewhere, 7, "sha256:d")
        );
        assert_eq!(layer.media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(
            (format!("sha256:{}", layer.id), &layer.annotations["a"]),
            (oci::digest(b"layer"), &json!("b"))
        );
        assert_eq!(base.tell(Config::default()).platform.architecture, "arm64");
    }

    #[test]
    fn what_cannot_be_referred_to_is_said() {
        let nydus = "application/vnd.oci.image.layer.nydus.blob.v1";
        assert!(Base::found(&origin(nydus, &["sha256:d"])).unwrap_err().contains("nydus"));
        let plain = "application/vnd.oci.image.layer.v1.tar";
        assert!(Base::found(&origin(plain, &[])).unwrap_err().contains("number of layers"));
        let files = Whereabouts::Files("/nonexistent".into());
        let absent = Origin { layers: files, ..origin(plain, &["sha256:d"]) };
        assert!(Base::found(&absent).unwrap_err().contains("is not there"));
        assert!(Base::found(&Origin { config: b"{".to_vec(), ..absent }).unwrap_err().contains("its config"));
    }
}
