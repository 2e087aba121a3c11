//! The layers of a Nydus image: its blobs, and the bootstrap in a layer of its own.
//!
//! Media types and annotations are those of nydusify and the nydus snapshotter (contrib/nydusify/pkg/utils/constant.go,
//! nydus-snapshotter pkg/label/label.go).

use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::model::chunk::{BlobId, FsVersion};
use crate::model::format::LayerCompression;

use super::ImageError;
use super::archive::pack::{Blocks, Failed, pack};
use super::oci::{Bytes, Layer};

const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
const BOOTSTRAP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Where the snapshotter looks for the bootstrap in its layer.
const BOOTSTRAP_NAME: &str = "image/image.boot";

/// Bytes of a bootstrap that are compressed together: one of some megabytes is to keep all cores busy, because nothing else is left to do.
const BLOCK: usize = 512 << 10;

/// A blob to put into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobLayer {
    /// Its id.
    pub id: BlobId,
    /// Where it is now.
    pub path: PathBuf,
    /// Its length.
    pub size: u64,
}

/// The layers of an image with this bootstrap; the blobs in the order of its table. `workers` compress, 0 for one per CPU.
///
/// # Errors
/// When the bootstrap cannot be packed.
pub fn layers(
    bootstrap: &[u8],
    version: FsVersion,
    blobs: &[BlobLayer],
    workers: usize,
) -> Result<Vec<Layer>, ImageError> {
    let mut layers: Vec<Layer> = blobs.iter().map(blob).collect();
    let mut stored = Vec::new();
    let tar = |to: &mut Blocks| bootstrap_tar(bootstrap, to);
    let (packed, ()) = pack(&mut stored, LayerCompression::Gzip, BLOCK, workers, tar).map_err(|failed| {
        let (Failed::Produce(source) | Failed::Write(source)) = failed;
        ImageError::io("pack", Path::new(BOOTSTRAP_NAME))(source)
    })?;
    let diff_id = format!("sha256:{}", packed.diff_id);
    layers.push(Layer {
        media_type: BOOTSTRAP.to_owned(),
        id: packed.id,
        size: packed.size,
        annotations: json!({
            "containerd.io/snapshot/nydus-bootstrap": "true",
            "containerd.io/snapshot/nydus-fs-version": version.number().to_string(),
            "containerd.io/uncompressed": diff_id,
        }),
        diff_id,
        bytes: Bytes::Here(stored),
    });
    Ok(layers)
}

fn blob(blob: &BlobLayer) -> Layer {
    let digest = format!("sha256:{}", blob.id);
    Layer {
        media_type: BLOB.to_owned(),
        id: blob.id,
        size: blob.size,
        annotations: json!({
            "containerd.io/snapshot/nydus-blob": "true",
            "containerd.io/uncompressed": digest,
        }),
        diff_id: digest,
        bytes: Bytes::File(blob.path.clone()),
    }
}

/// No time and no name of a user: equal bootstraps give equal layers.
fn bootstrap_tar(bootstrap: &[u8], to: &mut Blocks) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header
    };
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), "image/", io::empty())?;
    let mut file = header(tar::EntryType::Regular, 0o644, bootstrap.len() as u64);
    tar.append_data(&mut file, BOOTSTRAP_NAME, bootstrap)?;
    tar.finish()
}
