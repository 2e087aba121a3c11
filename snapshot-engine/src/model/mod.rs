//! The vocabulary the stages share: plain values, no I/O.

pub mod dirty;
pub mod progress;
