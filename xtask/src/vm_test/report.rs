//! What the guests of one kernel said, step by step.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::plan::Step;

/// How often a step is begun again after the emulator killed the guest in it.
const AGAIN: u32 = 5;

/// What is in the line in which the harness and the tests that count trees say what they did.
const FIGURES: [&str; 2] = [" violations, ", " trees in "];

/// How init says that a step took longer than it may: busybox's `timeout` kills it.
const KILLED: &str = "137";

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// With the reason.
    Failed(String),
}

/// What became of one step.
#[derive(Debug, Clone, Default)]
struct Ended {
    verdict: Option<Verdict>,
    took: Duration,
    /// What it says of itself in one line.
    figures: String,
    /// Guests that died in it by the emulator's fault.
    lost: u32,
}

/// What became of the steps on one kernel; several guests may have been at work one after another.
#[derive(Debug)]
pub(super) struct Outcome {
    steps: Vec<Ended>,
    /// The step that runs.
    running: Option<(usize, Instant)>,
    /// Modules that could not be loaded, and the like: a kernel with an entry here has failed.
    broken: Vec<String>,
    took: Duration,
    guests: u32,
}

impl Outcome {
    pub(super) fn new(steps: usize) -> Outcome {
        let steps = vec![Ended::default(); steps];
        Outcome { steps, running: None, broken: Vec::new(), took: Duration::ZERO, guests: 0 }
    }

    /// The first step without a verdict: where the next guest begins.
    pub(super) fn next(&self) -> Option<usize> {
        self.steps.iter().position(|step| step.verdict.is_none())
    }

    /// Takes a line of the guest's output.
    pub(super) fn line(&mut self, line: &str) {
        let Some(told) = line.strip_prefix("@@ ") else {
            if let Some((at, _)) = self.running.filter(|_| FIGURES.iter().any(|words| line.contains(words))) {
                line.clone_into(&mut self.steps[at].figures);
            }
            return;
        };
        let words: Vec<&str> = told.split(' ').collect();
        let number = |word: &str| word.parse().ok().filter(|at| *at < self.steps.len());
        match words[..] {
            ["begin", word] => self.running = number(word).map(|at| (at, Instant::now())),
            ["end", word, status] => {
                if let Some((at, began)) = self.running.take().filter(|(at, _)| number(word) == Some(*at)) {
                    self.steps[at].took = began.elapsed();
                    self.steps[at].verdict = Some(match status {
                        "0" => Verdict::Passed,
                        KILLED => Verdict::Failed("it took too long".to_owned()),
                        _ => Verdict::Failed(format!("it ended with status {status}")),
                    });
                }
            }
            ["broken", ..] => self.broken.push(told.to_owned()),
            _ => {}
        }
    }

    /// A guest that began with step `first` has ended, whether it had done everything or not: `emulator` if that was neither the kernel's fault
    /// nor the test's. Afterwards there is one step less to do, or one chance less.
    pub(super) fn guest_ended(&mut self, first: usize, emulator: bool, took: Duration) {
        self.took += took;
        self.guests += 1;
        let (at, how) = match (self.running.take(), self.next()) {
            (Some((at, _)), _) => (at, "the guest died in it"),
            (None, Some(at)) if at == first || emulator => (at, "the guest died before it began"),
            // Everything is done, or init has ended the guest after a step that it had to kill.
            _ => return,
        };
        let step = &mut self.steps[at];
        step.lost += u32::from(emulator);
        if !emulator {
            step.verdict = Some(Verdict::Failed(how.to_owned()));
        } else if step.lost > AGAIN {
            step.verdict = Some(Verdict::Failed(format!("the emulator killed {} guests in it", step.lost)));
        }
    }

    /// What has not run to its end will not: for the reason given.
    pub(super) fn give_up(&mut self, why: &str) {
        self.running = None;
        for step in self.steps.iter_mut().filter(|step| step.verdict.is_none()) {
            step.verdict = Some(Verdict::Failed(why.to_owned()));
        }
    }

    fn passed(&self) -> usize {
        self.steps.iter().filter(|step| step.verdict == Some(Verdict::Passed)).count()
    }

    fn is_good(&self) -> bool {
        self.passed() == self.steps.len() && !self.steps.is_empty() && self.broken.is_empty()
    }

    fn lost(&self) -> u32 {
        self.steps.iter().map(|step| step.lost).sum()
    }
}

