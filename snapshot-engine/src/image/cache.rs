//! Converted lowers, kept by identity.
//!
//! ```text
//! CACHE/layers/KEY     magic, checksum, the layer (postcard)      KEY = hash of path, dev, ino, ctime, options
//! CACHE/blobs/ID       its blob
//! CACHE/locks/KEY      flock: one engine converts, the others wait and find it
//! ```
//!
//! A lower is immutable while an overlay uses it, so its root's identity and change time stand for its content. An entry
//! that does not check out is converted again. Blobs are written before the entry that names them.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use crate::chunk::blob::Known;
use crate::model::chunk::{BlobId, BlobIndex, Format};
use crate::model::overlay::Namespaces;

use super::layer::{self, Layer, Options};
use super::sealed::{self, Magic};
use super::{ImageError, Progress};

/// First bytes of an entry; the number is the version of everything after it.
const MAGIC: &Magic = b"snapshot-layer 2";

/// A directory of converted lowers.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    /// Held shared by every user; see [`Cache::open`].
    _users: Arc<File>,
}

/// A layer from the cache.
#[derive(Debug)]
pub struct Cached {
    /// The layer.
    pub layer: Layer,
    /// Its blob's file in the cache.
    pub blob_path: Option<PathBuf>,
    /// Whether it was there already.
    pub hit: bool,
}

impl Cache {
    /// The cache in a directory, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Cache, ImageError> {
        for part in ["layers", "blobs", "locks"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        }
        let io = |e: rustix::io::Errno| ImageError::io("lock", dir)(e.into());
        let users = File::open(dir).map_err(ImageError::io("open", dir))?;
        // Alone with it: what is half made in it belongs to killed engines. Every user holds the lock shared.
        if rustix::fs::flock(&users, FlockOperation::NonBlockingLockExclusive).is_ok() {
            for part in ["layers", "blobs"] {
                let path = dir.join(part);
                super::remove_scraps(&path).map_err(ImageError::io("tidy", &path))?;
            }
        }
        rustix::fs::flock(&users, FlockOperation::LockShared).map_err(io)?;
        Ok(Cache { dir: dir.to_owned(), _users: Arc::new(users) })
    }

    /// Where blobs are, by id.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// The layer of a lower directory, from the cache or converted into it.
    ///
    /// # Errors
    /// As [`layer::walk`] and [`layer::convert`], or when the cache cannot be written.
    pub fn layer(
        &self,
        lower: &Path,
        options: Options,
        progress: &dyn Progress,
    ) -> Result<Cached, ImageError> {
        let key = key(lower, options).map_err(ImageError::io("read the lower layer", lower))?;
        let _alone = self.alone(&key)?;
        let entry = self.entry(&key);
        if let Some(cached) = self.load(&entry, options) {
            return Ok(cached);
        }
        let walked = layer::walk(lower, None, options)?;
        let new = layer::convert(walked, None, &self.blobs(), Known::new(), BlobIndex(0), options, progress)?;
        let (blob, blob_path) = new.blob.map(|open| open.finish(options.sync)).transpose()?.unzip();
        let layer = Layer { tree: new.tree, blob };
        sealed::write(&entry, MAGIC, &layer, options.sync)
            .map_err(ImageError::io("write the cache entry", &entry))?;
        Ok(Cached { layer, blob_path, hit: false })
    }

    /// Nobody else converts what has this key, until the value is dropped; by the kernel's hand even if we are killed.
    pub(super) fn alone(&self, key: &str) -> Result<File, ImageError> {
        let path = self.dir.join("locks").join(key);
        let lock = File::create(&path).map_err(ImageError::io("create the lock", &path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(ImageError::io("lock", &path))?;
        Ok(lock)
    }

    /// Where the entry of a key is.
    pub(super) fn entry(&self, key: &str) -> PathBuf {
        self.dir.join("layers").join(key)
    }

    /// The file of a blob, if it is whole. Its bytes are not hashed, only its length is compared.
    pub(super) fn blob(&self, id: &BlobId, size: u64) -> Option<PathBuf> {
        let path = self.blobs().join(id.to_string());
        if std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == size) {
            return Some(path);
        }
        tracing::warn!(blob = %path.display(), "missing blob: converting the layer again");
        None
    }

    /// An entry and its blob.
    fn load(&self, entry: &Path, options: Options) -> Option<Cached> {
        let layer: Layer = sealed::read(entry, MAGIC)?;
        layer.tree.check().ok()?;
        let blob_path = match &layer.blob {
            None => None,
            Some(blob) if blob.format != options.format => return None,
            Some(blob) => Some(self.blob(&blob.id, blob.file_size)?),
        };
        Some(Cached { layer, blob_path, hit: true })
    }
}

