//! The vocabulary the stages share: plain values, no I/O.

pub mod access;
pub mod base;
pub mod change;
pub mod changeset;
pub mod chunk;
pub mod config;
pub mod dirty;
pub mod fault;
pub mod format;
pub mod globs;
pub mod identity;
pub mod ids;
pub mod inode;
pub mod nanos;
pub mod options;
pub mod overlay;
pub mod paths;
pub mod pid;
pub mod progress;
pub mod reference;
pub mod residual;
pub mod rfc3339;
pub mod snapshot;
pub mod target;
pub mod tree;
