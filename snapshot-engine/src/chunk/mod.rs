//! Files become chunks, chunks become a blob.
//!
//! ```text
//! plan:     | batch 0: 60 small files | batch 1: 1 MiB of a big one | batch 2 | ...      (tree order)
//! workers:   claim -> read (io_uring) -> digest, compress -> dedup, place -> write -> hash
//!            \______________ in parallel ______________/     \_ in order _/ parallel \ in order
//! ```
//!
//! The order of the chunks, and with it the blob's bytes and id, depends on the tree alone, not on the number of workers.
//! Placing is a matter of microseconds. Hashing is the blob's SHA-256, which takes as long as all else together when nothing is compressed: a worker hashes a batch of
//! its own, out of its core's cache, and others read, compress and write meanwhile. Memory is bounded by what the workers hold: two batches each, there is no other queue. A worker whose
//! batches wait for their turns makes the next one ready; who is further ahead sleeps.

pub mod blob;
pub mod codec;
pub mod convert;
pub mod plan;
mod turn;
mod worker;

use std::io;
use std::path::PathBuf;

/// Why files could not be turned into a blob. No partial blob is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// A file could not be opened or read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Path in the tree.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is not what the walk saw.
    #[error("`{}` changed while it was read ({what}): convert a tree nobody writes to", path.display())]
    Changed {
        /// Path in the tree.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The blob could not be written.
    #[error("cannot write the blob in `{}`: check space and permissions", dir.display())]
    Write {
        /// The directory it was to be in.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No io_uring.
    #[error("no io_uring for reading: check kernel.io_uring_disabled and the memlock limit")]
    Ring(#[source] io::Error),
    /// More chunks than a blob can have.
    #[error(
        "more than {} chunks in a layer: use a larger chunk size",
        crate::model::chunk::MAX_CHUNKS_PER_BLOB
    )]
    TooManyChunks,
    /// Compression failed.
    #[error("cannot compress a chunk")]
    Compress(#[source] io::Error),
    /// A worker of the same conversion died.
    #[error("a worker died: this is a bug, please report it")]
    Worker,
}
