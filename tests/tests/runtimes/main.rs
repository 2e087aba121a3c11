//! The engine and the real runtimes that are on this machine, each started privately and asked as a user's engine would ask it.
//!
//! None is installed for plain `cargo xtask test`: where one is absent its test says so. `cargo xtask test --tier runtimes` installs them, and then an absent
//! one is a failure.

mod bare;
mod base;
mod databases;
mod docker_store;
mod kinds;
mod kubelet;
mod life;
mod listing;
mod matrix;
mod pods;
mod rootless;
mod snapshotter;
mod support;
mod targets;
mod writers;
