//! Sums of cargo's `test result:` lines.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// The counts of one line of output; zero unless it is a `test result:` line. Tests that a filter left
    /// out were not asked for and are not skipped.
    pub(crate) fn of_line(line: &str) -> Self {
        let Some((_, fields)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return Self::default();
        };
        let field = |name: &str| {
            let mut words = fields.split("; ").filter_map(|field| field.split_once(' '));
            words.find(|(_, what)| *what == name).and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
        };
        Self { passed: field("passed"), failed: field("failed"), skipped: field("ignored") }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut total, counts| {
            total += counts;
            total
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_are_not() {
        let output = [
            "running 3 tests",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.2s",
            "the test result: ok. 100 passed; of another kind",
        ];
        let total: Counts = output.iter().map(|line| Counts::of_line(line)).sum();
        assert_eq!(total, Counts { passed: 6, failed: 5, skipped: 1 });
        assert_eq!(total.to_string(), "6 passed, 5 failed, 1 skipped");
    }
}
