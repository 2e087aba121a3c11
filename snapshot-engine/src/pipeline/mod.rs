//! The only module that knows the order of the stages.
//!
//! ```text
//!   commit::cut     options, target, privilege, work dir, target free?  ->  Stages::cut  ->  record.json, pauses.json
//!        |                                                                                      |
//!        | --wait: in this process, with progress                          background::launch: | a process of its own
//!        '------------> commit::finish: Stages::image -> Stages::deliver -> record.json <------'
//! ```
//!
//! **Invariant**: everything that can be refused is refused before the container is touched. **Invariant**: from the moment the record is on disk the snapshot
//! outlives the engine; before it, nothing does.

mod attach;
pub mod background;
pub mod commit;
mod deliver;
mod earlier;
mod engine;
mod error;
mod grafts;
mod image;
mod made;
mod origin;
mod outlook;
mod preflight;
pub mod progress;
pub mod ps;
mod rate;
pub mod session;
mod stages;
mod still;
mod stopped;
mod survey;
mod turn;
mod watched;

pub use engine::{Engine, find, resolve, resolve_in};
pub use error::Error;
pub use outlook::Outlook;
pub use stages::{CutRequest, Stages};

#[cfg(test)]
pub(crate) mod fake;
