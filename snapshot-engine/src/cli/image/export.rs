//! `image export`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use snapshot_engine::reader::export::{Options, export};

use super::super::Result;
use super::super::out::{Out, printable};
use super::{Which, bar, bytes};

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    which: Which,
    /// The file to write
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Append a dm-verity hash tree in the form of veritysetup, and print its root hash
    #[arg(long)]
    verity: bool,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Export, out: &Out, quiet: bool) -> Result {
    let image = args.which.open()?.complete()?;
    let bar = bar::Bytes::new(quiet, "exporting");
    let options = Options { force: args.force, verity: args.verity };
    let report = export(&image, &args.file, options, &|done, total| bar.report(done, total))?;
    drop(bar);
    let file = printable(&args.file.to_string_lossy());
    let mut text = format!(
        "{} written, {} of them holes\n",
        bytes(report.bytes),
        bytes(report.bytes.saturating_sub(report.written))
    );
    match &report.verity {
        None => text += &format!("Mount it with: mount -t erofs -o loop,ro {file} DIR\n"),
        Some(verity) => {
            text += &format!(
                "Root hash: {root}\nOpen it with: veritysetup open {file} NAME {file} {root} --hash-offset={at}\n",
                root = verity.root_hash,
                at = verity.hash_offset
            );
        }
    }
    out.result(&text, &report)
}
