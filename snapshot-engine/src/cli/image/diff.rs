//! `image diff`. As with diff(1): 0 for equal, 1 for different, 2 for trouble.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use snapshot_engine::model::fault::{Class, Fault};
use snapshot_engine::reader::ReaderError;
use snapshot_engine::reader::diff::{Change, Report, diff};

use super::super::out::{Out, printable};
use super::super::{Failed, Result};
use super::Where;

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The first image, as of `image check`
    #[arg(value_name = "A", value_hint = ValueHint::AnyPath)]
    first: PathBuf,
    /// The second
    #[arg(value_name = "B", value_hint = ValueHint::AnyPath)]
    second: PathBuf,
    #[command(flatten)]
    place: Where,
}

/// An error whose exit code is not that of a difference.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Trouble(ReaderError);

impl Fault for Trouble {
    fn class(&self) -> Class {
        match self.0.class() {
            Class::General => Class::Arguments,
            class => class,
        }
    }

    fn remedy(&self) -> Option<String> {
        self.0.remedy()
    }
}

pub(super) fn run(args: &Diff, out: &Out) -> Result<ExitCode> {
    let trouble = |e| Failed::from(Trouble(e));
    let open = |name: &PathBuf| args.place.open(name)?.sound().map_err(trouble);
    let report = diff(&open(&args.first)?, &open(&args.second)?).map_err(trouble)?;
    out.result(&text(&report), &report)?;
    Ok(if report.equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for d in &report.differences {
        let sign = match d.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{sign} {}", printable(&d.path.to_string_lossy()));
        for field in &d.what {
            let _ = match field.from == field.to {
                true => write!(text, "  {} {}", field.name, field.to),
                false => {
                    write!(text, "  {} {} -> {}", field.name, printable(&field.from), printable(&field.to))
                }
            };
        }
        text.push('\n');
    }
    let _ = match report.differences.len() {
        0 => writeln!(text, "equal: {} entries", report.entries),
        n => writeln!(text, "{n} of {} entries differ", report.entries),
    };
    text
}
