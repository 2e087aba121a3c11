//! Shared helpers of the integration tests.
//!
//! * [`bench`]: file systems, containers and sessions that clean up after themselves
//! * [`worker`]: a process inside a container that does as it is told
//! * [`causal`]: writers with a known order, and the judge of a frozen tree

pub mod bench;
pub mod causal;
pub mod worker;
