//! What the engine tells about itself: the histogram of pauses, and the log.

mod histogram;
mod logging;

pub use histogram::{GateFigures, PauseHistogram};
pub use logging::{Verbosity, init};
