//! A span of time in nanoseconds, as people write and read it: `500us`, `1ms`, `2s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A span of time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub u64);

/// Why a text is not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is no number before the unit.
    #[error("`{0}` is not a duration: write a number and a unit, such as 500us, 1ms or 2s")]
    Number(String),
    /// The unit is unknown or missing.
    #[error("`{0}` has no known unit: use ns, us, ms, s or m")]
    Unit(String),
    /// It does not fit 64 bits of nanoseconds.
    #[error("`{0}` is too long a time")]
    TooLong(String),
}

const UNITS: [(&str, u64); 5] =
    [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000)];

impl Nanos {
    /// The same span for `std`.
    #[must_use]
    pub fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl From<Duration> for Nanos {
    fn from(d: Duration) -> Self {
        // 584 years; a longer span is cut to that.
        Nanos(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Nanos {
    /// `640ns`, `6.4us`, `1.0ms`, `2.9s`: three digits are enough for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = match self.0 {
            0..1_000 => return f.pad(&format!("{}ns", self.0)),
            // The bounds lie where rounding to one decimal would write "1000.0" of the smaller unit.
            1_000..999_950 => ("us", 1e3),
            999_950..999_950_000 => ("ms", 1e6),
            _ => ("s", 1e9),
        };
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        f.pad(&format!("{:.1}{unit}", self.0 as f64 / scale))
    }
}

impl FromStr for Nanos {
    type Err = ParseError;

    /// A decimal number (with an optional fraction) and a unit. The arithmetic is exact; what is below a nanosecond is cut off.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let trimmed = text.trim();
        let at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(at);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
            return Err(ParseError::Number(text.to_owned()));
        }
        let unit = unit.trim_start().replace(['\u{b5}', '\u{3bc}'], "u");
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        let scale = scale.ok_or_else(|| ParseError::Unit(text.to_owned()))?;
        let too_long = || ParseError::TooLong(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| too_long())?;
        let mut ns = whole.checked_mul(scale).ok_or_else(too_long)?;
        let mut place = scale;
        for digit in fraction.bytes() {
            // Exact only while the scale divides by ten; the last place of minutes (6e10) leaves 0 at the end.
            place /= 10;
            ns = ns.checked_add(place * u64::from(digit - b'0')).ok_or_else(too_long)?;
        }
        Ok(Nanos(ns))
    }
}

/// How a span stands in a report for machines: exact, and as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Nanoseconds.
    pub ns: u64,
    /// As [`Nanos`] displays it.
    pub human: String,
}

impl From<Nanos> for Span {
    fn from(nanos: Nanos) -> Self {
        Span { ns: nanos.0, human: nanos.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_as_people_write() {
        for (text, ns) in [
            ("500us", 500_000),
            ("1ms", 1_000_000),
            ("2s", 2_000_000_000),
            ("1.5ms", 1_500_000),
            ("6.4us", 6_400),
            ("7 ns", 7),
            ("10\u{b5}s", 10_000),
            ("1m", 60_000_000_000),
            ("0.25m", 15_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Nanos(ns)), "{text}");
        }
        for text in [
            "",
            "ms",
            "1",
            "1h",
            "-1ms",
            "1.ms",
            ".5ms",
            "1.2.3s",
            "1e3ms",
            "99999999999999999999s",
            "9999999999999s",
        ] {
            assert!(text.parse::<Nanos>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_as_people_read() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (6_400, "6.4us"),
            (999_949, "999.9us"),
            (999_950, "1.0ms"),
            (1_000_000, "1.0ms"),
            (999_950_000, "1.0s"),
            (2_900_000_000, "2.9s"),
        ] {
            assert_eq!(Nanos(ns).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn whole_units_are_exact(n in 0u64..1_000_000, unit in 0usize..5) {
            let (name, scale) = UNITS[unit];
            prop_assert_eq!(format!("{n}{name}").parse::<Nanos>(), Ok(Nanos(n * scale)));
        }

        #[test]
        fn what_is_shown_reads_back_within_its_last_digit(ns in 0u64..3_600_000_000_000) {
            let back = Nanos(ns).to_string().parse::<Nanos>().unwrap();
            prop_assert!(back.0.abs_diff(ns) <= ns / 15, "{} {}", ns, back.0);
        }

        #[test]
        fn never_panics(text in "\\PC{0,12}") {
            let _ = text.parse::<Nanos>();
        }
    }
}
