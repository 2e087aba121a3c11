//! SQLite, by Debian's `sqlite3`: a process a client, all on one file, with the rollback journal or the write-ahead log.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::talk::{Talk, run};
use super::{Client, Database, Recovered, Rows, Site, prefixes, row};
use crate::inside::User;

/// Debian's.
pub(super) const PROGRAM: &str = "/usr/bin/sqlite3";
const FILE: &str = "main.db";

/// How it makes transactions atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sqlite {
    /// The old pages go to a journal, whose removal is the commit.
    Rollback,
    /// New pages go to a log, found through an index that all clients map shared and writable.
    Wal,
}

fn shell(site: &Site) -> Command {
    site.command(User::ROOT, PROGRAM, ["-batch".as_ref(), site.data().join(FILE).as_os_str()])
}

impl Database for Sqlite {
    fn mapped(&self) -> bool {
        *self == Sqlite::Wal
    }

    fn vital(&self) -> &'static str {
        FILE
    }

    fn start(&mut self, site: &Site, clients: usize) -> Result<()> {
        let mode = if *self == Sqlite::Wal { "WAL" } else { "DELETE" };
        let rows: Vec<String> = (0..clients).map(|k| format!("({k}, 0)")).collect();
        let text = format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE journal(client INTEGER, n INTEGER, PRIMARY KEY(client, n)) WITHOUT ROWID; \
             CREATE TABLE tally(client INTEGER PRIMARY KEY, n INTEGER); INSERT INTO tally VALUES {}; \
             CREATE TABLE filler(id INTEGER PRIMARY KEY, body BLOB); CREATE INDEX bodies ON filler(body); \
             WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 200) INSERT INTO filler SELECT n, randomblob(1000) FROM i;",
            rows.join(",")
        );
        run(shell(site).arg(text)).map(drop)
    }

    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>> {
        let mut talk = Talk::start(&mut shell(site))?;
        // A small cache spills pages into the file in the middle of a transaction; a small log is checkpointed all the time.
        let ready =
            ".bail on\n.timeout 60000\nPRAGMA cache_size=8; PRAGMA wal_autocheckpoint=100; SELECT 'ready';";
        talk.ask(ready, "ready")?;
        Ok(Box::new(Connection { talk, k }))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        self.audit(&Site::here(copy, copy), clients)
    }
}

impl Recovered for Sqlite {
    fn audit(&self, site: &Site, clients: usize) -> Result<Vec<u64>> {
        // In this order: the first statement recovers.
        let text = "PRAGMA integrity_check; PRAGMA foreign_key_check; \
                    SELECT client, count(*), min(n), max(n), (SELECT n FROM tally t WHERE t.client = j.client) FROM journal j GROUP BY client; \
                    SELECT 'filler', count(*) FROM filler;";
        ensure!(site.seen(site.data()).join(FILE).exists(), "there is no {FILE}");
        let said = run(shell(site).args(["-bail", text]))?;
        let mut rows = vec![Rows::default(); clients];
        let mut lines = said.lines();
        ensure!(lines.next() == Some("ok"), "integrity_check: {said}");
        for line in lines {
            let fields: Vec<&str> = line.split('|').collect();
            match fields[..] {
                ["filler", count] => ensure!(count == "200", "the filler has {count} rows"),
                [client, count, least, greatest, tally] => {
                    let number = |text: &str| text.parse().with_context(|| line.to_owned());
                    *row(&mut rows, client.parse()?)? = Rows {
                        count: number(count)?,
                        least: number(least)?,
                        greatest: number(greatest)?,
                        tally: number(tally)?,
                    };
                }
                _ => anyhow::bail!("{line}"),
            }
        }
        prefixes(&rows)
    }
}

struct Connection {
    talk: Talk,
    k: usize,
}

impl Client for Connection {
    fn transact(&mut self, n: u64) -> Result<()> {
        let k = self.k;
        let text = format!(
            "BEGIN IMMEDIATE; INSERT INTO journal VALUES({k}, {n}); UPDATE filler SET body = randomblob(1000) WHERE id % 20 = {n} % 20; \
             UPDATE tally SET n = n + 1 WHERE client = {k}; COMMIT; SELECT {n};"
        );
        self.talk.ask(&text, &n.to_string())
    }
}
