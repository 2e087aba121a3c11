//! The only door to the kernel's raw interfaces, and the only module with `unsafe`.
//!
//! One file, one interface. Everything above it is safe Rust; every `unsafe` block here states the
//! invariants that make it sound and who upholds them.
#![expect(unsafe_code, reason = "raw system calls and shared memory live here and nowhere else")]

pub mod beneath;
pub mod descent;
pub mod directory;
pub mod enclosure;
pub mod grace;
pub mod held;
pub mod holes;
pub mod perf;
pub mod process;
pub mod removal;
pub mod scheduling;
pub mod shared;
pub mod signals;
pub mod turn;
pub mod uring;
pub mod usage;
pub mod watchdog;
pub mod words;
pub mod writeback;
mod xattr_list;
