//! `completions`.

use clap::CommandFactory;

use super::Result;
use super::args::{Cli, Completions};
use super::out::Out;

pub(super) fn run(args: &Completions, out: &Out) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "snapshot-engine", &mut script);
    out.raw(&script)
}
