//! The tracker: what the container has dirtied, as the kernel saw it.
//!
//! ```text
//!   programs (snapshot-ebpf)          shared memory                this module
//!   file system events   ──────►  slots, block bits, ring  ──────►  take / put_back / settle     (model::dirty::Watch)
//!   sys_enter, sys_exit  ──────►  counts of each CPU       ──────►  drain, validation            (freeze::window)
//!   sys_enter            ◄──────  the fence                ◄──────  raise / lower                (freeze::fence)
//! ```

mod attach;
pub mod btf;
pub mod calls;
pub mod error;
pub mod evidence;
pub mod functions;
pub mod live;
mod load;
pub mod log;
pub mod mappings;
pub mod object;
pub mod offsets;
pub mod programs;
pub mod release;
pub mod slots;
pub mod tracker;

pub use error::Error;
pub use live::Live;
use tracker::load_error;
pub use tracker::{Scope, Tables, Tracker};
