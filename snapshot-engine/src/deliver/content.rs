//! What an image in a layout consists of, read by the documents alone: whatever wrote it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::DeliverError;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// The largest document that is read; registries take no larger ones (4 MiB).
const LARGEST: u64 = 4 << 20;

/// Bytes under their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// `sha256:HEX`.
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) media_type: String,
    /// Where they are, or come to be when they are fetched.
    pub(super) path: PathBuf,
    /// Whether they are there.
    pub(super) here: bool,
    /// `containerd.io/uncompressed` or the like of its descriptor.
    pub(super) annotations: Value,
}

impl Blob {
    /// The digest without its algorithm.
    pub(super) fn hex(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }

    /// Whether the bytes are those of the digest; read from the disk.
    pub(super) fn is_whole(&self) -> std::io::Result<bool> {
        let mut sum = Sha256::new();
        let mut file = fs::File::open(&self.path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(hex::encode(sum.finalize()) == self.hex()),
                n => sum.update(&buffer[..n]),
            }
        }
    }
}

/// A manifest or an index.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) blob: Blob,
    pub(super) bytes: Vec<u8>,
    /// The same, understood.
    pub(super) json: Value,
}

/// One image.
#[derive(Debug)]
pub(super) struct Content {
    /// Manifests before the index that names them: the last one is what the tag stands for.
    pub(super) documents: Vec<Document>,
    /// Layers and configs, each once.
    pub(super) blobs: Vec<Blob>,
}

impl Content {
    /// What a tag of a layout stands for. `partial`: blobs may be elsewhere.
    pub(super) fn read(layout: &Path, tag: &str, partial: bool) -> Result<Content, DeliverError> {
        let path = layout.join("index.json");
        let damaged = |why: &str| DeliverError::Damaged { path: path.clone(), why: why.to_owned() };
        let index = fs::read(&path).map_err(DeliverError::io("read", &path))?;
        let index: Value = serde_json::from_slice(&index).map_err(|e| damaged(&e.to_string()))?;
        let all = index["manifests"].as_array().into_iter().flatten();
        let descriptor = all
            .into_iter()
            .find(|m| m["annotations"][REF_NAME].as_str() == Some(tag))
            .ok_or_else(|| damaged("the image is not in it"))?;
        let mut content = Content { documents: Vec::new(), blobs: Vec::new() };
        content.take(layout, descriptor, partial, 0)?;
        Ok(content)
    }

    /// What the tag stands for.
    pub(super) fn root(&self) -> Result<&Document, DeliverError> {
        let missing =
            || DeliverError::Damaged { path: "index.json".into(), why: "it has no manifest".into() };
        self.documents.last().ok_or_else(missing)
    }

    /// Bytes of all blobs.
    pub(super) fn total(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// Whether a layer is one of Nydus.
    pub(super) fn is_nydus(&self) -> bool {
        self.blobs.iter().any(|blob| {
            blob.media_type.contains(".nydus.")
                || blob.annotations.as_object().is_some_and(|all| all.keys().any(|key| key.contains("nydus")))
        })
    }

    fn take(
        &mut self,
        layout: &Path,
        descriptor: &Value,
        partial: bool,
        depth: u32,
    ) -> Result<(), DeliverError> {
        let blob = blob(layout, descriptor, false)?;
        let damaged = |why: &str| DeliverError::Damaged { path: blob.path.clone(), why: why.to_owned() };
        if blob.size > LARGEST || depth > 2 {
            return Err(damaged("it is no manifest"));
        }
        let bytes = fs::read(&blob.path).map_err(DeliverError::io("read", &blob.path))?;
        if hex::encode(Sha256::digest(&bytes)) != blob.hex() {
            return Err(damaged("its content is not that of its name"));
        }
        let json: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))?;
        if INDEXES.contains(&blob.media_type.as_str()) {
            for manifest in json["manifests"].as_array().into_iter().flatten() {
                self.take(layout, manifest, partial, depth + 1)?;
            }
        } else {
            for descriptor in json["layers"].as_array().into_iter().flatten().chain([&json["config"]]) {
                let blob = self::blob(layout, descriptor, partial)?;
                if !self.blobs.iter().any(|known| known.digest == blob.digest) {
                    self.blobs.push(blob);
                }
            }
        }
        self.documents.push(Document { blob, bytes, json });
        Ok(())
    }
}

