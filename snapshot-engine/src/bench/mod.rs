//! The pause, measured: `snapshot-engine bench pause`, and the one piece of code by which `demo run` and `cargo xtask bench pause` measure too.
//!
//! ```text
//!   inmate      a process of ours inside the container: joins its cgroups, mount namespace and root
//!    ├─ ticker      logs every gap between two of its ticks                  the third clock
//!    └─ load        writes, and counts its writes
//!   series      N turns at random moments; in each, every contender once:    cut by a gate | a command of somebody else
//!                 window, longest stop, gap felt ── and the gap felt at a sham moment with no snapshot
//!   clocks      do the three agree? if not, what in the data says why
//!   report      JSON (docs/bench-pause.md), CSV, text, HTML
//! ```
//!
//! It uses the engine as anybody would, through `pipeline`. Nothing here runs inside a window.

mod chart;
pub mod clocks;
pub mod copies;
mod csv;
mod error;
pub mod freezes;
mod html;
pub mod inmate;
pub mod load;
mod machine;
pub mod pause;
pub mod report;
pub mod series;
mod style;
pub mod text;
pub mod ticker;

pub use error::Error;
pub(crate) use error::whole;
pub use inmate::run_if_asked;
