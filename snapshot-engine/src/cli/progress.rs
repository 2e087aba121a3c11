//! The progress bar: on a terminal only, on stderr. It draws when told something, from no thread of its own, so nothing of it runs inside the window.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use snapshot_engine::pipeline::progress::{Progress, Stage};

/// A bar, or nothing.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

const STEPS: u64 = 1000;

impl Bar {
    pub(crate) fn new(wanted: bool) -> Self {
        let bar = if wanted && io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr_with_hz(10))
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        Bar(bar)
    }

    /// Takes it off the screen; the next report brings it back.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
        self.0.reset();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn report(&self, stage: Stage, done: u64, total: u64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "0 to 1000"
        )]
        let position = (stage.fraction(done, total) * STEPS as f64) as u64;
        self.0.set_message(stage.to_string());
        self.0.set_position(position);
    }
}
