//! An image in an OCI layout: from the tag to the bootstrap or the layers, with every document compared with its digest.
//!
//! ```text
//! index.json --tag--> manifest --> config
//!       '--> index ----^  '--> layers: blobs ..., bootstrap (tar, compressed; image/image.boot in it)    a Nydus image
//!        this machine's                tars, compressed or not                                           any other
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::open::MAX_BOOTSTRAP;
use super::stream::{Hashed, Packing};
use super::{Problem, ReaderError};
use crate::model::config::Platform;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
/// The longest document that is read. The largest config has a history entry and a digest for each of some hundred layers.
const MAX_DOCUMENT: u64 = 16 << 20;

/// A descriptor of the image specification.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:HEX`.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// Notes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What it is for, if it is one of several that are the same for others.
    #[serde(default)]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// The hexadecimal digits of its digest, which is the name of its file; nothing else is taken for a name.
    #[must_use]
    pub fn hex(&self) -> Option<&str> {
        let hex = self.digest.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(hex)
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// A manifest, or an index of manifests for several machines.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
    Index { manifests: Vec<Descriptor> },
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An OCI image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory of the layout.
    pub dir: PathBuf,
    /// Its tag, if it has one.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub manifest: String,
    /// Its config, as it is.
    pub config: serde_json::Value,
    /// Its layers but the bootstrap's.
    pub blobs: Vec<Descriptor>,
}

/// What an image is made of.
pub(super) enum Made {
    /// A bootstrap, from its layer's file, and blobs.
    Nydus { file: PathBuf, bootstrap: Vec<u8> },
    /// The layers alone, with the digests of their tars.
    Plain { diff_ids: Vec<String> },
}

/// Where a layout keeps everything.
pub(super) fn store(dir: &Path) -> PathBuf {
    dir.join("blobs/sha256")
}

/// The image. Documents that are not what their digest says are noted as problems.
pub(super) fn read(
    dir: &Path,
    tag: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Result<(Layout, Made), ReaderError> {
    let index_path = dir.join("index.json");
    if !index_path.exists() {
        let what = "there is no index.json in it: give an OCI image layout".to_owned();
        return Err(ReaderError::Layout { path: dir.to_owned(), what });
    }
    let index: Index = parse(&index_path, &document(&index_path)?)?;
    let chosen = choose(dir, index.manifests, tag)?;
    let tag = chosen.annotations.get(REF_NAME).cloned();
    let (manifest, config, mut blobs) = manifest(dir, chosen, problems)?;
    let (path, bytes) = described(dir, &config, "the config", problems)?;
    let Config { rootfs: RootFs { diff_ids: given } } = parse(&path, &bytes)?;
    let config = parse(&path, &bytes)?;
    let is_bootstrap = |layer: &Descriptor| layer.annotations.get(BOOTSTRAP).is_some_and(|v| v == "true");
    let made = match blobs.iter().rposition(is_bootstrap) {
        None => Made::Plain { diff_ids: given },
        Some(at) => {
            let layer = blobs.remove(at);
            let file = file_of(dir, &layer)?;
            let (bootstrap, diff_id) = unpack(&file, &layer, problems)?;
            diff_ids(&given, &blobs, at, &diff_id, problems);
            Made::Nydus { file, bootstrap }
        }
    };
    Ok((Layout { dir: dir.to_owned(), tag, manifest: manifest.digest, config, blobs }, made))
}

/// The manifest that a descriptor leads to, for this machine if there are several, with its config and its layers.
fn manifest(
    dir: &Path,
    chosen: Descriptor,
    problems: &mut Vec<Problem>,
) -> Result<(Descriptor, Descriptor, Vec<Descriptor>), ReaderError> {
    let (path, bytes) = described(dir, &chosen, "the manifest", problems)?;
    let manifests = match parse(&path, &bytes)? {
        Document::Manifest { config, layers } => return Ok((chosen, config, layers)),
        Document::Index { manifests } => manifests,
    };
    let own = Platform::default().or_this_machine();
    let fits = |m: &Descriptor| {
        m.platform.as_ref().is_some_and(|p| (&p.os, &p.architecture) == (&own.os, &own.architecture))
    };
    let not = |what: String| ReaderError::Layout { path: path.clone(), what };
    let ours = manifests.into_iter().find(fits);
    let ours = ours.ok_or_else(|| not(format!("it has no image for {}/{}", own.os, own.architecture)))?;
    let (path, bytes) = described(dir, &ours, "the manifest", problems)?;
    match parse(&path, &bytes)? {
        Document::Manifest { config, layers } => Ok((ours, config, layers)),
        Document::Index { .. } => Err(not("it is an index of indexes".to_owned())),
    }
}

/// The config names every layer by the digest of its uncompressed bytes.
fn diff_ids(
    given: &[String],
    blobs: &[Descriptor],
    bootstrap_at: usize,
    bootstrap: &str,
    problems: &mut Vec<Problem>,
) {
    let mut expected: Vec<&str> = blobs.iter().map(|blob| blob.digest.as_str()).collect();
    expected.insert(bootstrap_at, bootstrap);
    if given.len() != expected.len() {
        let what = format!("{} diff_ids for {} layers", given.len(), expected.len());
        problems.push(Problem::new("config", what));
        return;
    }
    for (given, expected) in given.iter().zip(expected) {
        if given != expected {
            problems.push(Problem::new("config", format!("diff_id {given} of the layer {expected}")));
        }
    }
}

fn choose(dir: &Path, manifests: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, ReaderError> {
    let of = |m: &Descriptor| m.annotations.get(REF_NAME).cloned();
    let tags: Vec<String> = manifests.iter().map(|m| of(m).unwrap_or_else(|| m.digest.clone())).collect();
    let dir = dir.to_owned();
    match tag {
        Some(tag) => manifests
            .into_iter()
            .find(|m| of(m).as_deref() == Some(tag) || m.digest == tag)
            .ok_or(ReaderError::NoTag { dir, tag: tag.to_owned(), tags }),
        None => {
            let mut all = manifests.into_iter();
            match (all.next(), all.next()) {
                (Some(one), None) => Ok(one),
                (None, _) => {
                    Err(ReaderError::Layout { path: dir, what: "the layout has no image".to_owned() })
                }
                _ => Err(ReaderError::WhichTag { dir, tags }),
            }
        }
    }
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, bytes: &[u8]) -> Result<T, ReaderError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ReaderError::Layout { path: path.to_owned(), what: format!("it does not parse: {e}") })
}

