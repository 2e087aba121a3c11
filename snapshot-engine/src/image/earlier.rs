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

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ImageBlob;
use super::layer::Contents;
use super::sealed::{self, Magic};
use crate::chunk::blob::{ChunkKey, Known};
use crate::chunk::convert::Source;
use crate::kernel::beneath::{Dir, stat_fd};
use crate::model::chunk::{Blob, BlobIndex, ChunkRef, Format};
use crate::model::identity::{Identity, Place, Realm, Settled};

/// The most earlier blobs an image refers to.
const MOST_BLOBS: usize = 32;
/// The most chunks that are remembered: 2 TiB of files in chunks of 1 MiB. Larger layers are read whole.
const MOST_CHUNKS: usize = 1 << 21;

const SETTLED: &Magic = b"snapshot-files 2";
const MEMORY: &Magic = b"snapshot-known 2";

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

/// What an image knows of the files it was made of. Flat: an earlier image of many small files is read in a moment.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    realm: Realm,
    format: Format,
    blobs: Vec<Kept>,
    /// Chunks in blobs that are not among these: those of lowers, which are found again by themselves.
    others: Vec<ChunkKey>,
    /// The files, and how many chunks each has.
    files: Vec<(Identity, u32)>,
    /// The chunks of one file after the other: positions in the chunks of all `blobs` with `others` behind them.
    chunks: Vec<u32>,
}

/// An earlier image, as far as it serves an upper.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Its blobs that are worth referring to, and where they are.
    pub(super) blobs: Vec<(Blob, PathBuf)>,
    /// Which of `chunks` a frozen file has, by its inode number and in its order.
    files: Vec<(u64, Range<usize>)>,
    /// Positions in `keys`.
    chunks: Vec<u32>,
    keys: Vec<ChunkKey>,
}

impl Earlier {
    /// The content of a file that need not be read. The chunks must be among the known ones.
    pub(super) fn content(&self, source: &Source, known: &Known) -> Option<Vec<ChunkRef>> {
        let at = self.files.binary_search_by_key(&source.ino, |(ino, _)| *ino).ok()?;
        let chunks = self.chunks.get(self.files[at].1.clone())?;
        let mut size = 0;
        let mut names = Vec::with_capacity(chunks.len());
        for at in chunks {
            let key = self.keys.get(*at as usize)?;
            size += u64::from(key.1);
            names.push(*known.get(key)?);
        }
        (size == source.size).then_some(names)
    }
}

impl Incremental {
    /// What the cut says of the files of this very upper, and what an earlier image has of them.
    pub(super) fn find(
        &self,
        upper: &Path,
        format: Format,
        dirs: &[&Path],
    ) -> Option<(Settled, Option<Earlier>)> {
        let settled = self.settled(upper)?;
        let earlier = self.load(&settled, format, dirs);
        Some((settled, earlier))
    }

    /// What the cut says of the files of this very upper.
    fn settled(&self, upper: &Path) -> Option<Settled> {
        let settled: Settled = sealed::read(&self.settled, SETTLED)?;
        let root = Dir::open(upper).and_then(|dir| stat_fd(dir.as_fd())).ok()?;
        // A copy of the frozen upperdir has other inode numbers.
        (Place::from(&root) == settled.frozen).then_some(settled)
    }

