//! The shadow: the engine's copy of the upperdir, brought up to date in rounds while the container runs.

pub use crate::model::residual;
