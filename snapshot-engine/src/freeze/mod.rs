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
//! * [`arena`]: the memory made ready for it.
//! * [`freezer`]: the gate for whom the fence is not enough; [`crate::kernel::watchdog`] guards it (G4).
//! * [`attempt`]: which gate, how often, and when another pre-copy round is better (G5).

pub mod arena;
pub mod attempt;
pub mod estimate;
pub mod freezer;
pub mod gate;
pub mod reader;
pub mod window;

pub use attempt::{Attempts, Outcome, Policy};
pub use gate::{Abandoned, Gate, Pause};
