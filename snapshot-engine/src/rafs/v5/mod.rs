//! RAFS v5, the older version: an own format that only nydusd serves.

pub(super) mod bootstrap;
pub mod layout;
mod names;
