//! What the benchmarks share.

pub mod figures;
pub mod pause;
pub mod peers;
pub mod push;
pub mod rafs;
