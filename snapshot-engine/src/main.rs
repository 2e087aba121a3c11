//! The command `snapshot-engine`: a thin shell over the library. See `cli`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
