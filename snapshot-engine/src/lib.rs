//! Snapshots of running containers, cut in microseconds.
//!
//! The way of the data, one module a stage; only `pipeline` knows the order:
//!
//! ```text
//! container -> track -> capture (pre-copy rounds) -> freeze { gate, drain, capture, validate }
//!           -> capture::frozen -> chunk -> rafs -> image -> deliver -> store, telemetry
//! ```
//!
//! `model`, `rafs` and the arithmetic of `chunk` do no I/O. `unsafe` and raw system calls live in
//! [`kernel`] alone. See `docs/architecture.md` for the map and its invariants.

pub mod bench;
pub mod capture;
pub mod chunk;
pub mod container;
pub mod deliver;
pub mod demo;
pub mod freeze;
pub mod image;
pub mod kernel;
pub mod model;
pub mod pipeline;
pub mod rafs;
pub mod reader;
pub mod restore;
mod seamless;
pub mod showcase;
pub mod store;
pub mod telemetry;
pub mod track;

pub use model::options::CommitOptions;
pub use seamless::{SeamlessSnapshot, SnapshotResult};
pub use store::{SnapshotId, SnapshotStatus, State};