/// What stands for something in the cache: everything it depends on, put together.
pub(super) struct Key(blake3::Hasher);

impl Key {
    /// One of a kind.
    pub(super) fn new(kind: &[u8]) -> Key {
        let mut key = Key(blake3::Hasher::new());
        key.put(kind);
        key
    }

    /// It depends on this.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// It depends on the content of a directory that nobody changes.
    pub(super) fn put_layer(&mut self, lower: &Path) -> io::Result<()> {
        let path = lower.canonicalize()?;
        let root = std::fs::metadata(&path)?;
        self.put(path.as_os_str().as_bytes());
        for number in
            [root.dev(), root.ino(), root.ctime().cast_unsigned(), root.ctime_nsec().cast_unsigned()]
        {
            self.put(&number.to_le_bytes());
        }
        Ok(())
    }

    /// It depends on which marks are overlayfs'.
    pub(super) fn put_namespaces(&mut self, namespaces: Namespaces) {
        self.put(&[match namespaces {
            Namespaces::Trusted => 0,
            Namespaces::User => 1,
            Namespaces::Both => 2,
        }]);
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

fn key(lower: &Path, options: Options) -> io::Result<String> {
    let mut key = Key::new(MAGIC);
    key.put_layer(lower)?;
    let Options { format, namespaces, workers: _, sync: _ } = options;
    let Format { version, compressor, digester, chunk_size, layout } = format;
    key.put(&version.number().to_le_bytes());
    key.put(compressor.to_string().as_bytes());
    key.put(digester.to_string().as_bytes());
    key.put(&chunk_size.bytes().to_le_bytes());
    key.put(layout.to_string().as_bytes());
    key.put_namespaces(namespaces);
    Ok(key.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Quiet;
    use crate::image::sealed::HEAD;

    fn options() -> Options {
        Options { format: Default::default(), namespaces: Namespaces::Both, workers: 2, sync: false }
    }

    #[test]
    fn entries_are_found_and_damage_is_repaired() -> Result<(), Box<dyn std::error::Error>> {
        let lower = tempfile::tempdir()?;
        std::fs::write(lower.path().join("a"), "content")?;
        std::fs::create_dir(lower.path().join("d"))?;
        std::fs::hard_link(lower.path().join("a"), lower.path().join("d/b"))?;
        let dir = tempfile::tempdir()?;
        let cache = Cache::open(dir.path())?;
        let first = cache.layer(lower.path(), options(), &Quiet)?;
        assert!(!first.hit);
        let again = cache.layer(lower.path(), options(), &Quiet)?;
        assert!(again.hit);
        assert_eq!(again.layer, first.layer);

        let entry = dir.path().join("layers").join(key(lower.path(), options())?);
        let whole = std::fs::read(&entry)?;
        for cut in [0, 5, HEAD - 1, HEAD, whole.len() - 1] {
            std::fs::write(&entry, &whole[..cut])?;
            assert!(!cache.layer(lower.path(), options(), &Quiet)?.hit, "cut to {cut}");
        }
        for at in [0, HEAD - 1, HEAD + 3, whole.len() - 1] {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&entry, bad)?;
            assert!(!cache.layer(lower.path(), options(), &Quiet)?.hit, "flipped at {at}");
        }
        let blob = first.blob_path.unwrap();
        std::fs::remove_file(&blob)?;
        assert!(!cache.layer(lower.path(), options(), &Quiet)?.hit);
        assert!(blob.exists());

        // Another content or other options are another entry.
        std::fs::write(lower.path().join("new"), "x")?;
        assert!(!cache.layer(lower.path(), options(), &Quiet)?.hit);
        let other = Options { namespaces: Namespaces::User, ..options() };
        assert!(!cache.layer(lower.path(), other, &Quiet)?.hit);
        Ok(())
    }

    #[test]
    fn concurrent_engines_convert_once() -> Result<(), Box<dyn std::error::Error>> {
        let lower = tempfile::tempdir()?;
        std::fs::write(lower.path().join("a"), vec![7; 3 << 20])?;
        let dir = tempfile::tempdir()?;
        let misses = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cached =
                        Cache::open(dir.path()).unwrap().layer(lower.path(), options(), &Quiet).unwrap();
                    misses.fetch_add(usize::from(!cached.hit), std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        assert_eq!(misses.into_inner(), 1);
        Ok(())
    }
}
