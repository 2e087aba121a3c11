//! The vocabulary the stages share: plain values, no I/O.

pub mod chunk;
pub mod dirty;
pub mod overlay;
pub mod tree;
