//! The command `snapshot-engine`: a thin shell over the library. See `cli`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A demo container's init is this program again; it never returns from here.
    snapshot_engine::demo::init_if_asked();
    // Nor does a measuring process inside a container.
    snapshot_engine::bench::run_if_asked();
    cli::main()
}
