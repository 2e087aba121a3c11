//! PostgreSQL under `pgbench`, and clients of our own beside it whose transactions have names.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::talk::{Server, Talk, run};
use super::{Client, Database, Recovered, Rows, Site, prefixes, row};
use crate::inside::User;

/// It refuses to be root.
pub(super) const USER: &str = "postgres";

/// The server and `pgbench` in the container.
#[derive(Debug, Default)]
pub struct Postgres {
    // Dropped in this order.
    bench: Option<Server>,
    server: Option<Server>,
}

/// A program; Debian keeps most of them out of the PATH.
fn program(name: &str) -> Result<String> {
    Ok(format!("/usr/lib/postgresql/{}/bin/{name}", version()?))
}

/// The newest version that is installed.
pub(super) fn version() -> Result<u32> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let numbers = versions.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbers.max().context("PostgreSQL is not installed")
}

/// What makes the database.
pub(super) fn maker(site: &Site) -> Result<Vec<String>> {
    let options = ["-A", "trust", "-U", USER, "-N", "--wal-segsize=1", "-E", "UTF8", "--locale=C", "-D"];
    let mut words = vec![program("initdb")?];
    words.extend(options.map(str::to_owned));
    words.push(site.data().display().to_string());
    Ok(words)
}

/// What serves it: with settings that make much happen in a short time, and dynamic shared memory that is no file of the tree.
pub(super) fn server(site: &Site) -> Result<Vec<String>> {
    let settings = [
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories={}", site.sockets().display()),
        "max_connections=20".to_owned(),
        "shared_buffers=4MB".to_owned(),
        "max_wal_size=4MB".to_owned(),
        "min_wal_size=2MB".to_owned(),
        "checkpoint_timeout=30s".to_owned(),
        "autovacuum_naptime=1s".to_owned(),
        "dynamic_shared_memory_type=sysv".to_owned(),
        "max_parallel_workers=0".to_owned(),
    ];
    let mut words = vec![program("postgres")?, "-D".to_owned(), site.data().display().to_string()];
    words.extend(settings.into_iter().flat_map(|s| ["-c".to_owned(), s]));
    Ok(words)
}

/// This machine's client of the server.
fn psql(site: &Site) -> Result<Command> {
    let mut command = Command::new(program("psql")?);
    command.env_clear().args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", USER, "-h"]);
    command.arg(site.seen(site.sockets()));
    Ok(command)
}

fn ask(site: &Site, text: &str) -> Result<String> {
    run(psql(site)?.args(["-c", text]))
}

/// Whether a server answers there that has recovered.
pub(super) fn is_served(site: &Site) -> bool {
    ask(site, "SELECT 1").is_ok()
}

fn serve(site: &Site, user: User, more: &[&str]) -> Result<Server> {
    let words = server(site)?;
    let mut server = Server::start(site.command(user, &words[0], &words[1..]).args(more))?;
    server.wait("PostgreSQL does not start", || is_served(site))?;
    Ok(server)
}

impl Postgres {
    /// Tables for so many clients in a database that is served, and `pgbench` at work on its own.
    ///
    /// # Errors
    /// When a program fails.
    pub(super) fn fill(&mut self, site: &Site, clients: usize) -> Result<()> {
        let (user, program) = (User::named(USER)?, program("pgbench")?);
        let options = ["-q", "-i", "-s", "1", "-U", USER, "-h"];
        run(site.command(user, &program, options).arg(site.sockets()))?;
        let text = format!(
            "CREATE EXTENSION amcheck; CREATE TABLE journal(client int, n bigint, PRIMARY KEY(client, n)); \
             CREATE TABLE tally(client int PRIMARY KEY, n bigint); INSERT INTO tally SELECT k, 0 FROM generate_series(0, {clients} - 1) k;"
        );
        ask(site, &text)?;
        let options = ["-n", "-c", "2", "-R", "200", "-T", "100000", "-U", USER, "-h"];
        self.bench = Some(Server::start(site.command(user, &program, options).arg(site.sockets()))?);
        Ok(())
    }
}

impl Database for Postgres {
    fn mapped(&self) -> bool {
        false
    }

    fn vital(&self) -> &'static str {
        "global/pg_control"
    }

    fn start(&mut self, site: &Site, clients: usize) -> Result<()> {
        let user = User::named(USER)?;
        for dir in [site.data(), site.sockets()] {
            chown(site.seen(dir), Some(user.uid), Some(user.gid))?;
        }
        let words = maker(site)?;
        run(&mut site.command(user, &words[0], &words[1..]))?;
        self.server = Some(serve(site, user, &[])?);
        self.fill(site, clients)
    }

    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>> {
        Ok(Box::new(Connection { talk: Talk::start(&mut psql(site)?)?, k }))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        let user = User::named(USER)?;
        // It names a process that runs: the one in the container. A copy elsewhere has none.
        fs::remove_file(copy.join("postmaster.pid")).context("no server ran on this tree")?;
        let place = tempfile::tempdir()?;
        chown(place.path(), Some(user.uid), Some(user.gid))?;
        let site = Site::here(copy, place.path());
        let _judge = Judge(serve(&site, user, &["-c", "autovacuum=off"])?);
        self.audit(&site, clients)
    }
}

impl Recovered for Postgres {
    fn audit(&self, site: &Site, clients: usize) -> Result<Vec<u64>> {
        // Tables against their indexes, indexes against themselves.
        let mut amcheck = Command::new(program("pg_amcheck")?);
        amcheck.args(["-U", USER, "-d", USER, "--heapallindexed", "--parent-check", "-h"]);
        let said = run(amcheck.arg(site.seen(site.sockets())))?;
        ensure!(said.trim().is_empty(), "pg_amcheck: {said}");
        let ask = |text: &str| ask(site, text);
        let sums = ask(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
             (SELECT count(*) FROM pgbench_accounts)",
        )?;
        let sums: Vec<&str> = sums.trim().split('|').collect();
        let [a, t, b, d, accounts] = sums[..] else { anyhow::bail!("{sums:?}") };
        ensure!(a == t && t == b && b == d && accounts == "100000", "pgbench's sums differ: {sums:?}");
        let mut rows = vec![Rows::default(); clients];
        for line in ask("SELECT t.client, count(j.n), coalesce(min(j.n), 0), coalesce(max(j.n), 0), t.n \
             FROM tally t LEFT JOIN journal j USING (client) GROUP BY t.client, t.n")?
        .lines()
        {
            let numbers = line.split('|').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
            let [k, count, least, greatest, tally] = numbers[..] else { anyhow::bail!("{line}") };
            *row(&mut rows, usize::try_from(k)?)? = Rows { count, least, greatest, tally };
        }
        prefixes(&rows)
    }
}

/// A server that ends in peace, so that no shared memory of its is left on the machine.
struct Judge(Server);

impl Drop for Judge {
    fn drop(&mut self) {
        // SIGQUIT is PostgreSQL's immediate shutdown: no checkpoint, but everything is given back.
        if let Some(pid) = i32::try_from(self.0.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        self.0.ends();
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
            "BEGIN; INSERT INTO journal VALUES({k}, {n}); UPDATE tally SET n = n + 1 WHERE client = {k}; COMMIT;\n\\echo {n}"
        );
        self.talk.ask(&text, &n.to_string())
    }
}
