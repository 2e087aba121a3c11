//! `oci-archive:FILE[:TAG]`: a layout in one tar file, the same bytes for the same image. And the tar that docker loads, which has a
//! `manifest.json` of its own beside them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::content::{Blob, Content};
use super::{DeliverError, Meter, Replace};
use crate::model::access::Delivery;

/// Writes the file: complete and durable, or not at all.
pub(super) fn write(
    content: &Content,
    file: &Path,
    tag: Option<&str>,
    replace: Replace,
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new().prefix(".snapshot-").suffix(".tar").tempfile_in(dir);
    let mut made = made.map_err(DeliverError::io("write in", dir))?;
    let written = (|| -> Result<(), DeliverError> {
        let mut tar = Tar::new(BufWriter::with_capacity(1 << 20, made.as_file_mut()), meter);
        tar.layout(content, tag)?;
        let to = DeliverError::io("write", file);
        let mut buffer = match tar.end() {
            Ok(buffer) => buffer,
            Err(e) => return Err(to(e)),
        };
        buffer.flush().map_err(to)
    })();
    written?;
    // Like every file that is made, and not like a temporary one.
    let mode = fs::Permissions::from_mode(0o666 & !umask());
    made.as_file().set_permissions(mode).map_err(DeliverError::io("write", file))?;
    made.as_file().sync_all().map_err(DeliverError::io("sync", file))?;
    let sent_bytes = made.as_file().metadata().map_err(DeliverError::io("write", file))?.len();
    match replace {
        Replace::Yes => drop(made.persist(file).map_err(|e| DeliverError::io("write", file)(e.error))?),
        Replace::No | Replace::Same => match made.persist_noclobber(file) {
            Ok(_) => {}
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                let same = replace == Replace::Same
                    && same(e.file.path(), file).map_err(DeliverError::io("read", file))?;
                if !same {
                    return Err(DeliverError::Exists { path: file.to_owned() });
                }
            }
            Err(e) => return Err(DeliverError::io("write", file)(e.error)),
        },
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(DeliverError::io("sync", dir))?;
    let sent = u32::try_from(content.blobs.len()).unwrap_or(u32::MAX);
    Ok(Delivery { digest: content.root()?.blob.digest.clone(), sent_bytes, sent, ..Delivery::default() })
}

/// What `open(2)` takes away. Asked of the kernel by what it shows, for asking by umask(2) would change it.
pub(super) fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
}

fn same(a: &Path, b: &Path) -> io::Result<bool> {
    if fs::metadata(a)?.len() != fs::metadata(b)?.len() {
        return Ok(false);
    }
    let mut a = io::BufReader::with_capacity(1 << 20, File::open(a)?);
    let mut b = io::BufReader::with_capacity(1 << 20, File::open(b)?);
    loop {
        let (left, right) = (io::BufRead::fill_buf(&mut a)?, io::BufRead::fill_buf(&mut b)?);
        let n = left.len().min(right.len());
        if n == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
        io::BufRead::consume(&mut a, n);
        io::BufRead::consume(&mut b, n);
    }
}

/// A tar file of an image under way.
pub(super) struct Tar<'a, W: Write> {
    tar: tar::Builder<W>,
    meter: &'a Meter,
}

impl<'a, W: Write> Tar<'a, W> {
    pub(super) fn new(to: W, meter: &'a Meter) -> Self {
        Tar { tar: tar::Builder::new(to), meter }
    }

    /// All of a layout with this one image in it.
    pub(super) fn layout(&mut self, content: &Content, tag: Option<&str>) -> Result<(), DeliverError> {
        let root = &content.root()?.blob;
        let mut descriptor = json!({"mediaType": root.media_type, "digest": root.digest, "size": root.size});
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        self.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.bytes("index.json", index.to_string().as_bytes())?;
        for document in &content.documents {
            self.bytes(&format!("blobs/sha256/{}", document.blob.hex()), &document.bytes)?;
        }
        for blob in &content.blobs {
            self.blob(&format!("blobs/sha256/{}", blob.hex()), blob)?;
        }
        Ok(())
    }

