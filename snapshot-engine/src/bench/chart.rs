//! Plots as inline SVG: strings and arithmetic, no I/O.

use std::fmt::Write;

use super::text::counts;
use crate::model::nanos::Nanos;

/// Colours that are told apart by most eyes and on both backgrounds (Okabe and Ito, 2008), in the order of their use.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#777777"];
const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;

/// One curve.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) times: Vec<Nanos>,
}

/// The colour of the nth curve.
pub(super) fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

#[expect(clippy::cast_precision_loss, reason = "pixels")]
fn x(ns: u64, low: u32, high: u32) -> f64 {
    let log = (ns.max(1) as f64).log10().clamp(f64::from(low), f64::from(high));
    LEFT + (log - f64::from(low)) / f64::from(high - low) * (WIDTH - LEFT - RIGHT)
}

/// The powers of ten around these times. What is below 100 ns is drawn there: it is nothing.
fn decades(times: impl Iterator<Item = u64>) -> (u32, u32) {
    let (mut low, mut high) = (u32::MAX, 0);
    for ns in times.map(|t| t.max(100)) {
        low = low.min(ns.ilog10());
        high = high.max(ns.ilog10() + 1);
    }
    if low >= high { (2, 4) } else { (low, high) }
}

fn axis(svg: &mut String, low: u32, high: u32, top: f64, bottom: f64) {
    for decade in low..=high {
        let at = x(10u64.pow(decade), low, high);
        let label = match decade {
            0..3 => format!("{} ns", 10u64.pow(decade)),
            3..6 => format!("{} us", 10u64.pow(decade - 3)),
            6..9 => format!("{} ms", 10u64.pow(decade - 6)),
            _ => format!("{} s", 10u64.pow(decade - 9)),
        };
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{top}" y2="{bottom}"/><text x="{at:.1}" y="{:.0}" text-anchor="middle">{label}</text>"#,
            bottom + 18.0
        );
    }
}

fn open(height: f64, title: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{0}"><title>{0}</title>"#,
        escape(title)
    )
}

