//! Does one instant exist that explains a frozen tree?
//!
//! Each thread's operations are replayed into its model. Where the tree equals the state after `k` of them, the tree shows an instant `t` with
//! `start(k-1) <= t <= end(k)`: operation `k-1` took effect before it ended and not before it began, operation `k` not yet. These spans of all
//! threads and the one in which the engine says that it cut must have an instant in common. No kind of writer has code of its own here.

use std::time::{Duration, Instant};

use super::log::{Ended, Log, Record};
use super::op::{Kind, plan};
use super::tree::Tree;
use super::view::{Listing, differences, of_model};
use crate::bench::slack;

/// A span of the monotonic clock, both ends included.
pub type Span = (u64, u64);

/// How many states before and after a cut a violation is compared with.
const NEAR: usize = 500;

/// How often each kind of operation was done, and how often the kernel refused it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Times it was done.
    pub done: u64,
    /// Times it was refused.
    pub refused: u64,
}

/// A thread: its model as it was after `applied` operations, and the log from there on.
#[derive(Debug)]
struct Thread {
    tree: Tree,
    applied: u64,
    /// Operation `applied - 1`.
    before: Option<Record>,
    /// Operations from `applied` on.
    records: Vec<Record>,
    taken: u64,
}

/// The checker of one set of writers.
#[derive(Debug)]
pub struct Checker {
    seed: u64,
    kinds: Vec<Kind>,
    log: Log,
    threads: Vec<Thread>,
    /// By kind.
    pub tally: Vec<Done>,
}

impl Thread {
    /// Applies an operation; returns its kind.
    fn apply(tree: &mut Tree, seed: u64, k: u64, kinds: &[Kind], record: &Record) -> usize {
        let (kind, op) = plan(seed, k, tree, kinds);
        op.done(tree, record.ended);
        kind
    }

