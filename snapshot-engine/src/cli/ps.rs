//! `ps`.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use snapshot_engine::model::nanos::Nanos;
use snapshot_engine::pipeline::ps::{self, Listing, Row};

use super::Result;
use super::out::{Out, printable};
use super::runtimes::Runtimes;

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// List containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Measure how fast each running container dirties its tree: the tracker watches for so long, one container after the other; nobody is held
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1s", require_equals = true)]
    rate: Option<Nanos>,
    #[command(flatten)]
    runtimes: Runtimes,
}

pub(super) fn run(args: &Ps, out: &Out) -> Result {
    ps::privileges()?;
    let rate = args.rate.map(|time| time.as_duration().min(Duration::from_secs(60)));
    let listing = ps::list(&args.runtimes.places(), &ps::Options { all: args.all, rate });
    for why in &listing.unanswered {
        tracing::warn!("{}", printable(why));
    }
    out.result(&table(&listing, rate.is_some()), &listing)
}

/// Columns as wide as their widest cell; the last one, which says why, may be long.
fn table(listing: &Listing, rate: bool) -> String {
    let mut head = vec!["RUNTIME", "ID", "NAME", "IMAGE", "STATE", "UPPER"];
    head.extend(rate.then_some("DIRTY/s"));
    head.extend(["GATE", "WHY"]);
    let mut lines = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    lines.extend(listing.containers.iter().map(|row| cells(row, rate)));
    let columns = lines[0].len();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns - 1).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line[columns - 1]);
    }
    text
}

fn cells(row: &Row, rate: bool) -> Vec<String> {
    let nothing = || "-".to_owned();
    let id: String = row.id.chars().take(12).collect();
    let mut cells = vec![
        row.runtime.to_string(),
        printable(&id),
        printable(row.shown()),
        row.image.as_deref().map_or_else(nothing, printable),
        row.state.to_string(),
        row.upper_bytes.map_or_else(nothing, bytes),
    ];
    if rate {
        cells.push(row.dirty_rate.map_or_else(nothing, bytes));
    }
    let why = row.gate.as_ref().map(|outlook| &outlook.why).or(row.refused.as_ref());
    cells.push(row.gate.as_ref().map_or_else(nothing, |outlook| outlook.gate.to_string()));
    cells.push(why.map(|why| printable(why)).unwrap_or_default());
    cells
}

/// `0 B`, `4.0 KiB`, `1.5 GiB`.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }
}
