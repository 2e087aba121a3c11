//! What the clients did and when, and whether one instant explains what a tree has of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use snapshot_engine::freeze::reader::now;
use snapshot_engine::model::nanos::Nanos;

use super::Client;

/// One transaction, by CLOCK_MONOTONIC. Its number is its place, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Before the client asked for it.
    pub begun: u64,
    /// After the client was told that it is done; the end of time if that has not happened yet.
    pub acknowledged: u64,
}

/// The transactions of each client.
pub type History = Vec<Vec<Transaction>>;

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    journals: Vec<Arc<Mutex<Vec<Transaction>>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// A client that panics has lost nothing of what was written before.
fn open(journal: &Mutex<Vec<Transaction>>) -> MutexGuard<'_, Vec<Transaction>> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// One thread a client, which does one transaction after the other, and returns once each has done two.
    ///
    /// # Errors
    /// When one fails.
    pub fn start(clients: Vec<Box<dyn Client>>, pace: Duration) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut journals, mut threads) = (Vec::new(), Vec::new());
        for client in clients {
            let journal = Arc::default();
            journals.push(Arc::clone(&journal));
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || work(client, pace, &journal, &stop)));
        }
        let mut load = Load { stop, journals, threads };
        let began = Instant::now();
        while load.journals.iter().any(|j| open(j).len() < 3) {
            load.check()?;
            if began.elapsed() > Duration::from_secs(60) {
                bail!("a client does not get on");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(load)
    }

    /// What was done so far.
    #[must_use]
    pub fn history(&self) -> History {
        self.journals.iter().map(|j| open(j).clone()).collect()
    }

    /// Every client is still at work.
    ///
    /// # Errors
    /// Why one is not.
    pub fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(at) => joined(self.threads.swap_remove(at)).and_then(|()| bail!("client {at} has ended")),
        }
    }

    /// Lets each client end its transaction.
    ///
    /// # Errors
    /// When one has failed, or does not end.
    pub fn stop(self) -> Result<History> {
        self.stop.store(true, SeqCst);
        let began = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if began.elapsed() > Duration::from_secs(60) {
                bail!("a client hangs in a transaction");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let history = self.history();
        self.threads.into_iter().try_for_each(joined)?;
        Ok(history)
    }
}

fn joined(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().ok().context("a client panicked")?
}

fn work(
    mut client: Box<dyn Client>,
    pace: Duration,
    journal: &Mutex<Vec<Transaction>>,
    stop: &AtomicBool,
) -> Result<()> {
    for n in 1.. {
        if stop.load(SeqCst) {
            break;
        }
        // In the journal before it is asked for: whatever a tree holds has a line here.
        open(journal).push(Transaction { begun: now(), acknowledged: u64::MAX });
        client.transact(n).with_context(|| format!("transaction {n}"))?;
        let acknowledged = now();
        if let Some(last) = open(journal).last_mut() {
            last.acknowledged = acknowledged;
        }
        std::thread::sleep(pace);
    }
    Ok(())
}

/// Why no instant explains what a tree has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inexplicable(String);

impl fmt::Display for Inexplicable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Inexplicable {}

/// Whether there is an instant in the window by which every transaction that the tree has had begun, and none that it lacks was acknowledged. That
/// is the same as: what was acknowledged before the window is there, what was begun after it is not, and no transaction is there without one that
/// was acknowledged before it began.
///
/// # Errors
/// The pair of facts that contradict each other.
pub fn explain(history: &History, present: &[u64], from: Nanos, to: Nanos) -> Result<(), Inexplicable> {
    let mut earliest = (from.0, "nothing was under way any more".to_owned());
    let mut latest = (to.0, "the last look found nothing begun".to_owned());
    for (k, (transactions, has)) in history.iter().zip(present).enumerate() {
        let has = usize::try_from(*has).unwrap_or(usize::MAX);
        if has > transactions.len() {
            return Err(Inexplicable(format!(
                "client {k} has {has} transactions and made {}",
                transactions.len()
            )));
        }
        // A client's transactions follow each other: the last that is there and the first that is not say it all.
        if let Some(last) = has.checked_sub(1).and_then(|at| transactions.get(at))
            && last.begun > earliest.0
        {
            earliest = (last.begun, format!("transaction {has} of client {k}, which is there, began"));
        }
        if let Some(first) = transactions.get(has)
            && first.acknowledged < latest.0
        {
            let what = format!("transaction {} of client {k}, which is not there, was acknowledged", has + 1);
            latest = (first.acknowledged, what);
        }
    }
    if earliest.0 > latest.0 {
        let late = Nanos(earliest.0 - latest.0);
        return Err(Inexplicable(format!("{} {late} after {}", earliest.1, latest.1)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instant_explains_or_nothing_does() {
        let t = |begun, acknowledged| Transaction { begun, acknowledged };
        let history = vec![vec![t(10, 20), t(30, 40), t(50, u64::MAX)], vec![t(15, 35), t(38, 60)]];
        let fits = |present: &[u64], from, to| explain(&history, present, Nanos(from), Nanos(to));
        assert_eq!(fits(&[1, 1], 36, 37), Ok(()));
        assert_eq!(fits(&[2, 1], 36, 37), Ok(()), "it was under way");
        assert_eq!(fits(&[3, 2], 100, 110), Ok(()), "not acknowledged, and there");
        assert_eq!(fits(&[2, 2], 100, 110), Ok(()), "not acknowledged, and not there");
        assert_eq!(fits(&[2, 0], 25, 39), Ok(()), "2 had begun when the other was not acknowledged yet");
        assert!(fits(&[0, 1], 36, 37).is_err(), "acknowledged before the window, and lost");
        assert!(fits(&[2, 2], 36, 37).is_err(), "begun after the window, and there");
        assert!(fits(&[9, 1], 36, 37).is_err(), "never made");
        // Within one wide window too: 2 of client 1 began (38) after 1 of client 0 was acknowledged (20).
        assert!(fits(&[0, 2], 0, 100).is_err(), "b without a");
    }
}