    /// Until everything that began before `to` has ended.
    fn read(&mut self, n: u64, log: &Log, to: u64) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let ended = log.take(n, self.taken, &mut self.records);
            self.taken = ended;
            let under_way = log.began(n) > ended && log.start(n, ended) <= to;
            if !under_way || log.done(n) > ended {
                if !under_way {
                    return Ok(());
                }
                continue;
            }
            if began.elapsed() > Duration::from_secs(20) * slack() {
                return Err(format!("thread {n}: operation {ended} does not end"));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Checker {
    /// A checker of threads that begin with these trees.
    #[must_use]
    pub fn new(seed: u64, kinds: Vec<Kind>, log: Log, trees: Vec<Tree>) -> Checker {
        let threads = trees
            .into_iter()
            .map(|tree| Thread { tree, applied: 0, before: None, records: Vec::new(), taken: 0 })
            .collect();
        let tally = vec![Done::default(); kinds.len()];
        Checker { seed, kinds, log, threads, tally }
    }

    /// Judges a frozen tree that was cut within `window`.
    ///
    /// # Errors
    /// What is wrong, in words, so that it can be looked into.
    pub fn judge(&mut self, tree: &[Listing], window: Span) -> Result<(), String> {
        let mut possible = vec![window];
        let mut wrong = Vec::new();
        for (n, seen) in tree.iter().enumerate().take(self.threads.len()) {
            match self.thread(n, seen, window) {
                Ok(spans) => {
                    let met = meet(&possible, &spans);
                    if met.is_empty() {
                        wrong.push(format!(
                            "thread {n} shows an instant of {}, the threads before it one of {}",
                            shown(&spans, window.0),
                            shown(&possible, window.0)
                        ));
                    } else {
                        possible = met;
                    }
                }
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// The spans in which this thread's part looked like that.
    fn thread(&mut self, n: usize, seen: &Listing, (from, to): Span) -> Result<Vec<Span>, String> {
        let (seed, kinds) = (self.seed, &self.kinds);
        let thread = &mut self.threads[n];
        thread.read(n as u64, &self.log, to)?;
        // What ended before is there in any case, what began after is not: only these have to be tried.
        let low = thread.records.iter().take_while(|r| r.end < from).count();
        let high = thread.records.iter().take_while(|r| r.start <= to).count().max(low);
        let old = thread.tree.clone();
        for k in 0..low {
            let kind =
                Thread::apply(&mut thread.tree, seed, thread.applied + k as u64, kinds, &thread.records[k]);
            match thread.records[k].ended {
                Ended::Done(_) => self.tally[kind].done += 1,
                Ended::Failed(_) => self.tally[kind].refused += 1,
            }
        }
        let mut state = thread.tree.clone();
        let mut spans = Vec::new();
        for k in low..=high {
            if differences(&of_model(&state), seen, 1).is_empty() {
                let start = if k == 0 { thread.before } else { thread.records.get(k - 1).copied() };
                let end = thread.records.get(k).map_or(u64::MAX, |r| r.end);
                spans.push((start.map_or(0, |r| r.start), end));
            }
            if k < high {
                Thread::apply(&mut state, seed, thread.applied + k as u64, kinds, &thread.records[k]);
            }
        }
        let explained = spans.is_empty().then(|| explain(n, thread, old, seed, kinds, seen, low, high, from));
        if low > 0 {
            thread.before = thread.records.get(low - 1).copied();
            thread.applied += low as u64;
            thread.records.drain(..low);
        }
        explained.map_or(Ok(spans), Err)
    }
}

/// The spans that are in both lists.
fn meet(a: &[Span], b: &[Span]) -> Vec<Span> {
    a.iter()
        .flat_map(|x| b.iter().map(|y| (x.0.max(y.0), x.1.min(y.1))))
        .filter(|(from, to)| from <= to)
        .collect()
}

fn shown(spans: &[Span], zero: u64) -> String {
    let one = |t: u64| format!("{:+.1}us", (i128::from(t) - i128::from(zero)) as f64 / 1e3);
    spans.iter().map(|(a, b)| format!("{}..{}", one(*a), one(*b))).collect::<Vec<_>>().join(", ")
}

/// Why no state fits: the first differences, which state is nearest, and what was done to the first path that differs.
#[expect(clippy::too_many_arguments, reason = "all there is to know of a violation")]
fn explain(
    n: usize,
    thread: &Thread,
    old: Tree,
    seed: u64,
    kinds: &[Kind],
    seen: &Listing,
    low: usize,
    high: usize,
    from: u64,
) -> String {
    let first = differences(&of_model(&thread.tree), seen, 4);
    let path = first.first().map(|(path, _)| path.clone()).unwrap_or_default();
    let paths: Vec<&str> = first.iter().map(|(path, _)| path.as_str()).collect();
    let mut text = format!(
        "thread {n}: no state between operation {} and {} looks like this:\n",
        thread.applied + low as u64,
        thread.applied + high as u64
    );
    first.iter().for_each(|(path, what)| text += &format!("  {path}: {what}\n"));
    // All states since the last cut, and on.
    let mut state = old;
    let (mut best, mut fits, mut lines) = ((usize::MAX, 0), Vec::new(), [Vec::new(), Vec::new()]);
    for k in 0..=thread.records.len() {
        let number = thread.applied + k as u64;
        // Listing a state takes longer than reaching it: only those near the cut are.
        if k.abs_diff(high) < NEAR {
            let wrong = differences(&of_model(&state), seen, 1000);
            if wrong.len() <= best.0 {
                best = (wrong.len(), number);
            }
            if !wrong.iter().any(|(p, _)| *p == path) {
                fits.push(number);
            }
        }
        let Some(record) = thread.records.get(k) else { break };
        let (_, op) = plan(seed, number, &state, kinds);
        let about = op.what.split(' ').any(|word| paths.iter().any(|path| concerns(&state, word, path)));
        if k <= high + 1 && (about || k + 2 >= low) {
            let at = |t: u64| (i128::from(t) - i128::from(from)) as f64 / 1e3;
            let (start, end) = (at(record.start), at(record.end));
            let line = format!("  {number} [{start:+.1}us {end:+.1}us] {} = {:?}", op.what, record.ended);
            lines[usize::from(!about)].push(line);
        }
        op.done(&mut state, record.ended);
    }
    text += &format!("  nearest is the state after {} operations, with {} differences\n", best.1, best.0);
    let fits = match (fits.first(), fits.last()) {
        (Some(a), Some(b)) => format!("{} states from {a} to {b}", fits.len()),
        _ => format!("none of the {NEAR} states before it"),
    };
    text += &format!("  {path} by itself fits {fits}; operations on it, and others around the cut:\n");
    // A long window holds many of the others.
    let last = |lines: &[String], most: usize| lines[lines.len().saturating_sub(most)..].join("\n");
    text + &last(&lines[0], 40) + "\n" + &last(&lines[1], 10)
}

/// Whether a word of an operation is about a path: it, a name in it, a directory above it, or its open file.
fn concerns(state: &Tree, word: &str, path: &str) -> bool {
    let below = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('/'));
    let open = |handle: u64| state.open.get(&handle).is_some_and(|id| state.find(path) == Some(*id));
    word == path
        || below(path, word)
        || word.rsplit_once('/').is_some_and(|(parent, _)| parent == path)
        || word.parse().is_ok_and(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_meet() {
        assert_eq!(meet(&[(1, 5), (8, 9)], &[(5, 8)]), [(5, 5), (8, 8)]);
        assert!(meet(&[(1, 2)], &[(3, 4)]).is_empty());
    }
}