/// Percentiles over time: the higher the further left, the better. The scale of the percentiles stretches the tail: 50, 90, 99, 99.9.
pub(super) fn percentiles(title: &str, curves: &[Curve]) -> String {
    let (top, bottom) = (12.0, 300.0);
    let (low, high) = decades(curves.iter().flat_map(|c| &c.times).map(|t| t.0));
    // p = 0 at the bottom, each further nine a third of the height.
    let y = |p: f64| bottom - (-(1.0 - p).max(0.0005).log10()).min(3.3) / 3.3 * (bottom - top);
    let mut svg = open(340.0, title);
    for p in [0.0, 0.5, 0.9, 0.99, 0.999] {
        let at = y(p);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.0}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.0}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            if p == 0.0 { "min".to_owned() } else { format!("{} %", (p * 1000.0).round() / 10.0) }
        );
    }
    axis(&mut svg, low, high, top, bottom);
    for (n, curve) in curves.iter().enumerate().filter(|(_, c)| !c.times.is_empty()) {
        let mut sorted = curve.times.clone();
        sorted.sort_unstable();
        let mut path = String::new();
        for (i, time) in sorted.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "pixels")]
            let p = i as f64 / sorted.len() as f64;
            let _ = write!(path, "{}{:.1},{:.1}", if i == 0 { 'M' } else { 'L' }, x(time.0, low, high), y(p));
        }
        let last = sorted.last().map_or(0, |t| t.0);
        #[expect(clippy::cast_precision_loss, reason = "pixels")]
        let p = 1.0 - 0.5 / sorted.len() as f64;
        let (end, height) = (x(last, low, high), y(p));
        let _ = write!(
            svg,
            r#"<path class="curve" style="stroke:{0}" d="{path}L{end:.1},{height:.1}"><title>{1}</title></path><circle cx="{end:.1}" cy="{height:.1}" r="3" fill="{0}"/>"#,
            colour(n),
            escape(&curve.name)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// How many times lie where, on a logarithmic scale.
pub(super) fn histogram(title: &str, times: &[u64], shade: &str) -> String {
    let (top, bottom) = (12.0, 180.0);
    let (low, high) = decades(times.iter().copied());
    let counts = counts(times);
    let most = counts.iter().map(|(_, _, n)| *n).max().unwrap_or(1);
    let mut svg = open(220.0, title);
    axis(&mut svg, low, high, top, bottom);
    for (from, to, n) in counts.into_iter().filter(|(_, _, n)| *n > 0) {
        let (left, right) = (x(from, low, high), x(to, low, high));
        #[expect(clippy::cast_precision_loss, reason = "pixels")]
        let height = n as f64 / most as f64 * (bottom - top - 14.0);
        let _ = write!(
            svg,
            r#"<rect x="{left:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" fill="{shade}"><title>{} to {}: {n}</title></rect><text class="small" x="{:.1}" y="{:.1}" text-anchor="middle">{n}</text>"#,
            bottom - height,
            (right - left - 1.0).max(1.0),
            Nanos(from),
            Nanos(to),
            f64::midpoint(left, right),
            bottom - height - 3.0
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Horizontal bars from `0` to each time on a logarithmic scale: p50 solid, up to the largest pale.
pub(super) fn bars(title: &str, rows: &[(String, Nanos, Nanos)]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "pixels")]
    let bottom = 8.0 + rows.len() as f64 * 26.0;
    let label = 250.0;
    let (low, high) = decades(rows.iter().flat_map(|(_, p50, max)| [p50.0, max.0]));
    let mut svg = open(bottom + 34.0, title);
    let scale = |ns: u64| label + (x(ns, low, high) - LEFT) / (WIDTH - LEFT - RIGHT) * (WIDTH - label - 90.0);
    for decade in low..=high {
        let at = scale(10u64.pow(decade));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="4" y2="{bottom}"/><text x="{at:.1}" y="{:.0}" text-anchor="middle">{}</text>"#,
            bottom + 18.0,
            Nanos(10u64.pow(decade))
        );
    }
    for (n, (name, p50, max)) in rows.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "pixels")]
        let y = 8.0 + n as f64 * 26.0;
        let (middle, end) = (scale(p50.0), scale(max.0));
        let _ = write!(
            svg,
            r#"<text x="{:.0}" y="{:.1}" text-anchor="end">{}</text><rect x="{label}" y="{y}" height="16" width="{:.1}" fill="{shade}" opacity="0.3"/><rect x="{label}" y="{y}" height="16" width="{:.1}" fill="{shade}"/><text class="small" x="{:.1}" y="{:.1}">{p50} / {max}</text>"#,
            label - 8.0,
            y + 12.0,
            escape(name),
            (end - label).max(0.0),
            (middle - label).max(0.0),
            end + 6.0,
            y + 12.0,
            shade = colour(n),
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Text that stands in HTML and in attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_from_left_to_right_and_names_are_escaped() {
        let curve = Curve { name: "<fence>".into(), times: [9_000, 5_000, 70_000].map(Nanos).to_vec() };
        let svg = percentiles("a & b", &[curve]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        assert!(svg.contains("&lt;fence&gt;") && svg.contains("a &amp; b") && !svg.contains("NaN"));
        assert!(x(5_000, 3, 5) < x(9_000, 3, 5) && x(100_000, 3, 5) <= WIDTH);
    }

    #[test]
    fn nothing_gives_an_empty_plot() {
        for svg in [percentiles("x", &[]), histogram("x", &[], "red"), bars("x", &[])] {
            assert!(svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
        }
        assert_eq!(decades([0, 0].into_iter()), (2, 3));
        assert_eq!(decades(std::iter::empty()), (2, 4));
    }
}
