//! The image of the peers' containers, made without a network: one static busybox, a few empty directories and small files. Others can be made of it.
//!
//! ```text
//!   DIR/root/            bin/busybox data/ dev/ etc/ proc/ sys/ tmp/ base/    what runc gets as a lower layer
//!   DIR/image.tar        manifest.json CONFIG.json layer.tar                  what the others load
//! ```
//!
//! The archive is in the format of `docker save`, version 1.2 of Docker's image specification: the one that docker, podman and
//! containerd all load.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::room::BUSYBOX;

/// The peers' image's name at whoever has loaded it. `localhost` keeps everybody from asking a registry for it.
pub(super) const NAME: &str = "localhost/snapshot-peer:latest";

/// What the containers mount over, and where the layer goes.
const DIRECTORIES: [&str; 8] = ["bin", "data", "dev", "etc", "proc", "run", "sys", "tmp"];

/// Files for containers to delete and to replace.
const FILES: [&str; 5] = ["deleted", "replaced", "kept", "opaque/old", "gone/old"];

/// Makes the root directory in `dir`.
///
/// # Errors
/// As the file system's.
pub fn root(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    for name in DIRECTORIES {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("copying {BUSYBOX}"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    for name in FILES {
        let file = root.join("base").join(name);
        fs::create_dir_all(file.parent().unwrap_or(&root))?;
        fs::write(file, name)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(root)
}

/// Makes the archive of the peers' image.
///
/// # Errors
/// As the file system's.
pub(super) fn archive(dir: &Path) -> Result<PathBuf> {
    let root = root(dir)?;
    let path = dir.join("image.tar");
    pack(&root, NAME, &json!({ "Cmd": [BUSYBOX, "sh"] }), &path)?;
    fs::remove_dir_all(&root)?;
    Ok(path)
}

/// Makes the archive of an image of this name with one layer, a tree with its owners and modes, and the `config` of its containers.
///
/// # Errors
/// As the file system's.
pub fn pack(root: &Path, name: &str, config: &Value, path: &Path) -> Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.append_dir_all(".", root)?;
    let layer = layer.into_inner()?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(File::create(path)?);
    for (name, bytes) in [
        ("manifest.json", serde_json::to_vec(&manifest)?),
        (config_name.as_str(), config),
        ("layer.tar", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(archive.finish()?)
}
