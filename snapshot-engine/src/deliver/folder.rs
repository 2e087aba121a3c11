//! `dir:DIR`: manifest and blobs side by side, for `skopeo copy dir:DIR ..` and for people who want to look.
//!
//! ```text
//!   DIR/version         "Directory Transport Version: 1.1"
//!   DIR/manifest.json   as it is, so that its digest stays
//!   DIR/HEX             config and layers by their digests
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::archive::umask;
use super::content::Content;
use super::{DeliverError, Meter, Replace};
use crate::kernel::removal::remove_tree;
use crate::model::access::Delivery;

const VERSION: &str = "Directory Transport Version: 1.1\n";

/// Whether the directory may be written: it is not there, empty, or one of its kind that may be replaced.
pub(super) fn check(dir: &Path, replace: Replace) -> Result<(), DeliverError> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(DeliverError::io("read", dir)(e)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let ours = fs::read_to_string(dir.join("version"))
        .is_ok_and(|text| text.starts_with("Directory Transport Version:"));
    match (ours, replace) {
        (false, _) => Err(DeliverError::Foreign { path: dir.to_owned() }),
        (true, Replace::No) => Err(DeliverError::Exists { path: dir.to_owned() }),
        (true, Replace::Yes | Replace::Same) => Ok(()),
    }
}

/// Writes the directory: complete and durable under its name, or not at all.
pub(super) fn write(
    content: &Content,
    dir: &Path,
    replace: Replace,
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    check(dir, replace)?;
    let root = content.root()?;
    let delivery = |sent_bytes| Delivery {
        digest: root.blob.digest.clone(),
        sent_bytes,
        sent: u32::try_from(content.blobs.len()).unwrap_or(u32::MAX),
        ..Delivery::default()
    };
    if replace != Replace::Yes && fs::read(dir.join("manifest.json")).is_ok_and(|there| there == root.bytes) {
        // Everything was on disk before the directory had its name.
        return Ok(delivery(0));
    }
    if replace == Replace::Same && dir.join("version").exists() {
        return Err(DeliverError::Exists { path: dir.to_owned() });
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new().prefix(".snapshot-").tempdir_in(parent);
    let made = made.map_err(DeliverError::io("write in", parent))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = made.path().join(name);
        fs::write(&path, bytes)
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(DeliverError::io("write", path))
    };
    put("version", VERSION.as_bytes())?;
    put("manifest.json", &root.bytes)?;
    for blob in &content.blobs {
        if meter.is_stopped() {
            return Err(DeliverError::Stopped);
        }
        let path = made.path().join(blob.hex());
        let copied = fs::copy(&blob.path, &path).and_then(|n| File::open(&path)?.sync_all().map(|()| n));
        meter.count(copied.map_err(DeliverError::io("write", &path))?);
    }
    let mode = fs::Permissions::from_mode(0o777 & !umask());
    fs::set_permissions(made.path(), mode).map_err(DeliverError::io("write", dir))?;
    File::open(made.path()).and_then(|d| d.sync_all()).map_err(DeliverError::io("sync", dir))?;
    let swap = dir.join("version").exists();
    let how = if swap { rustix::fs::RenameFlags::EXCHANGE } else { rustix::fs::RenameFlags::empty() };
    rustix::fs::renameat_with(rustix::fs::CWD, made.path(), rustix::fs::CWD, dir, how)
        .map_err(io::Error::from)
        .map_err(DeliverError::io("write", dir))?;
    // What was there before, if anything.
    let old = made.keep();
    remove_tree(&old).map_err(DeliverError::io("remove", &old))?;
    File::open(parent).and_then(|d| d.sync_all()).map_err(DeliverError::io("sync", parent))?;
    Ok(delivery(content.total()))
}

#[cfg(test)]
mod tests {
    use super::super::content::sample;
    use super::*;

    #[test]
    fn a_directory_has_everything_and_replaces_only_its_kind() {
        let t = tempfile::tempdir().unwrap();
        let content = sample::layout(&t.path().join("layout"), &[b"one", b"two"]);
        let dir = t.path().join("dir");
        let meter = Meter::default();
        write(&content, &dir, Replace::No, &meter).unwrap();
        assert_eq!(fs::read(dir.join("manifest.json")).unwrap(), content.root().unwrap().bytes);
        assert_eq!(fs::read(dir.join(content.blobs[1].hex())).unwrap(), b"two");
        assert_eq!(meter.done(), content.total());

        assert!(matches!(write(&content, &dir, Replace::No, &meter), Err(DeliverError::Exists { .. })));
        write(&content, &dir, Replace::Same, &meter).unwrap();
        let other = sample::layout(&t.path().join("layout2"), &[b"three"]);
        assert!(matches!(write(&other, &dir, Replace::Same, &meter), Err(DeliverError::Exists { .. })));
        write(&other, &dir, Replace::Yes, &meter).unwrap();
        assert_eq!(fs::read(dir.join("manifest.json")).unwrap(), other.root().unwrap().bytes);
        assert!(!dir.join(content.blobs[1].hex()).exists(), "the old image is gone");

        let foreign = t.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        write(&other, &foreign, Replace::No, &meter).unwrap();
        let mine = t.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("letter"), "dear").unwrap();
        assert!(matches!(write(&other, &mine, Replace::Yes, &meter), Err(DeliverError::Foreign { .. })));
        assert!(mine.join("letter").exists());
        assert!(
            fs::read_dir(t.path()).unwrap().all(|e| !e
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.'))
        );
    }
}
