//! Files that need not be read, because the image of an earlier snapshot has them.
//!
//! ```text
//! snapshot 1   settled: frozen inode -> identity        memory: identity -> chunks, and the blobs that have them
//!                                                          |
//! snapshot 2   settled: frozen inode -> identity  ---------+-->  chunks of a frozen file that nobody read
//! ```
//!
//! Both files are of the engine's own. `settled` is written with the cut, `memory` when an image is complete; either may be missing or
//! damaged, and then everything is read. A file is taken over if its identity is among those of the earlier snapshot and every one of its
//! chunks is in a blob that is there. What comes of it is what reading all files with that image as a dictionary would give.
//!
//! **Blobs do not pile up.** One of which less than half would still be used is left out: what was in it is read and stored again. So is
//! everything once an image would refer to more than [`MOST_BLOBS`] of them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ImageBlob;
use super::sealed::{self, Magic};
use crate::chunk::blob::{ChunkKey, Known};
use crate::chunk::convert::Source;
use crate::kernel::beneath::{Dir, stat_fd};
use crate::model::chunk::{Blob, ChunkRef, Format};
use crate::model::identity::{Identity, Place, Realm, Settled};

/// The most earlier blobs an image refers to.
const MOST_BLOBS: usize = 32;
/// The most chunks that are remembered, 36 bytes each: 2 TiB of files in chunks of 1 MiB. Larger layers are read whole.
const MOST_CHUNKS: usize = 1 << 21;

const SETTLED: &Magic = b"snapshot-files 1";
const MEMORY: &Magic = b"snapshot-known 1";

/// Where a snapshot keeps what it takes to build on another, and to be built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incremental {
    /// What the cut says of the upper's files; written by [`record`].
    pub settled: PathBuf,
    /// What the earlier image knows of its files: a file like `memory`.
    pub earlier: PathBuf,
    /// Where this image leaves what it knows of its files.
    pub memory: PathBuf,
}

/// Keeps what a cut says of its files. It need not survive a crash: without it everything is read.
///
/// # Errors
/// When it cannot be written.
pub fn record(path: &Path, settled: &Settled) -> io::Result<()> {
    sealed::write(path, SETTLED, settled, false)
}

/// A blob as an image knows it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    blob: Blob,
    /// A path is bytes.
    path: Vec<u8>,
    /// Length of the file.
    length: u64,
}

/// What an image knows of the files it was made of.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    realm: Realm,
    format: Format,
    blobs: Vec<Kept>,
    files: Vec<(Identity, Vec<ChunkKey>)>,
}

/// An earlier image, as far as it serves an upper.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Its blobs that are worth referring to, and where they are.
    pub(super) blobs: Vec<(Blob, PathBuf)>,
    /// The chunks of frozen files, by inode number.
    files: HashMap<u64, Vec<ChunkKey>>,
}

impl Earlier {
    /// The content of a file that need not be read. The chunks must be among the known ones.
    pub(super) fn content(&self, source: &Source, known: &Known) -> Option<Vec<ChunkRef>> {
        let keys = self.files.get(&source.ino)?;
        if bytes(keys) != source.size {
            return None;
        }
        keys.iter().map(|key| known.get(key).copied()).collect()
    }
}

fn bytes(keys: &[ChunkKey]) -> u64 {
    keys.iter().map(|(_, size)| u64::from(*size)).sum()
}

impl Incremental {
    /// What the cut says of the files of this very upper.
    pub(super) fn settled(&self, upper: &Path) -> Option<Settled> {
        let settled: Settled = sealed::read(&self.settled, SETTLED)?;
        let root = Dir::open(upper).and_then(|dir| stat_fd(dir.as_fd())).ok()?;
        // A copy of the frozen upperdir has other inode numbers.
        (Place::from(&root) == settled.frozen).then_some(settled)
    }