/// Finds the file of a descriptor. `absent`: there need be none.
pub(super) fn blob(layout: &Path, descriptor: &Value, absent: bool) -> Result<Blob, DeliverError> {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let damaged = |why: String| DeliverError::Damaged { path: layout.join("index.json"), why };
    let hex = hex_of(digest).ok_or_else(|| damaged(format!("`{}` is no digest", digest.escape_debug())))?;
    let path = layout.join("blobs/sha256").join(hex);
    let size = descriptor["size"].as_u64().unwrap_or_default();
    let here = match fs::symlink_metadata(&path) {
        Err(e) if absent && e.kind() == std::io::ErrorKind::NotFound => false,
        there => {
            let there = there.map_err(DeliverError::io("find", &path))?;
            if !there.is_file() || there.len() != size {
                return Err(damaged(format!("{digest} has {} bytes and not {size}", there.len())));
            }
            true
        }
    };
    Ok(Blob {
        digest: digest.to_owned(),
        size,
        media_type: descriptor["mediaType"].as_str().unwrap_or(MANIFEST).to_owned(),
        path,
        here,
        annotations: descriptor["annotations"].clone(),
    })
}

/// The part of a digest that names a file; `None` if it is no digest, for it comes from others.
pub(super) fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(hex)
}

#[cfg(test)]
pub(super) mod sample {
    use super::*;
    use serde_json::json;

    /// A layout with one image `t`, of layers with these contents.
    pub(in crate::deliver) fn layout(dir: &Path, layers: &[&[u8]]) -> Content {
        let store = dir.join("blobs/sha256");
        fs::create_dir_all(&store).unwrap();
        let put = |kind: &str, bytes: &[u8]| {
            let hex = hex::encode(Sha256::digest(bytes));
            fs::write(store.join(&hex), bytes).unwrap();
            json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
        };
        let all: Vec<Value> =
            layers.iter().map(|l| put("application/vnd.oci.image.layer.v1.tar", l)).collect();
        let ids: Vec<Value> = all.iter().map(|l| l["digest"].clone()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": all});
        let mut manifest = put(MANIFEST, manifest.to_string().as_bytes());
        manifest["annotations"] = json!({REF_NAME: "t"});
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
            .unwrap();
        Content::read(dir, "t", false).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_read_with_each_blob_once() {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(dir.path(), &[b"one", b"two", b"one"]);
        assert_eq!(content.blobs.len(), 3, "two layers and the config");
        assert_eq!(content.documents.len(), 1);
        assert!(!content.is_nydus() && content.blobs[0].is_whole().unwrap());
        assert!(matches!(Content::read(dir.path(), "other", false), Err(DeliverError::Damaged { .. })));
    }

    #[test]
    fn what_does_not_fit_together_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(dir.path(), &[b"one"]);
        fs::write(&content.blobs[0].path, "longer").unwrap();
        assert!(matches!(Content::read(dir.path(), "t", true), Err(DeliverError::Damaged { .. })));
        fs::write(&content.blobs[0].path, "ONE").unwrap();
        assert!(!Content::read(dir.path(), "t", false).unwrap().blobs[0].is_whole().unwrap());
        fs::write(&content.documents[0].blob.path, vec![b' '; content.documents[0].bytes.len()]).unwrap();
        assert!(matches!(Content::read(dir.path(), "t", false), Err(DeliverError::Damaged { .. })));
    }

    #[test]
    fn only_a_partial_image_may_lack_layers_and_none_may_lack_its_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(dir.path(), &[b"one", b"two"]);
        fs::remove_file(&content.blobs[0].path).unwrap();
        assert!(matches!(Content::read(dir.path(), "t", false), Err(DeliverError::Io { .. })));
        let partial = Content::read(dir.path(), "t", true).unwrap();
        let here: Vec<bool> = partial.blobs.iter().map(|blob| blob.here).collect();
        assert_eq!(here, [false, true, true]);
        fs::remove_file(&content.documents[0].blob.path).unwrap();
        assert!(Content::read(dir.path(), "t", true).is_err());
    }

    #[test]
    fn a_digest_cannot_lead_elsewhere() {
        let descriptor = serde_json::json!({"digest": "sha256:../../../etc/passwd", "size": 1});
        assert!(matches!(blob(Path::new("/"), &descriptor, true), Err(DeliverError::Damaged { .. })));
    }

    #[test]
    fn a_digest_names_a_file_or_nothing() {
        let good = format!("sha256:{}", hex::encode(Sha256::digest(b"x")));
        assert_eq!(hex_of(&good), Some(&good[7..]));
        for bad in ["sha256:../../etc/passwd", "sha256:", "sha512:00", &good[..70], &good.to_uppercase()] {
            assert_eq!(hex_of(bad), None, "{bad}");
        }
    }
}
