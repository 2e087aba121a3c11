//! A container is hostile: it makes the worst tree it can, and changes it while we read. Nothing outside the upperdir is read or written,
//! ever; the engine ends in bounded time and memory, with a cut or with a clear refusal.
//!
//! Needs root. `SNAPSHOT_HOSTILE_MILLION=1` gives the large directory a million entries, which needs 3 GiB of memory for the disk.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

mod attributes;
mod names;
mod shapes;
mod sizes;
mod support;
mod swaps;