/// A file of the layout, whole; not longer than any document is.
fn document(path: &Path) -> Result<Vec<u8>, ReaderError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
        .map_err(ReaderError::io("read", path))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        let what = format!("longer than {MAX_DOCUMENT} bytes");
        return Err(ReaderError::Layout { path: path.to_owned(), what });
    }
    Ok(bytes)
}

fn file_of(dir: &Path, descriptor: &Descriptor) -> Result<PathBuf, ReaderError> {
    let hex = descriptor.hex().ok_or_else(|| ReaderError::Layout {
        path: dir.to_owned(),
        what: format!("`{}` is no sha256 digest", descriptor.digest.escape_debug()),
    })?;
    Ok(store(dir).join(hex))
}

/// A document, compared with what its descriptor says.
fn described(
    dir: &Path,
    descriptor: &Descriptor,
    what: &str,
    problems: &mut Vec<Problem>,
) -> Result<(PathBuf, Vec<u8>), ReaderError> {
    let path = file_of(dir, descriptor)?;
    let bytes = document(&path)?;
    compare(what, descriptor, bytes.len() as u64, &hex::encode(Sha256::digest(&bytes)), problems);
    Ok((path, bytes))
}

fn compare(what: &str, descriptor: &Descriptor, size: u64, hex: &str, problems: &mut Vec<Problem>) {
    if size != descriptor.size {
        let what = format!("it has {size} bytes, {} are described", descriptor.size);
        problems.push(Problem::new(format!("{} ({})", descriptor.digest, what_of(descriptor)), what));
    } else if descriptor.hex() != Some(hex) {
        problems.push(Problem::new(what, format!("its digest is sha256:{hex}, not {}", descriptor.digest)));
    }
}

fn what_of(descriptor: &Descriptor) -> &str {
    descriptor.media_type.rsplit('.').next().unwrap_or_default()
}

/// The bootstrap of its layer, and the digest of the uncompressed tar.
fn unpack(
    path: &Path,
    layer: &Descriptor,
    problems: &mut Vec<Problem>,
) -> Result<(Vec<u8>, String), ReaderError> {
    let io = |e| ReaderError::io("read", path)(e);
    let mut file = File::open(path).map_err(io)?;
    let (size, digest) = Hashed::new(BufReader::with_capacity(1 << 20, &mut file)).finish().map_err(io)?;
    compare("the bootstrap's layer", layer, size, &hex::encode(digest), problems);
    let file = File::open(path).map_err(io)?;
    let plain = Packing::of(&file).and_then(|packing| packing.open(file)).map_err(io)?;
    // A tar of nothing but the bootstrap and a directory; the limit keeps a bomb from being read for hours.
    let mut tar = Hashed::new(plain.take(MAX_BOOTSTRAP));
    let mut bootstrap = None;
    let damaged = |what: &str| ReaderError::Layout { path: path.to_owned(), what: what.to_owned() };
    {
        let mut archive = tar::Archive::new(&mut tar);
        for entry in archive.entries().map_err(io)? {
            let mut entry = entry.map_err(io)?;
            let name = entry.path_bytes();
            if &*name != b"image/image.boot" && &*name != b"image.boot" {
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(io)?;
            bootstrap = Some(bytes);
        }
    }
    let (_, diff_id) = tar.finish().map_err(io)?;
    let bootstrap =
        bootstrap.ok_or_else(|| damaged("there is no image/image.boot in the bootstrap's layer"))?;
    Ok((bootstrap, format!("sha256:{}", hex::encode(diff_id))))
}
