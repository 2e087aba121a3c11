//! Images read back: checked, shown, compared, unpacked, exported, mounted.
//!
//! ```text
//! IMAGE --source--> layout (OCI) or bootstrap file --rafs::read--> Opened { tree, chunks, blobs }
//!                     '---- of plain layers -------layers/------------^  |  data: a chunk, decompressed and verified
//!        check  inspect  diff  unpack  export  mount  <------------------'
//! ```
//!
//! An image is not trusted: whoever made it may have meant harm. `rafs::read` checks what the bootstrap says, `layers/` what tars say; no
//! byte of a blob is given out before its digest was compared with the bootstrap's.

mod as_v6;
pub mod check;
pub mod content;
pub mod data;
pub mod diff;
mod error;
pub mod export;
pub mod inspect;
mod layers;
mod layout;
pub mod mount;
mod open;
mod parts;
mod source;
mod sparse;
mod stream;
pub mod unpack;
mod verity;
mod walk;

pub use error::{Problem, ReaderError};
pub use layers::Layer;
pub use layout::Layout;
pub use open::{BlobFile, Opened, open};
pub use source::Source;

/// Told how many bytes of how many are done; called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);