    /// The earlier image, if there is one that was made the same way and has all its blobs; they are looked for in `dirs` too.
    pub(super) fn load(&self, settled: &Settled, format: Format, dirs: &[&Path]) -> Option<Earlier> {
        let memory: Memory = sealed::read(&self.earlier, MEMORY)?;
        if memory.realm != settled.realm || memory.format != format {
            return None;
        }
        let mut places = Vec::with_capacity(memory.blobs.len());
        for kept in &memory.blobs {
            let place = kept.find(dirs);
            if place.is_none() {
                tracing::info!(blob = %kept.blob.id, "a blob of the earlier image is gone: everything is read");
            }
            places.push(place?);
        }
        let by_identity: HashMap<&Identity, &Vec<ChunkKey>> =
            memory.files.iter().map(|(identity, keys)| (identity, keys)).collect();
        let mut files = HashMap::new();
        for (ino, identity) in &settled.files {
            if let Some(keys) = by_identity.get(identity) {
                files.insert(*ino, (*keys).clone());
            }
        }
        let wanted: HashSet<&ChunkKey> = files.values().flatten().collect();
        let blobs: Vec<_> = memory
            .blobs
            .into_iter()
            .zip(places)
            .filter(|(kept, _)| worth(&kept.blob, &wanted))
            .map(|(kept, place)| (kept.blob, place))
            .collect();
        (blobs.len() <= MOST_BLOBS).then_some(Earlier { blobs, files })
    }

    /// Keeps what a finished image knows of its files. `files` are chunks of frozen files; `all` is the table their references name, and
    /// `used` are those blobs of it that the image has and that a later one would not find by itself. Without it the next snapshot reads
    /// everything.
    pub(super) fn remember(
        &self,
        settled: Settled,
        format: Format,
        files: &[(u64, Vec<ChunkRef>)],
        all: &[Blob],
        used: &[(&Blob, &ImageBlob)],
        sync: bool,
    ) {
        if files.iter().map(|(_, chunks)| chunks.len()).sum::<usize>() > MOST_CHUNKS {
            return;
        }
        let key = |chunk: &ChunkRef| {
            let info = all.get(usize::from(chunk.blob.0))?.chunks.get(chunk.index as usize)?;
            Some((info.digest, info.size))
        };
        let known = |(ino, chunks): &(u64, Vec<ChunkRef>)| {
            let identity = settled.files.get(ino)?;
            Some((*identity, chunks.iter().map(key).collect::<Option<_>>()?))
        };
        let files = files.iter().filter_map(known).collect();
        let keep = |(blob, at): &(&Blob, &ImageBlob)| Kept {
            blob: (*blob).clone(),
            path: at.path.as_os_str().as_bytes().to_vec(),
            length: at.compressed,
        };
        let blobs = used.iter().map(keep).collect();
        let memory = Memory { realm: settled.realm, format, blobs, files };
        if let Err(error) = sealed::write(&self.memory, MEMORY, &memory, sync) {
            tracing::warn!(file = %self.memory.display(), %error, "the next snapshot will read everything");
        }
    }
}

impl Kept {
    /// Where the blob is now. Its bytes are not read; its length must be right.
    fn find(&self, dirs: &[&Path]) -> Option<PathBuf> {
        let whole =
            |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == self.length);
        let elsewhere = dirs.iter().map(|dir| dir.join(self.blob.id.to_string()));
        std::iter::once(OsStr::from_bytes(&self.path).into()).chain(elsewhere).find(whole)
    }
}

/// Whether at least half of a blob's data is wanted.
fn worth(blob: &Blob, wanted: &HashSet<&ChunkKey>) -> bool {
    let (mut all, mut used) = (0u64, 0u64);
    for chunk in &blob.chunks {
        all += u64::from(chunk.stored);
        if wanted.contains(&(chunk.digest, chunk.size)) {
            used += u64::from(chunk.stored);
        }
    }
    used > 0 && used * 2 >= all
}
