//! The freeze: what holds the writers, and what is done while they are held.
//!
//! ```text
//!             gate up   in flight = 0   residual           nothing happened    gate down
//!   Idle ───► Raised ───► Drained ───► Captured ──────────► Validated ───────► Cut
//!                │            │            │                    │
//!                └────────────┴────────────┴── Abandoned ◄──────┘     gate down, dirt put back (T3)
//! ```
//!
//! * [`window`]: the driver of one attempt. The only code that runs while somebody may be held.
//! * [`reader`]: what it reads and where to; no allocation, lock, log or sleep either.
//! * `early`: reading before the gate goes up.
//! * `place`: how it opens what it has met.
//! * [`arena`]: the memory made ready for it.
//! * [`freezer`]: the gate for whom the fence is not enough; [`crate::kernel::watchdog`] guards it (G4).
//! * `everybody`: whether it really holds everybody.
//! * [`attempt`]: which gate, how often, and when another pre-copy round is better (G5).

pub mod arena;
pub mod attempt;
mod early;
pub mod estimate;
mod everybody;
pub mod freezer;
pub mod gate;
mod place;
pub mod reader;
pub mod window;

pub use attempt::{Attempts, Outcome, Policy};
pub use gate::{Abandoned, Gate, Pause};
