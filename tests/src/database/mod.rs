//! Real databases inside a container, and what they say of a frozen tree.
//!
//! ```text
//!   client k:  begin, transaction n, acknowledged;  begin, transaction n+1, ...      journal.rs, in the test's memory
//!   the cut:   ............[from .. to]............ (`Between`)
//!   judge:     the database itself opens a copy of the frozen tree, recovers, checks itself, and lists the transactions it has;
//!              there must be one instant in the window that explains the list
//! ```
//!
//! Transaction `n` of client `k` also counts a tally up, so that a transaction that is there by half is found.

pub mod git;
pub mod journal;
pub mod lmdb;
pub mod postgres;
pub mod redis;
pub mod site;
pub mod sqlite;
pub mod talk;
pub mod together;

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::site::Site;
use crate::inside::Inside;

/// Where the data lies, below the container's root.
pub const DIRECTORY: &str = "srv/database";

/// Where the sockets lie, below the container's root.
const SOCKETS: &str = "run/database";

/// One kind of database. Its processes end when it is dropped.
pub trait Database: Debug {
    /// Whether it maps a file of its own shared and writable (or may turn one into that): then only the freezer can hold it (T4).
    fn mapped(&self) -> bool;

    /// A file among the data that the database needs to be of the same moment as the rest.
    fn vital(&self) -> &'static str;

    /// How long a client rests between two transactions.
    fn pace(&self) -> Duration {
        Duration::from_millis(2)
    }

    /// Makes the database in a site whose directories are there and empty, for so many clients, and starts what serves it.
    ///
    /// # Errors
    /// When a program is missing or fails.
    fn start(&mut self, site: &Site, clients: usize) -> Result<()>;

    /// Connects client `k`.
    ///
    /// # Errors
    /// When it is not let in.
    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>>;

    /// Opens a copy of the data by the database itself, outside the container, and lets it recover and check itself. How many transactions of each
    /// client it has; each client's are the first so many.
    ///
    /// # Errors
    /// What is wrong with it.
    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>>;
}

/// One that can be asked where it is served, whoever serves it.
pub trait Recovered: Database {
    /// What it has once it has recovered and is served, after checks of its own: how many transactions of each client; each client's are the first so
    /// many.
    ///
    /// # Errors
    /// What is wrong with it.
    fn audit(&self, site: &Site, clients: usize) -> Result<Vec<u64>>;
}

/// A connection.
pub trait Client: Send {
    /// Does transaction `n`; when it returns the database has acknowledged it.
    ///
    /// # Errors
    /// When the database refuses or is gone.
    fn transact(&mut self, n: u64) -> Result<()>;
}

/// Makes the empty directories of a database, through the overlay.
///
/// # Errors
/// When there are some already.
pub fn place(inside: &Inside) -> Result<Site> {
    for dir in [DIRECTORY, SOCKETS] {
        fs::create_dir(inside.root().join(dir)).context("the database's directory")?;
    }
    let root = Path::new("/");
    Ok(Site::inside(inside, &root.join(DIRECTORY), &root.join(SOCKETS)))
}

/// What a judge found of each client: how many rows, the least and the greatest number, and what the tally says.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Rows {
    count: u64,
    least: u64,
    greatest: u64,
    tally: u64,
}

impl Rows {
    fn add(&mut self, n: u64) {
        self.least = if self.count == 0 { n } else { self.least.min(n) };
        self.greatest = self.greatest.max(n);
        self.count += 1;
    }
}

/// How many transactions each client has; its rows have to be the numbers from 1 without a gap, and the tally as many.
fn prefixes(rows: &[Rows]) -> Result<Vec<u64>> {
    let whole = |(k, r): (usize, &Rows)| {
        let gapless = r.greatest == r.count && r.least == u64::from(r.count > 0);
        ensure!(gapless && r.tally == r.count, "client {k} has no prefix of whole transactions: {r:?}");
        Ok(r.count)
    };
    rows.iter().enumerate().map(whole).collect()
}

/// The row of a client that a database names.
fn row(rows: &mut [Rows], k: usize) -> Result<&mut Rows> {
    rows.get_mut(k).with_context(|| format!("there is no client {k}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_prefixes_pass() {
        let rows = |numbers: &[u64], tally| {
            let mut rows = Rows { tally, ..Rows::default() };
            numbers.iter().for_each(|n| rows.add(*n));
            [rows]
        };
        assert_eq!(prefixes(&rows(&[], 0)).unwrap(), [0]);
        assert_eq!(prefixes(&rows(&[2, 1, 3], 3)).unwrap(), [3]);
        for (numbers, tally) in
            [(&[2, 3][..], 2), (&[1, 3], 2), (&[1, 2], 3), (&[1, 2], 1), (&[], 1), (&[1, 1], 2)]
        {
            assert!(prefixes(&rows(numbers, tally)).is_err(), "{numbers:?} {tally}");
        }
    }
}
