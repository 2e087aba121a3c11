//! `image inspect`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde_json::{Value, json};
use snapshot_engine::rafs::read::Counts;
use snapshot_engine::reader::Problem;
use snapshot_engine::reader::inspect::{FileSummary, Nydus, Plain, Summary, files, summary};

use super::super::Result;
use super::super::out::{Out, printable};
use super::{Which, bytes};

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    which: Which,
    /// Only this path of the image and what is below it; lists files
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    path: Option<PathBuf>,
    /// List the files
    #[arg(long)]
    files: bool,
}

pub(super) fn run(args: &Inspect, out: &Out) -> Result {
    let image = args.which.look()?;
    let summary = summary(&image);
    if !args.files && args.path.is_none() {
        return out.result(&text(&summary), &summary);
    }
    let files = files(&image, args.path.as_deref().unwrap_or(Path::new("/")))?;
    out.result(&list(&files), &json!({ "image": summary, "files": files }))
}

fn text(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    match summary {
        Summary::Nydus(nydus) => of_nydus(nydus, &mut line),
        Summary::Plain(plain) => of_plain(plain, &mut line),
    }
    text
}

type Line<'a> = &'a mut dyn FnMut(&str, String);

fn image(manifest: Option<&String>, tag: Option<&String>, line: Line<'_>) {
    if let Some(manifest) = manifest {
        let tag = tag.map_or(String::new(), |tag| format!(" ({})", printable(tag)));
        line("image", format!("{manifest}{tag}"));
    }
}

fn tree(c: &Counts, line: Line<'_>) {
    line(
        "tree",
        format!(
            "{} entries: {} directories, {} files of {}, {} links, {} special; {} hard links",
            c.entries,
            c.directories,
            c.files,
            bytes(c.bytes),
            c.symlinks,
            c.special,
            c.hard_links
        ),
    );
}

fn problems(problems: &[Problem], line: Line<'_>) {
    for problem in problems {
        line("PROBLEM", format!("{}: {}", printable(&problem.place), printable(&problem.what)));
    }
}

fn of_plain(s: &Plain, line: Line<'_>) {
    image(s.manifest.as_ref(), s.tag.as_ref(), line);
    let (layers, tars) = (bytes(s.layer_bytes), bytes(s.tar_bytes));
    line("format", format!("OCI, {} layers of {layers}, {tars} as tars", s.layers.len()));
    line("platform", printable(&s.platform));
    if let Some(created) = &s.created {
        line("created", printable(created));
    }
    for (key, value) in s.config.as_object().into_iter().flatten() {
        let said = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if !matches!(said.as_str(), "" | "null" | "{}" | "[]") {
            line(&printable(key), printable(&said));
        }
    }
    tree(&s.counts, line);
    for layer in &s.layers {
        line("layer", printable(&layer.digest));
        line(
            "",
            format!(
                "{}, {} of {}, {} entries with {} of content, {} of them whiteouts",
                printable(&layer.media_type),
                bytes(layer.bytes),
                bytes(layer.tar_bytes),
                layer.entries,
                bytes(layer.content_bytes),
                layer.whiteouts
            ),
        );
    }
    problems(&s.problems, line);
}

fn of_nydus(s: &Nydus, line: Line<'_>) {
    image(s.manifest.as_ref(), s.tag.as_ref(), line);
    line(
        "format",
        format!(
            "RAFS v{}, {}, {}, chunks of {}",
            s.fs_version,
            s.compressor,
            s.digest,
            bytes(u64::from(s.chunk_size))
        ),
    );
    line("flags", format!("{:#x} {}", s.flags, s.features.join(" ")));
    tree(&s.counts, line);
    line("chunks", format!("{} of {}, stored {}", s.chunks, bytes(s.chunk_bytes), bytes(s.stored_bytes)));
    line("bootstrap", bytes(s.bootstrap_bytes));
    for blob in &s.blobs {
        let there = if blob.present { "" } else { ", MISSING" };
        line("blob", format!("{}{there}", blob.id));
        line(
            "",
            format!(
                "{} chunks ({} used), {}, {} of {}, {}",
                blob.chunks,
                blob.chunks_used,
                blob.compressor,
                bytes(blob.compressed_bytes),
                bytes(blob.uncompressed_bytes),
                blob.features.join(" ")
            ),
        );
    }
    for path in &s.prefetch {
        line("prefetch", printable(&path.to_string_lossy()));
    }
    problems(&s.problems, line);
}

fn list(files: &[FileSummary]) -> String {
    let mut text = String::new();
    for f in files {
        let letter = match f.kind {
            "directory" => 'd',
            "symlink" => 'l',
            "char" => 'c',
            "block" => 'b',
            "fifo" => 'p',
            "socket" => 's',
            _ => '-',
        };
        let size = match f.device {
            Some(device) => format!("{},{}", rustix::fs::major(device), rustix::fs::minor(device)),
            None => f.size.to_string(),
        };
        let _ = write!(
            text,
            "{letter}{:04o} {:>5} {:>5} {size:>12} {}.{:09} {}",
            f.mode,
            f.uid,
            f.gid,
            f.mtime,
            f.mtime_nsec,
            printable(&f.path.to_string_lossy())
        );
        if let Some(target) = &f.target {
            let _ = write!(text, " -> {}", printable(&target.to_string_lossy()));
        }
        if let Some(first) = &f.same_as {
            let _ = write!(text, " = {}", printable(&first.to_string_lossy()));
        }
        for (name, len) in &f.attributes {
            let _ = write!(text, " [{} {len}]", printable(name));
        }
        text.push('\n');
    }
    text
}
