//! OCI images unpacked by those who did not make them: a small model of what a runtime does (image-spec, `layer.md`), umoci, and tar.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use snapshot_engine::image::compare::compare;

/// An image in a layout, with every digest compared.
#[derive(Debug)]
pub struct OciImage {
    /// Its manifest.
    pub manifest: Value,
    /// Its config.
    pub config: Value,
    /// The files of its layers, the lowest first.
    pub layers: Vec<PathBuf>,
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl OciImage {
    /// Reads the image with a tag.
    ///
    /// # Errors
    /// When a document or layer is missing or not what its digest says.
    pub fn read(layout: &Path, tag: &str) -> Result<OciImage> {
        let file = |digest: &Value| -> Result<PathBuf> {
            let hex = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).context("no digest")?;
            Ok(layout.join("blobs/sha256").join(hex))
        };
        let document = |descriptor: &Value| -> Result<Value> {
            let bytes = fs::read(file(&descriptor["digest"])?)?;
            ensure!(descriptor["digest"] == sha256(&bytes).as_str(), "{descriptor} is damaged");
            ensure!(descriptor["size"] == bytes.len(), "{descriptor} has {} bytes", bytes.len());
            Ok(serde_json::from_slice(&bytes)?)
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let named = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(tag);
        let all = index["manifests"].as_array().context("no manifests")?;
        let manifest = document(all.iter().find(named).context("no such tag")?)?;
        let config = document(&manifest["config"])?;
        let descriptors = manifest["layers"].as_array().context("no layers")?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff ids")?;
        ensure!(descriptors.len() == diff_ids.len(), "{manifest:#} {config:#}");
        let made = config["history"].as_array().context("no history")?;
        let made = made.iter().filter(|entry| entry["empty_layer"] != true).count();
        ensure!(made == diff_ids.len(), "the history counts {made} layers: {config:#}");
        let mut layers = Vec::new();
        for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
            let path = file(&descriptor["digest"])?;
            let bytes = fs::read(&path)?;
            ensure!(descriptor["digest"] == sha256(&bytes).as_str(), "{descriptor} is damaged");
            ensure!(*diff_id == sha256(&stream(&path)?).as_str(), "the diff id of {descriptor}");
            layers.push(path);
        }
        Ok(OciImage { manifest, config, layers })
    }

    /// Unpacks all layers, as a runtime does.
    ///
    /// # Errors
    /// When one says something that a layer does not.
    pub fn unpack(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        self.layers.iter().try_for_each(|layer| {
            apply(&stream(layer)?, to).with_context(|| format!("apply {}", layer.display()))
        })
    }

    /// The paths in its layers, as they are written there.
    ///
    /// # Errors
    /// When one is no tar.
    pub fn paths(&self) -> Result<Vec<Vec<OsString>>> {
        let names = |layer: &PathBuf| -> Result<Vec<OsString>> {
            let bytes = stream(layer)?;
            let mut archive = tar::Archive::new(&bytes[..]);
            archive.entries()?.map(|entry| Ok(OsString::from_vec(entry?.path_bytes().into_owned()))).collect()
        };
        self.layers.iter().map(names).collect()
    }
}

/// A layer's tar, whatever it is compressed with.
fn stream(layer: &Path) -> Result<Vec<u8>> {
    let mut head = [0; 4];
    let _ = File::open(layer)?.read(&mut head)?;
    let mut bytes = Vec::new();
    let file = File::open(layer)?;
    match head {
        // One member and no more, as some readers have it.
        [0x1f, 0x8b, ..] => drop(flate2::read::GzDecoder::new(file).read_to_end(&mut bytes)?),
        [0x28, 0xb5, 0x2f, 0xfd] => drop(zstd::Decoder::new(file)?.read_to_end(&mut bytes)?),
        _ => bytes = fs::read(layer)?,
    }
    Ok(bytes)
}

fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
        Err(_) => Ok(()),
    }
}

