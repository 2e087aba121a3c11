//! The tracker: what the container has dirtied, as the kernel saw it.

pub mod object;
