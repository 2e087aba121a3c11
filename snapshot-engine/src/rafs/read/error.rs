//! What can be wrong with an image.

use super::super::lossy;

/// Why something cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No bootstrap at all.
    #[error(
        "this is no RAFS bootstrap: give the bootstrap of a Nydus image, an OCI layout with one, or a blob that has one inside"
    )]
    NotRafs,
    /// A part of the format that is not read.
    #[error("the image uses {what}, which is not supported: make it again without")]
    Unsupported {
        /// Which.
        what: &'static str,
    },
    /// Something is said to be where no bytes are.
    #[error("{what} at {at} takes {len} bytes, and there are {size} in all: the file is cut off or damaged")]
    Outside {
        /// What.
        what: &'static str,
        /// Its offset.
        at: u64,
        /// Its length.
        len: u64,
        /// Length of the file.
        size: u64,
    },
    /// Something has a value that it cannot have.
    #[error("{what} at {at}: the file is damaged")]
    Damaged {
        /// What, and what is wrong with it.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// Structures lie over each other.
    #[error("structures overlap ({what} at {at}): the file is damaged, or made to harm its reader")]
    Overlap {
        /// What was to be read when they had taken more bytes than there are.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// Any of these, at one file of the tree.
    #[error("`{}`: {source}", lossy(path))]
    In {
        /// Path from the root.
        path: Vec<u8>,
        /// What is wrong there. Not a source in the sense of `Error`: it is part of this very message.
        source: Box<ReadError>,
    },
}
