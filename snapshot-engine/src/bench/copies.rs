//! From the command to the cut, beside others who copy the same tree.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter, Write as _};

use serde::Serialize;

use super::chart::escape;
use super::report::median;
use crate::model::nanos::{Nanos, Span};

/// The engine's name in [`Copy::times`].
pub const ENGINE: &str = "snapshot-engine, command to cut";
/// The part of [`Copy::parts`] that is the copy itself.
pub const BASE: &str = "base copy";

/// Copies of one tree, in turn.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Copy {
    /// The tree.
    pub tree: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its file system.
    pub file_system: String,
    /// Times by who copied: [`ENGINE`], `cp -a --reflink=auto`, `rsync -a`.
    pub times: BTreeMap<String, Vec<Span>>,
    /// Processor time by who copied; the kernel's own threads are nobody's.
    pub cpu: BTreeMap<String, Vec<Span>>,
    /// Where the engine's times went, in the order of its times.
    pub parts: BTreeMap<String, Vec<Span>>,
}

/// The median; nothing of nothing.
fn middle(spans: &[Span]) -> Option<Nanos> {
    (!spans.is_empty()).then(|| Nanos(median(spans.iter().map(|s| s.ns))))
}

impl Copy {
    /// The median time of one who copied.
    #[must_use]
    pub fn took(&self, who: &str) -> Option<Nanos> {
        middle(self.times.get(who)?)
    }

    /// MB a second of the copying alone, by the median.
    fn rate(&self, who: &str) -> Option<u64> {
        let spans = if who == ENGINE { self.parts.get(BASE)? } else { self.times.get(who)? };
        (self.bytes * 1000).checked_div(middle(spans)?.0)
    }

    /// Where the engine's time went by the medians, the longest first; below a hundredth of the whole it is of no interest.
    fn spent(&self) -> Vec<(&str, Nanos)> {
        let whole = self.took(ENGINE).unwrap_or_default();
        let parts = self.parts.iter().filter_map(|(what, spans)| Some((what.as_str(), middle(spans)?)));
        let mut parts: Vec<(&str, Nanos)> = parts.filter(|(_, time)| time.0 > whole.0 / 100).collect();
        parts.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        parts
    }

    /// A row for each who copied: who, times, processor time, MB a second.
    fn rows(&self) -> impl Iterator<Item = (&str, String, String, String)> {
        self.times.iter().map(|(who, times)| {
            let ends = |pick: Option<&Span>| pick.map(|t| t.human.clone()).unwrap_or_default();
            let times_of = format!(
                "{} ({} to {})",
                middle(times).unwrap_or_default(),
                ends(times.iter().min_by_key(|t| t.ns)),
                ends(times.iter().max_by_key(|t| t.ns))
            );
            let cpu = self.cpu.get(who).and_then(|spans| middle(spans)).map(|n| n.to_string());
            let rate = self.rate(who).map(|n| n.to_string());
            (who.as_str(), times_of, cpu.unwrap_or_default(), rate.unwrap_or_default())
        })
    }

    /// For people at a terminal.
    pub(super) fn text(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}, {}", self.tree, self.file_system)?;
        writeln!(f, "{:<32} {:<28} {:>8} {:>8}", "WHO COPIED", "MEDIAN (FROM TO)", "CPU", "MB/S")?;
        for (who, times, cpu, rate) in self.rows() {
            writeln!(f, "{who:<32} {times:<28} {cpu:>8} {rate:>8}")?;
        }
        let spent: Vec<String> = self.spent().iter().map(|(what, time)| format!("{what} {time}")).collect();
        if !spent.is_empty() {
            writeln!(f, "    the engine's time: {}", spent.join(", "))?;
        }
        Ok(())
    }

    /// For the page.
    pub(super) fn html(&self, out: &mut String) {
        let _ = write!(
            out,
            "<h3>{}, {}</h3><div class=\"scroll\"><table><tr><th class=\"l\">who</th><th>median (from, to)</th><th>CPU</th><th>MB/s</th></tr>",
            escape(&self.tree),
            escape(&self.file_system)
        );
        for (who, times, cpu, rate) in self.rows() {
            let who = escape(who);
            let _ = write!(
                out,
                "<tr><td class=\"l\">{who}</td><td>{times}</td><td>{cpu}</td><td>{rate}</td></tr>"
            );
        }
        out.push_str("</table></div>");
        let spent: Vec<String> =
            self.spent().iter().map(|(what, time)| format!("{} {time}", escape(what))).collect();
        if !spent.is_empty() {
            let _ = write!(out, "<p class=\"soft\">The engine's time: {}.</p>", spent.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(ms: &[u64]) -> Vec<Span> {
        ms.iter().map(|ms| Nanos(ms * 1_000_000).into()).collect()
    }

    #[test]
    fn medians_and_the_rate_of_the_copy_alone() {
        let copy = Copy {
            bytes: 1_000_000_000,
            times: BTreeMap::from([(ENGINE.into(), spans(&[900, 500, 400])), ("cp".into(), spans(&[250]))]),
            parts: BTreeMap::from([(BASE.into(), spans(&[200, 200, 200])), ("sweeps".into(), spans(&[1]))]),
            ..Copy::default()
        };
        assert_eq!((copy.took(ENGINE), copy.took("rsync")), (Some(Nanos(500_000_000)), None));
        assert_eq!((copy.rate(ENGINE), copy.rate("cp")), (Some(5000), Some(4000)));
        assert_eq!(copy.spent(), [(BASE, Nanos(200_000_000))]);
        assert_eq!(copy.rows().next().map(|row| row.1), Some("250.0ms (250.0ms to 250.0ms)".to_owned()));
    }
}