/// Applies a layer to a directory.
fn apply(bytes: &[u8], root: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(bytes);
    // What is made in a directory changes its time: those come last.
    let mut times: Vec<(PathBuf, Timespec)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut records: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for record in extensions {
                let record = record?;
                records.insert(record.key()?.to_owned(), record.value_bytes().to_vec());
            }
        }
        let name = entry.path_bytes().into_owned();
        let name = name.strip_suffix(b"/").unwrap_or(&name);
        let path = if name == b"." { root.to_owned() } else { root.join(OsStr::from_bytes(name)) };
        let base = path.file_name().unwrap_or_default().as_bytes().to_vec();
        if base == b".wh..wh..opq" {
            for child in fs::read_dir(path.parent().context("a parent")?)? {
                remove(&child?.path())?;
            }
            continue;
        }
        if let Some(gone) = base.strip_prefix(b".wh.") {
            remove(&path.with_file_name(OsStr::from_bytes(gone)))?;
            continue;
        }
        let header = entry.header().clone();
        let kind = header.entry_type();
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir());
        if !(is_dir && kind.is_dir()) {
            remove(&path)?;
        }
        let device = makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        let mode = Mode::from_raw_mode(header.mode()?);
        let node = |kind| rustix::fs::mknodat(CWD, &path, kind, mode, device);
        match kind {
            tar::EntryType::Directory if is_dir => {}
            tar::EntryType::Directory => fs::create_dir(&path)?,
            tar::EntryType::Regular => drop(std::io::copy(&mut entry, &mut File::create(&path)?)?),
            tar::EntryType::Symlink => {
                symlink(OsStr::from_bytes(&entry.link_name_bytes().context("no target")?), &path)?;
            }
            tar::EntryType::Link => {
                let first = root.join(OsStr::from_bytes(&entry.link_name_bytes().context("no first name")?));
                // The link itself, if the first is one.
                rustix::fs::linkat(CWD, first, CWD, &path, AtFlags::empty())?;
                continue;
            }
            tar::EntryType::Char => node(FileType::CharacterDevice)?,
            tar::EntryType::Block => node(FileType::BlockDevice)?,
            tar::EntryType::Fifo => node(FileType::Fifo)?,
            other => bail!("{}: an entry of the type {other:?}", path.display()),
        }
        let number = |key: &str, header: u64| match records.get(key) {
            Some(text) => Ok::<u64, anyhow::Error>(std::str::from_utf8(text)?.parse()?),
            None => Ok(header),
        };
        let owner = (number("uid", header.uid()?)?, number("gid", header.gid()?)?);
        rustix::fs::chownat(
            CWD,
            &path,
            Some(Uid::from_raw(owner.0.try_into()?)),
            Some(Gid::from_raw(owner.1.try_into()?)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if kind != tar::EntryType::Symlink {
            rustix::fs::chmod(&path, mode)?;
        }
        if is_dir {
            clear(&path)?;
        }
        for (key, value) in &records {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                ensure!(!name.contains(".overlay."), "{}: {name}", path.display());
                rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty())
                    .with_context(|| format!("{name} on {}", path.display()))?;
            }
        }
        let time = match records.get("mtime") {
            Some(text) => decimal(std::str::from_utf8(text)?)?,
            None => Timespec { tv_sec: header.mtime()?.try_into()?, tv_nsec: 0 },
        };
        times.push((path, time));
    }
    for (path, time) in times.into_iter().rev() {
        // What a later entry of the layer has replaced is not there any more.
        let set = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &set, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// A directory that is there already gets the attributes of its entry, and no others.
fn clear(path: &Path) -> Result<()> {
    let mut names = vec![0u8; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        rustix::fs::lremovexattr(path, OsStr::from_bytes(name))?;
    }
    Ok(())
}

/// Seconds with a fraction, as pax writes them.
fn decimal(text: &str) -> Result<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i64 = format!("{fraction:0<9}")[..9].parse()?;
    let seconds: i64 = whole.parse()?;
    Ok(if text.starts_with('-') && nanos > 0 {
        Timespec { tv_sec: seconds - 1, tv_nsec: 1_000_000_000 - nanos }
    } else {
        Timespec { tv_sec: seconds, tv_nsec: nanos }
    })
}

/// Runs one of Debian's programs; with what it said, if it fails.
///
/// # Errors
/// When it is missing (`cargo xtask setup --tests` installs it) or not content.
pub fn run(program: &str, args: &[&OsStr]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program}: cargo xtask setup --tests installs it"))?;
    let said = || format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "{program} {args:?}: {}", said());
    Ok(())
}

/// Unpacks an image with umoci.
///
/// # Errors
/// What umoci has to say.
pub fn umoci(layout: &Path, tag: &str, to: &Path) -> Result<()> {
    let image = format!("{}:{tag}", layout.display());
    run(
        "umoci",
        &["raw", "unpack", "--image", &image]
            .map(OsStr::new)
            .into_iter()
            .chain([to.as_os_str()])
            .collect::<Vec<_>>(),
    )
}

/// Equal, but for sockets, which tar has not, and for what the judge cannot do by its own fault.
///
/// # Errors
/// With what differs, or when fewer entries than that were compared.
pub fn must_be_equal(reference: &Path, unpacked: &Path, entries: u64, excused: &[&str]) -> Result<()> {
    let result = compare(reference, unpacked, 30)?;
    let excused = |d: &String| d == "socket: only on the left" || excused.iter().any(|e| d.starts_with(e));
    let list: Vec<String> =
        result.differences.iter().map(ToString::to_string).filter(|d| !excused(d)).collect();
    ensure!(list.is_empty(), "{} entries compared, differences:\n{}", result.entries, list.join("\n"));
    ensure!(result.entries >= entries, "only {} entries compared", result.entries);
    Ok(())
}

/// Readers written in Go take an attribute without a value for none (`archive/tar`, `mergePAX`).
pub const GO: &[&str] = &["size-1: attributes", "size-1: user.a"];
