//! The layers of a Nydus image: its blobs, and the bootstrap in a layer of its own.
//!
//! Media types and annotations are those of nydusify and the nydus snapshotter (contrib/nydusify/pkg/utils/constant.go,
//! nydus-snapshotter pkg/label/label.go).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::model::chunk::{BlobId, FsVersion};

use super::ImageError;
use super::oci::{Bytes, Layer, digest};

const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
const BOOTSTRAP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Where the snapshotter looks for the bootstrap in its layer.
const BOOTSTRAP_NAME: &str = "image/image.boot";

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

/// The layers of an image with this bootstrap; the blobs in the order of its table.
///
/// # Errors
/// When the bootstrap cannot be packed.
pub fn layers(bootstrap: &[u8], version: FsVersion, blobs: &[BlobLayer]) -> Result<Vec<Layer>, ImageError> {
    let mut layers: Vec<Layer> = blobs.iter().map(blob).collect();
    let tar = bootstrap_tar(bootstrap).map_err(ImageError::io("pack", Path::new(BOOTSTRAP_NAME)))?;
    let diff_id = digest(&tar);
    let packed = gzip(&tar).map_err(ImageError::io("compress", Path::new(BOOTSTRAP_NAME)))?;
    layers.push(Layer {
        media_type: BOOTSTRAP.to_owned(),
        id: BlobId(Sha256::digest(&packed).into()),
        size: packed.len() as u64,
        annotations: json!({
            "containerd.io/snapshot/nydus-bootstrap": "true",
            "containerd.io/snapshot/nydus-fs-version": version.number().to_string(),
            "containerd.io/uncompressed": diff_id,
        }),
        diff_id,
        bytes: Bytes::Here(packed),
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

fn bootstrap_tar(bootstrap: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(bootstrap.len() + 4096));
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
    tar.into_inner()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // No time and no name in the header: equal bootstraps give equal layers.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    gzip.write_all(bytes)?;
    gzip.finish()
}