    /// What docker loads (moby, image/tarexport/load.go): a list with the names of config and layers and the name the image is to have. The
    /// index of a layout is left out: docker would take its layers in their compressed form, and before version 23 it knows no zstd.
    pub(super) fn docker(&mut self, content: &Content, name: &str) -> Result<(), DeliverError> {
        let manifest = &content.root()?.json;
        let find = |descriptor: &Value| {
            content.blobs.iter().find(|b| Some(&*b.digest) == descriptor["digest"].as_str())
        };
        let config = find(&manifest["config"]);
        let layers: Vec<&Blob> =
            manifest["layers"].as_array().into_iter().flatten().filter_map(find).collect();
        let path = |blob: &Blob| format!("{}.tar", blob.hex());
        let config_name = config.map(|config| format!("{}.json", config.hex())).unwrap_or_default();
        if let Some(config) = config {
            self.blob(&config_name, config)?;
        }
        let mut names = Vec::new();
        for layer in layers {
            let name = path(layer);
            if !names.contains(&name) {
                match layer.media_type.ends_with("zstd") {
                    true => self.unpacked(&name, layer)?,
                    false => self.blob(&name, layer)?,
                }
            }
            names.push(name);
        }
        let list = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        self.bytes("manifest.json", list.to_string().as_bytes())
    }

    /// A layer without its compression. A tar file says the length before the content: it is unpacked twice.
    fn unpacked(&mut self, name: &str, blob: &Blob) -> Result<(), DeliverError> {
        let open = || {
            let file = File::open(&blob.path)?;
            zstd::Decoder::new(file)
        };
        let length = open().and_then(|mut from| io::copy(&mut from, &mut io::sink()));
        let length = length.map_err(DeliverError::io("unpack", &blob.path))?;
        let from = open().map_err(DeliverError::io("unpack", &blob.path))?;
        self.append(name, length, from).map_err(DeliverError::io("pack", &blob.path))?;
        self.meter.count(blob.size);
        Ok(())
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), DeliverError> {
        self.append(name, bytes.len() as u64, bytes).map_err(DeliverError::io("pack", name))
    }

    fn blob(&mut self, name: &str, blob: &Blob) -> Result<(), DeliverError> {
        let file = File::open(&blob.path).map_err(DeliverError::io("read", &blob.path))?;
        let metered = Metered { from: file, meter: self.meter };
        match self.append(name, blob.size, metered) {
            Err(_) if self.meter.is_stopped() => Err(DeliverError::Stopped),
            other => other.map_err(DeliverError::io("pack", &blob.path)),
        }
    }

    fn append(&mut self, name: &str, size: u64, from: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        self.tar.append_data(&mut header, name, from)
    }

    pub(super) fn end(self) -> io::Result<W> {
        self.tar.into_inner()
    }
}

/// A file that is counted as it is read, and ends when somebody wants it to.
struct Metered<'a> {
    from: File,
    meter: &'a Meter,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let n = self.from.read(buffer)?;
        self.meter.count(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::sample;
    use super::*;

    #[test]
    fn an_archive_is_a_layout_and_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(&dir.path().join("layout"), &[b"one", &[7; 100_000]]);
        let file = dir.path().join("image.tar");
        let meter = Meter::default();
        let done = write(&content, &file, Some("v1"), Replace::No, &meter).unwrap();
        assert_eq!(done.digest, content.root().unwrap().blob.digest);
        assert_eq!((done.sent, done.sent_bytes), (3, fs::metadata(&file).unwrap().len()));
        let out = dir.path().join("out");
        tar::Archive::new(File::open(&file).unwrap()).unpack(&out).unwrap();
        let back = Content::read(&out, "v1", false).unwrap();
        assert_eq!(back.root().unwrap().bytes, content.root().unwrap().bytes);
        assert!(back.blobs.iter().all(|blob| blob.is_whole().unwrap()));

        assert!(matches!(
            write(&content, &file, Some("v1"), Replace::No, &meter),
            Err(DeliverError::Exists { .. })
        ));
        write(&content, &file, Some("v1"), Replace::Same, &meter).unwrap();
        assert!(matches!(
            write(&content, &file, Some("v2"), Replace::Same, &meter),
            Err(DeliverError::Exists { .. })
        ));
        write(&content, &file, None, Replace::Yes, &meter).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "layout, image, out");
    }

    #[test]
    fn a_stopped_archive_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(&dir.path().join("layout"), &[b"one"]);
        let meter = Meter::default();
        meter.stop();
        let file = dir.path().join("image.tar");
        assert!(matches!(write(&content, &file, None, Replace::No, &meter), Err(DeliverError::Stopped)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
