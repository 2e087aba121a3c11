//! `image check`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use snapshot_engine::reader::check::{Report, check};

use super::super::Result;
use super::super::out::{Out, printable};
use super::{Which, bar, bytes};

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(args: &Check, out: &Out, quiet: bool) -> Result<ExitCode> {
    let image = args.which.look()?;
    let bar = bar::Bytes::new(quiet, "checking");
    let report = check(&image, &|done, total| bar.report(done, total));
    drop(bar);
    out.result(&text(&report), &report)?;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for problem in &report.problems {
        let _ = writeln!(text, "{}: {}", printable(&problem.place), printable(&problem.what));
    }
    let more = report.problems_found - report.problems.len() as u64;
    if more > 0 {
        let _ = writeln!(text, "... and {more} more");
    }
    let verdict = match report.problems_found {
        0 => "sound".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    if let Some(tar_bytes) = report.tar_bytes {
        let _ = writeln!(
            text,
            "{verdict}: {} entries, {} layers of {} and their tars of {} hashed, every entry read",
            report.counts.entries,
            report.blobs,
            bytes(report.blob_bytes),
            bytes(tar_bytes),
        );
        return text;
    }
    let _ = writeln!(
        text,
        "{verdict}: {} entries, {} chunks of {} compared with their digests, {} blobs of {} hashed",
        report.counts.entries,
        report.chunks,
        bytes(report.chunk_bytes),
        report.blobs,
        bytes(report.blob_bytes),
    );
    text
}