    /// The earlier image, if there is one that was made the same way and has all its blobs; they are looked for in `dirs` too.
    fn load(&self, settled: &Settled, format: Format, dirs: &[&Path]) -> Option<Earlier> {
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
        let Memory { blobs, others, chunks, .. } = memory;
        let mut end = 0;
        let mut earlier: Vec<(&Identity, Range<usize>)> = Vec::with_capacity(memory.files.len());
        for (identity, count) in &memory.files {
            let start = end;
            end += *count as usize;
            earlier.push((identity, start..end));
        }
        // Sorted and searched: of hundreds of thousands of files, tables of hashes would take longer to make than the tree to walk.
        earlier.sort_unstable_by_key(|(identity, _)| **identity);
        let of_file = |(ino, identity): &(u64, Identity)| {
            let at = earlier.binary_search_by_key(identity, |(identity, _)| **identity).ok()?;
            Some((*ino, earlier[at].1.clone()))
        };
        let files: Vec<_> = settled.files().iter().filter_map(of_file).collect();
        let mut keys: Vec<ChunkKey> = Vec::new();
        for kept in &blobs {
            keys.extend(kept.blob.chunks.iter().map(|chunk| (chunk.digest, chunk.size)));
        }
        keys.extend(others);
        let mut wanted = vec![false; keys.len()];
        for at in files.iter().filter_map(|(_, range)| chunks.get(range.clone())).flatten() {
            *wanted.get_mut(*at as usize)? = true;
        }
        let mut rest = wanted.as_slice();
        let blobs: Vec<_> = blobs
            .into_iter()
            .zip(places)
            .filter(|(kept, _)| {
                let (own, behind) = rest.split_at(kept.blob.chunks.len());
                rest = behind;
                worth(&kept.blob, own)
            })
            .map(|(kept, place)| (kept.blob, place))
            .collect();
        (blobs.len() <= MOST_BLOBS).then_some(Earlier { blobs, files, chunks, keys })
    }

    /// Keeps what an image knows of its files. `contents` are those of frozen files; `all` is the table their references name, and `used` are those
    /// blobs of it that the image has and that a later one would not find by itself, with their places. Without it the next snapshot reads everything.
    /// The image may not be complete yet: what it says of blobs is believed only of those that are there.
    pub(super) fn remember(
        &self,
        realm: Realm,
        format: Format,
        contents: Contents,
        all: &[Blob],
        used: &[(BlobIndex, &ImageBlob)],
        sync: bool,
    ) {
        if contents.chunks.len() > MOST_CHUNKS {
            return;
        }
        let Some(memory) = memory(realm, format, contents, all, used) else { return };
        if let Err(error) = sealed::write(&self.memory, MEMORY, &memory, sync) {
            tracing::warn!(file = %self.memory.display(), %error, "the next snapshot will read everything");
        }
    }
}

/// `None` if a reference names no chunk.
fn memory(
    realm: Realm,
    format: Format,
    contents: Contents,
    all: &[Blob],
    used: &[(BlobIndex, &ImageBlob)],
) -> Option<Memory> {
    let mut blobs = Vec::with_capacity(used.len());
    // Where the chunks of each blob begin among those of all that are kept.
    let mut begins: HashMap<BlobIndex, usize> = HashMap::new();
    let mut end = 0;
    for (index, at) in used {
        let blob = all.get(usize::from(index.0))?;
        begins.insert(*index, end);
        end += blob.chunks.len();
        let path = at.path.as_os_str().as_bytes().to_vec();
        blobs.push(Kept { blob: blob.clone(), path, length: at.compressed });
    }
    let mut others: Vec<ChunkKey> = Vec::new();
    let mut place = |chunk: &ChunkRef| {
        let info = all.get(usize::from(chunk.blob.0))?.chunks.get(chunk.index as usize)?;
        let at = begins.get(&chunk.blob).map(|begin| begin + chunk.index as usize);
        let at = at.unwrap_or_else(|| {
            others.push((info.digest, info.size));
            end + others.len() - 1
        });
        u32::try_from(at).ok()
    };
    let chunks = contents.chunks.iter().map(&mut place).collect::<Option<_>>()?;
    Some(Memory { realm, format, blobs, others, files: contents.files, chunks })
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
fn worth(blob: &Blob, wanted: &[bool]) -> bool {
    let (mut all, mut used) = (0u64, 0u64);
    for (chunk, wanted) in blob.chunks.iter().zip(wanted) {
        all += u64::from(chunk.stored);
        used += if *wanted { u64::from(chunk.stored) } else { 0 };
    }
    used > 0 && used * 2 >= all
}
