//! An OCI image layout: the target `oci:DIR:TAG`.
//!
//! ```text
//! DIR/oci-layout                 {"imageLayoutVersion":"1.0.0"}
//! DIR/index.json                 tag -> manifest       replaced last, by one rename, under a lock on DIR
//! DIR/blobs/sha256/...           manifest, config, layers (hard links to the cache where possible)
//! ```
//!
//! Everything is on disk before `index.json` names it: a crash leaves at most blobs nobody names.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::model::chunk::BlobId;
use crate::model::rfc3339::rfc3339;

use super::config::{Base, ImageConfig};
use super::{ImageError, remove_scraps, write_atomically};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where to put the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciTarget {
    /// The layout's directory.
    pub dir: PathBuf,
    /// The image's name in it.
    pub tag: String,
    /// Whether an image of that name may be replaced.
    pub overwrite: bool,
}

/// A text that is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no target: give oci:DIR:TAG")]
pub struct BadTarget(pub String);

impl FromStr for OciTarget {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<OciTarget, BadTarget> {
        let bad = || BadTarget(text.to_owned());
        let (dir, tag) = text.strip_prefix("oci:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(bad)?;
        if dir.is_empty() || !is_tag(tag) {
            return Err(bad());
        }
        Ok(OciTarget { dir: dir.into(), tag: tag.to_owned(), overwrite: false })
    }
}

/// The grammar of `org.opencontainers.image.ref.name` (image-spec, annotations.md).
fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric();
    tag.starts_with(word) && tag.ends_with(word) && tag.chars().all(|c| word(c) || "-._:@/+".contains(c))
}

/// Where the bytes of a layer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// In a file.
    File(PathBuf),
    /// Here.
    Here(Vec<u8>),
    /// In the registry that the image goes to. A layout with such a layer is not whole: it is for that delivery alone.
    Elsewhere,
}

/// A layer of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub media_type: String,
    /// The digest of its bytes.
    pub id: BlobId,
    /// How many.
    pub size: u64,
    /// The digest of its bytes before they were compressed, as `sha256:HEX`.
    pub diff_id: String,
    /// Notes to its descriptor; null if there are none.
    pub annotations: Value,
    /// Where they are.
    pub bytes: Bytes,
}

/// What the image consists of.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The layers, the lowest first.
    pub layers: &'a [Layer],
    /// Which of them are those of the base.
    pub base: Base,
}

/// How far the target's disk is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Care {
    /// Everything is on disk before `index.json` names it; `false` is for measurements and tests.
    pub sync: bool,
    /// A blob that is there already is read back and compared with its name: an earlier try failed or was killed, perhaps by this disk. Otherwise name and
    /// length are enough.
    pub verify: bool,
}

/// The digest of a manifest, as `sha256:HEX`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ManifestDigest(pub String);

/// Whether an image could be written to the target: to be asked before the work is done.
///
/// # Errors
/// [`ImageError::TargetExists`], [`ImageError::NotALayout`], and what comes of reading it.
pub fn check(target: &OciTarget) -> Result<(), ImageError> {
    if !is_tag(&target.tag) {
        return Err(ImageError::BadTag { tag: target.tag.clone() });
    }
    let index = match is_layout(&target.dir)? {
        true => read_index(&target.dir)?,
        false => return Ok(()),
    };
    if !target.overwrite && index.iter_tags().any(|tag| tag == target.tag) {
        return Err(ImageError::TargetExists { dir: target.dir.clone(), tag: target.tag.clone() });
    }
    Ok(())
}