/// A kernel and what became of it.
pub(super) struct Run {
    pub(super) kernel: String,
    pub(super) steps: Vec<Step>,
    pub(super) outcome: Outcome,
}

/// Prints each step on each kernel, and the sums.
pub(super) fn show(runs: &[Run]) -> ExitCode {
    for Run { kernel, steps, outcome } in runs {
        println!("\n{kernel}");
        for (step, ended) in steps.iter().zip(&outcome.steps) {
            let (word, why) = match &ended.verdict {
                Some(Verdict::Passed) => ("passed", ""),
                Some(Verdict::Failed(why)) => ("FAILED", &**why),
                None => ("FAILED", "it did not run"),
            };
            let again =
                if ended.lost > 0 { format!(", begun {} times", ended.lost + 1) } else { String::new() };
            let mut line = format!("{word} {:>7.1} s  {}{again}", ended.took.as_secs_f64(), step.name);
            for more in [why, &*ended.figures].into_iter().filter(|more| !more.is_empty()) {
                line = format!("{line}: {more}");
            }
            println!("  {line}");
        }
        for what in &outcome.broken {
            println!("  {what}");
        }
    }
    println!("\n{:<28} {:>7} {:>7} {:>8}  guests", "kernel", "passed", "failed", "time");
    for Run { kernel, outcome, .. } in runs {
        let failed = outcome.steps.len() - outcome.passed();
        let time = outcome.took.as_secs();
        println!(
            "{kernel:<28} {:>7} {failed:>7} {time:>6} s  {}, {} of them killed by the emulator",
            outcome.passed(),
            outcome.guests,
            outcome.lost()
        );
    }
    if runs.iter().all(|run| run.outcome.is_good()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(steps: usize, lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::new(steps);
        lines.iter().for_each(|line| outcome.line(line));
        outcome
    }

    #[test]
    fn a_kernel_is_good_when_every_step_has_passed() {
        let lines =
            ["@@ kernel 6.1", "@@ begin 0", "a word", "@@ end 0 0", "@@ begin 1", "@@ end 1 0", "@@ done"];
        let mut good = outcome(2, &lines);
        good.guest_ended(0, false, Duration::ZERO);
        assert!(good.is_good() && good.next().is_none(), "{good:?}");
        assert!(!outcome(3, &lines).is_good(), "one has not run");
        assert!(!outcome(0, &[]).is_good(), "nothing has run");
        assert!(!outcome(2, &[&lines[..], &["@@ broken module xfs"]].concat()).is_good());
        assert!(!outcome(1, &["@@ begin 0", "@@ end 0 101"]).is_good());
        assert!(!outcome(1, &["@@ begin 0", "@@ end 0 137"]).is_good());
    }

    #[test]
    fn a_step_that_kills_the_guest_has_failed_and_the_rest_goes_on() {
        let mut dead = outcome(3, &["@@ begin 0", "@@ end 0 0", "@@ begin 1"]);
        dead.guest_ended(0, false, Duration::ZERO);
        assert_eq!(dead.next(), Some(2));
        dead.guest_ended(2, false, Duration::ZERO);
        assert!(
            dead.next().is_none() && !dead.is_good(),
            "one that does not even boot is not tried for ever"
        );
    }

    #[test]
    fn what_the_emulator_killed_is_begun_again_but_not_for_ever() {
        let mut unlucky = outcome(1, &[]);
        for _ in 0..=AGAIN {
            assert_eq!(unlucky.next(), Some(0));
            unlucky.line("@@ begin 0");
            unlucky.guest_ended(0, true, Duration::ZERO);
        }
        assert!(unlucky.next().is_none() && !unlucky.is_good(), "{unlucky:?}");
    }

    #[test]
    fn a_step_that_the_end_of_time_finds_running_has_not_killed_its_guest() {
        let mut late = outcome(2, &["@@ begin 0"]);
        late.give_up("late");
        late.guest_ended(0, false, Duration::ZERO);
        assert_eq!(late.steps[0].verdict, Some(Verdict::Failed("late".to_owned())));
        assert!(late.next().is_none() && !late.is_good());
    }

    #[test]
    fn the_harness_says_its_figures_itself() {
        let told = outcome(1, &["@@ begin 0", "torture: 40 cuts, 0 violations, 9 s", "@@ end 0 0"]);
        assert_eq!(told.steps[0].figures, "torture: 40 cuts, 0 violations, 9 s");
    }
}
