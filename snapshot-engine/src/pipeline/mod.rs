//! The only module that knows the order of the stages.
//!
//! ```text
//!   commit::cut     options, target, privilege, work dir, target free?  ->  Stages::cut  ->  record.json, pauses.json
//!        |                                                                                      |
//!        | --wait: in this process, with progress                          background::launch: | a process of its own
//!        '------------------------> commit::finish: Stages::image -> record.json <-------------'
//! ```
//!
//! **Invariant**: everything that can be refused is refused before the container is touched. **Invariant**: from the moment the record is on disk the snapshot
//! outlives the engine; before it, nothing does.

pub mod background;
pub mod commit;
mod engine;
mod error;
mod image;
mod preflight;
pub mod progress;
pub mod session;
mod stages;
mod still;
mod watched;

pub use engine::{Engine, resolve};
pub use error::Error;
pub use stages::{CutRequest, Stages};

#[cfg(test)]
pub(crate) mod fake;
