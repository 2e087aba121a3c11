//! LMDB: a process a client, all with the same file mapped; written with `pwrite`, or by stores through the mapping.

use std::ffi::OsString;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use lmdb::{Environment, EnvironmentFlags, Transaction as _, WriteFlags};

use super::talk::{Talk, run};
use super::{Client, Database, Rows, Site, prefixes, row};
use crate::inside::User;

/// The name by which [`crate::inside`] knows the client.
pub const CLIENT: &str = "lmdb-client";

/// How it writes. Either way its lock file is mapped shared and writable, and the data on a descriptor that could be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lmdb {
    /// `pwrite`, the way it is used as a rule.
    Written,
    /// Stores through a writable mapping (`MDB_WRITEMAP`).
    Mapped,
}

impl Lmdb {
    fn open(self, path: &Path) -> Result<Environment> {
        let mut builder = Environment::new();
        if self == Lmdb::Mapped {
            builder.set_flags(EnvironmentFlags::WRITE_MAP);
        }
        Ok(builder.set_map_size(64 << 20).open(path)?)
    }
}

impl Database for Lmdb {
    fn mapped(&self) -> bool {
        true
    }

    fn vital(&self) -> &'static str {
        "data.mdb"
    }

    fn start(&mut self, _: &Site, _: usize) -> Result<()> {
        // The first client makes it.
        Ok(())
    }

    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>> {
        let args = [site.data().display().to_string(), format!("{self:?}"), k.to_string()];
        Ok(Box::new(Connection(Talk::start(&mut site.command(User::ROOT, CLIENT, args))?)))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        ensure!(copy.join("data.mdb").exists(), "there is no data.mdb");
        // The environment, its free list, its table of readers (stale ones removed); then every page that is in use.
        let said = run(Command::new("mdb_stat").arg("-effrr").arg(copy))?;
        ensure!(
            said.contains("Reader Table Status") || said.contains("(no active readers)"),
            "mdb_stat: {said}"
        );
        let dump = run(Command::new("mdb_dump").arg("-p").arg(copy))?;
        let rows = rows(&dump, clients)?;
        // It takes new transactions, and what they leave is whole again.
        {
            let environment = self.open(copy)?;
            for n in 0..3 {
                put(&environment, clients, n)?;
            }
        }
        run(Command::new("mdb_copy").arg("-c").arg(copy).arg(tempfile::tempdir()?.path()))?;
        prefixes(&rows)
    }
}

/// What a dump has: lines of a key and of a value in turn, between two headings.
fn rows(dump: &str, clients: usize) -> Result<Vec<Rows>> {
    let mut rows = vec![Rows::default(); clients];
    let mut lines = dump.lines().skip_while(|line| *line != "HEADER=END").skip(1);
    loop {
        let (key, value) = match lines.next().context("the dump has no end")? {
            "DATA=END" => return Ok(rows),
            key => (key.trim(), lines.next().context("a key without a value")?.trim()),
        };
        let words: Vec<&str> = key.split(' ').collect();
        match words[..] {
            ["journal", k, n] => {
                ensure!(value == n.trim_start_matches('0'), "{key} has {value}");
                row(&mut rows, k.parse()?)?.add(value.parse()?);
            }
            ["tally", k] => row(&mut rows, k.parse()?)?.tally = value.parse()?,
            ["filler", ..] => {
                let first = value.chars().next().context("an empty filler")?;
                ensure!(value.len() == FILLER && value.chars().all(|c| c == first), "{key} is torn");
            }
            _ => bail!("{key} is nobody's"),
        }
    }
}

/// Takes more than a page.
const FILLER: usize = 6000;

/// Transaction `n` of client `k`.
fn put(environment: &Environment, k: usize, n: u64) -> Result<()> {
    let table = environment.open_db(None)?;
    let mut transaction = environment.begin_rw_txn()?;
    let mut set = |key: String, value: &[u8]| transaction.put(table, &key, &value, WriteFlags::empty());
    set(format!("journal {k} {n:08}"), n.to_string().as_bytes())?;
    set(format!("tally {k}"), n.to_string().as_bytes())?;
    // Pages that are freed and used again.
    set(format!("filler {}", n % 30), &[b'a' + (n % 26) as u8; FILLER])?;
    Ok(transaction.commit()?)
}

/// The client's process, inside the container: arguments PATH MODE K; a number a line, and the answer when its transaction is done.
///
/// # Errors
/// When LMDB refuses.
pub fn serve(args: &[OsString]) -> Result<()> {
    let args: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    let [path, mode, k] = args[..] else { bail!("PATH MODE K") };
    let mode = if mode == "Mapped" { Lmdb::Mapped } else { Lmdb::Written };
    let environment = mode.open(Path::new(path))?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let n = line?.parse()?;
        put(&environment, k.parse()?, n)?;
        writeln!(out, "{n}")?;
        out.flush()?;
    }
    Ok(())
}

struct Connection(Talk);

impl Client for Connection {
    fn transact(&mut self, n: u64) -> Result<()> {
        self.0.ask(&n.to_string(), &n.to_string())
    }
}
