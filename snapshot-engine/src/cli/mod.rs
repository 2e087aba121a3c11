//! The command line: one file a command.
//!
//! ```text
//!   main -> args (clap) -> one command -> Out (text or JSON on stdout)
//!                              '-> Fault -> exit::report (once, on stderr) -> exit::code
//! ```
//!
//! stdout carries the result and nothing else; progress, the log and errors go to stderr. With `--output json` the result is one JSON document on
//! stdout, and an error is one JSON document on stderr (`{"error": .., "causes": [..], "help": .., "exit_code": ..}`), with stdout empty.

mod args;
mod background;
mod bench;
mod commit;
mod completions;
mod demo;
mod exit;
mod image;
mod list;
mod man;
mod out;
mod progress;
mod ps;
mod reach;
mod remove;
mod resume;
mod run;
mod runtimes;
mod stats;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use snapshot_engine::model::fault::Fault;
use snapshot_engine::telemetry::{self, Verbosity};

use args::{Cli, Command, Format};
use out::Out;

/// What a command returns: any error that knows its class and remedy.
pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

/// Any fault, on its way to `exit`.
#[derive(Debug)]
pub(crate) struct Failed(Box<dyn Fault>);

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot write the result")]
    Output(#[source] std::io::Error),
    #[error("cannot write {}", .0.display())]
    File(std::path::PathBuf, #[source] std::io::Error),
    #[error("the credentials for the registry are half given: the {0} is missing")]
    HalfALogin(&'static str),
    #[error("the image of this snapshot is at {0} and no longer here")]
    Elsewhere(String),
    #[error("cannot mount the image: {0}")]
    Mount(String),
    #[error("cannot make JSON of the result")]
    Json(#[from] serde_json::Error),
}

impl Fault for Error {
    fn class(&self) -> snapshot_engine::model::fault::Class {
        match self {
            Error::Output(e) | Error::File(_, e) => snapshot_engine::model::fault::class_of_io(e),
            Error::HalfALogin(_) => snapshot_engine::model::fault::Class::Arguments,
            Error::Elsewhere(_) | Error::Mount(_) | Error::Json(_) => {
                snapshot_engine::model::fault::Class::General
            }
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Error::HalfALogin(_) => {
                Some("give --username NAME with --password-stdin, or with SNAPSHOT_ENGINE_PASSWORD".into())
            }
            Error::Elsewhere(_) => Some("copy it into an OCI layout (`skopeo copy`), and name that".into()),
            _ => None,
        }
    }
}

impl<E: Fault> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed(Box::new(error))
    }
}

pub(crate) fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            telemetry::init(Verbosity(if cli.quiet { -1 } else { cli.verbose.min(3).cast_signed() }));
            let format = cli.output;
            match run(cli) {
                Ok(code) => code,
                Err(e) => exit::report(&*e.0, format),
            }
        }
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A reader that has seen enough (`| head`) is no error.
            let _ = e.print();
            ExitCode::SUCCESS
        }
        Err(e) => exit::report_usage(&e, Format::sniff(&args)),
    }
}

/// The code is that of success, but where a command's result is a finding (`image check`, `image diff`), or that of a container (`run`).
fn run(cli: Cli) -> Result<ExitCode> {
    let out = Out::new(cli.output);
    match cli.command {
        Command::Image(args) => return image::run(args, &out, cli.quiet),
        Command::Run(args) => return run::run(&args),
        Command::SeamlessCommit(args) => commit::run(args.into(), &out, cli.quiet),
        Command::Commit(args) => commit::run(args.into(), &out, cli.quiet),
        Command::Status(args) => status::run(&args, &out),
        Command::List(args) => list::run(&args, &out),
        Command::Resume(args) => resume::run(&args, &out, cli.quiet),
        Command::Remove(args) => remove::run(&args, &out),
        Command::Ps(args) => ps::run(&args, &out),
        Command::Stats(args) => stats::run(&args, &out),
        Command::Demo(args) => demo::run(&args, &out, cli.quiet),
        Command::Bench(args) => bench::run(&args, &out, cli.quiet),
        Command::Completions(args) => completions::run(&args, &out),
        Command::Man(args) => man::run(&args, &out),
        Command::Background(args) => background::run(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