/// Writes the image. If the tag stands for the very same image already, that is success: bytes depend on the arguments alone,
/// so that a try that was killed can be repeated.
///
/// # Errors
/// As [`check`], and when the layout cannot be written; then `index.json` is as it was.
pub fn write(
    target: &OciTarget,
    content: Content<'_>,
    config: &ImageConfig,
    created: SystemTime,
    care: Care,
) -> Result<ManifestDigest, ImageError> {
    let sync = care.sync;
    if !is_tag(&target.tag) {
        return Err(ImageError::BadTag { tag: target.tag.clone() });
    }
    is_layout(&target.dir)?;
    let store = target.dir.join("blobs/sha256");
    std::fs::create_dir_all(&store).map_err(ImageError::io("create", &store))?;
    // One writer at a time; the kernel lets go of it when the descriptor is closed, however that comes about.
    let lock = File::open(&target.dir).map_err(ImageError::io("open", &target.dir))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(io::Error::from)
        .map_err(ImageError::io("lock", &target.dir))?;
    for dir in [&store, &target.dir] {
        remove_scraps(dir).map_err(ImageError::io("tidy", dir))?;
    }
    let marker = target.dir.join("oci-layout");
    if !marker.exists() {
        let text = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        write_atomically(&marker, text.as_bytes(), sync).map_err(ImageError::io("write", &marker))?;
    }

    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in content.layers {
        let path = store.join(layer.id.to_string());
        match &layer.bytes {
            Bytes::File(from) => {
                place(layer, from, &path, care).map_err(ImageError::io("place the blob", &path))?;
            }
            Bytes::Here(bytes) => {
                write_atomically(&path, bytes, sync).map_err(ImageError::io("write", &path))?;
            }
            Bytes::Elsewhere => {}
        }
        let digest = format!("sha256:{}", layer.id);
        let mut descriptor = json!({"mediaType": layer.media_type, "digest": digest, "size": layer.size});
        if !layer.annotations.is_null() {
            descriptor["annotations"] = layer.annotations.clone();
        }
        layers.push(descriptor);
        diff_ids.push(layer.diff_id.clone());
    }

    let created = rfc3339(created);
    let config = put(&store, CONFIG, &pretty(&config.document(&created, &diff_ids, content.base)), sync)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": layers,
        "annotations": {"org.opencontainers.image.created": created},
    });
    let mut descriptor = put(&store, MANIFEST, &pretty(&manifest), sync)?;
    let name = ManifestDigest(descriptor["digest"].as_str().unwrap_or_default().to_owned());
    descriptor["annotations"] = json!({REF_NAME: target.tag});
    if sync {
        for dir in [&store, &target.dir.join("blobs"), &target.dir] {
            File::open(dir).and_then(|d| d.sync_all()).map_err(ImageError::io("sync", dir))?;
        }
    }
    let mut index = read_index(&target.dir)?;
    match index.get(&target.tag) {
        // An earlier try that was killed after its last step.
        Some(there) if there == name.0 => return Ok(name),
        Some(_) if !target.overwrite => {
            return Err(ImageError::TargetExists { dir: target.dir.clone(), tag: target.tag.clone() });
        }
        _ => {}
    }
    index.set(&target.tag, descriptor);
    let path = target.dir.join("index.json");
    write_atomically(&path, &pretty(&index.document), sync).map_err(ImageError::io("write", &path))?;
    Ok(name)
}

pub(super) struct Index {
    pub(super) document: Value,
}

