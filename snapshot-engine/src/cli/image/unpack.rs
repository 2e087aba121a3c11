//! `image unpack`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use snapshot_engine::reader::unpack::{Options, unpack};

use super::super::Result;
use super::super::out::Out;
use super::{Which, bar, bytes};

#[derive(Debug, Args)]
pub(super) struct Unpack {
    #[command(flatten)]
    which: Which,
    /// Where to: a directory that is empty, or is made
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Unpack over what is there
    #[arg(long)]
    force: bool,
    /// Leave out what needs privilege: owners, devices, set-id bits, attributes but `user.*`
    #[arg(long)]
    unprivileged: bool,
}

pub(super) fn run(args: &Unpack, out: &Out, quiet: bool) -> Result {
    let image = args.which.open()?.complete()?;
    let bar = bar::Bytes::new(quiet, "unpacking");
    let options = Options { force: args.force, unprivileged: args.unprivileged };
    let report = unpack(&image, &args.dir, options, &|done, total| bar.report(done, total))?;
    drop(bar);
    let mut text = format!(
        "{} entries unpacked: {} of content, {} of it written, the rest are holes\n",
        report.entries,
        bytes(report.bytes),
        bytes(report.written)
    );
    if report.left_out > 0 {
        text += &format!("{} devices and attributes were left out: they need privilege\n", report.left_out);
    }
    out.result(&text, &report)
}
