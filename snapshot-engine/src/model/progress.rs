//! How far a long stage has come, for whoever shows it.

/// Receives the progress of a stage. Called from the thread that runs the stage.
pub trait Progress: Sync {
    /// A stage, or a part of one, begins.
    fn stage(&self, name: &'static str);
    /// The bytes this stage expects to move; an estimate, it may be told again.
    fn total(&self, bytes: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
    /// Whether somebody wants the stage to end early.
    fn stopped(&self) -> bool {
        false
    }
}

/// Nobody is watching.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _: &'static str) {}
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
}