impl Index {
    fn iter_tags(&self) -> impl Iterator<Item = &str> {
        let manifests = self.document["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
        manifests.iter().filter_map(|m| m["annotations"][REF_NAME].as_str())
    }

    /// The digest a tag stands for.
    fn get(&self, tag: &str) -> Option<&str> {
        let manifests = self.document["manifests"].as_array()?;
        let of_tag = manifests.iter().find(|m| m["annotations"][REF_NAME].as_str() == Some(tag))?;
        Some(of_tag["digest"].as_str().unwrap_or_default())
    }

    fn set(&mut self, tag: &str, descriptor: Value) {
        let manifests = self.document["manifests"].as_array().cloned().unwrap_or_default();
        let others = manifests.into_iter().filter(|m| m["annotations"][REF_NAME].as_str() != Some(tag));
        self.document["manifests"] = others.chain([descriptor]).collect();
    }
}

/// Whether the directory is a layout; `false` when there is nothing yet.
fn is_layout(dir: &Path) -> Result<bool, ImageError> {
    let marker = dir.join("oci-layout");
    match std::fs::read(&marker) {
        Ok(bytes) => {
            let document: Value = serde_json::from_slice(&bytes)
                .map_err(|source| ImageError::Damaged { path: marker, source })?;
            match document["imageLayoutVersion"].as_str() {
                Some(version) if version.starts_with("1.") => Ok(true),
                _ => Err(ImageError::NotALayout { dir: dir.to_owned() }),
            }
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            // What an interrupted first writer leaves is an empty directory with an empty store.
            match std::fs::read_dir(dir) {
                Ok(entries) => {
                    for entry in entries {
                        let entry = entry.map_err(ImageError::io("list", dir))?;
                        let name = entry.file_name();
                        if name != "blobs" && !name.as_encoded_bytes().starts_with(b".new-") {
                            // Another writer may have made it one since: he writes the marker first.
                            if marker.exists() {
                                return is_layout(dir);
                            }
                            return Err(ImageError::NotALayout { dir: dir.to_owned() });
                        }
                    }
                    Ok(false)
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(_) => Err(ImageError::NotALayout { dir: dir.to_owned() }),
            }
        }
        Err(source) => Err(ImageError::Io { what: "read", path: marker, source }),
    }
}

pub(super) fn read_index(dir: &Path) -> Result<Index, ImageError> {
    let path = dir.join("index.json");
    let document = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Damaged { path: path.clone(), source })?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
        }
        Err(source) => return Err(ImageError::Io { what: "read", path, source }),
    };
    match document {
        Value::Object(_) => Ok(Index { document }),
        _ => Err(ImageError::NotALayout { dir: dir.to_owned() }),
    }
}

/// Brings a blob into the store: a hard link where the file system allows, else a copy (a clone where it can).
fn place(blob: &Layer, from: &Path, to: &Path, care: Care) -> io::Result<()> {
    let sync = care.sync;
    if from == to {
        // A layer of an image that is in this layout: it is not ours to replace.
        return match std::fs::metadata(to)?.len() == blob.size && (!care.verify || is_whole(to, &blob.id)) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not what its digest says")),
        };
    }
    let there = std::fs::metadata(to).is_ok_and(|m| m.len() == blob.size);
    if there && (!care.verify || is_whole(to, &blob.id)) {
        return Ok(());
    }
    if there {
        tracing::warn!(path = %to.display(), "a blob of an earlier try is damaged: it is written anew");
    }
    match std::fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let dir = to.parent().unwrap_or(Path::new("."));
    // Durable before it has its name: what has the name and the size is as a rule not looked at again, and a disk that failed has lost the content.
    let linked = same_file_system(from, dir) && {
        if sync {
            File::open(from)?.sync_all()?;
        }
        std::fs::hard_link(from, to).is_ok()
    };
    if !linked {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        // `copy_file_range` underneath, which clones on XFS and btrfs.
        io::copy(&mut File::open(from)?, file.as_file_mut())?;
        if sync {
            file.as_file().sync_all()?;
        }
        file.persist(to).map_err(|e| e.error)?;
    }
    if care.verify && !is_whole(to, &blob.id) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "read back, it is not what was written: a disk is failing",
        ));
    }
    if sync { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Whether a file has the content that it is named by. Read from the disk: the page cache keeps what it could not write back (mm/filemap.c marks such pages
/// clean), so it is dropped first.
fn is_whole(path: &Path, id: &BlobId) -> bool {
    let hash = || -> io::Result<String> {
        let mut file = File::open(path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let (mut sum, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex::encode(sum.finalize())),
                n => sum.update(&buffer[..n]),
            }
        }
    };
    hash().is_ok_and(|found| found == id.to_string())
}

fn same_file_system(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    device(a).is_some_and(|a| Some(a) == device(b))
}

pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Stores bytes under their digest and gives their descriptor.
fn put(store: &Path, media_type: &str, bytes: &[u8], sync: bool) -> Result<Value, ImageError> {
    let digest = digest(bytes);
    let path = store.join(digest.trim_start_matches("sha256:"));
    write_atomically(&path, bytes, sync).map_err(ImageError::io("write", &path))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

fn pretty(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
