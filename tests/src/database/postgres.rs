//! PostgreSQL under `pgbench`, and clients of our own beside it whose transactions have names.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::talk::{Server, Talk, run};
use super::{Client, DIRECTORY, Database, Rows, prefixes, row};
use crate::inside::{Inside, User};

/// Its socket lies there, in the container.
const SOCKETS: &str = "run/postgres";
/// It refuses to be root.
const USER: &str = "postgres";

/// The server and `pgbench` in the container.
#[derive(Debug, Default)]
pub struct Postgres {
    // Dropped in this order.
    bench: Option<Server>,
    server: Option<Server>,
}

/// A program of the newest version that is installed; Debian keeps most of them out of the PATH.
fn program(name: &str) -> Result<String> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let numbers = versions.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let newest = numbers.max().context("PostgreSQL is not installed")?;
    Ok(format!("/usr/lib/postgresql/{newest}/bin/{name}"))
}

/// Settings that make much happen in a short time, and dynamic shared memory that is no file of the tree.
fn arguments(data: &Path, sockets: &Path) -> Vec<String> {
    let settings = [
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories={}", sockets.display()),
        "max_connections=20".to_owned(),
        "shared_buffers=4MB".to_owned(),
        "max_wal_size=4MB".to_owned(),
        "min_wal_size=2MB".to_owned(),
        "checkpoint_timeout=30s".to_owned(),
        "autovacuum_naptime=1s".to_owned(),
        "dynamic_shared_memory_type=sysv".to_owned(),
        "max_parallel_workers=0".to_owned(),
    ];
    let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
    arguments.extend(settings.into_iter().flat_map(|s| ["-c".to_owned(), s]));
    arguments
}

fn psql(sockets: &Path) -> Result<Command> {
    let mut command = Command::new(program("psql")?);
    command.env_clear().args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", USER, "-h"]);
    command.arg(sockets);
    Ok(command)
}

fn ready(server: &mut Server, sockets: &Path) -> Result<()> {
    let ask = |text: &str| psql(sockets).and_then(|mut c| run(c.args(["-c", text])));
    server.wait("PostgreSQL does not start", || ask("SELECT 1").is_ok())
}

impl Postgres {
    fn sockets(inside: &Inside) -> PathBuf {
        inside.root().join(SOCKETS)
    }
}

impl Database for Postgres {
    fn mapped(&self) -> bool {
        false
    }

    fn vital(&self) -> &'static str {
        "global/pg_control"
    }

    fn start(&mut self, inside: &Inside, clients: usize) -> Result<()> {
        let user = User::named(USER)?;
        let (data, sockets) = (Path::new("/").join(DIRECTORY), Path::new("/").join(SOCKETS));
        fs::create_dir(Self::sockets(inside))?;
        for dir in [DIRECTORY, SOCKETS] {
            chown(inside.root().join(dir), Some(user.uid), Some(user.gid))?;
        }
        let options = ["-A", "trust", "-U", USER, "-N", "--wal-segsize=1", "-E", "UTF8", "--locale=C", "-D"];
        run(inside.command(user, &program("initdb")?, options).arg(&data))?;
        let mut server =
            Server::start(&mut inside.command(user, &program("postgres")?, arguments(&data, &sockets)))?;
        ready(&mut server, &Self::sockets(inside))?;
        self.server = Some(server);
        run(inside
            .command(user, &program("pgbench")?, ["-q", "-i", "-s", "1", "-U", USER, "-h"])
            .arg(&sockets))?;
        let text = format!(
            "CREATE EXTENSION amcheck; CREATE TABLE journal(client int, n bigint, PRIMARY KEY(client, n)); \
             CREATE TABLE tally(client int PRIMARY KEY, n bigint); INSERT INTO tally SELECT k, 0 FROM generate_series(0, {clients} - 1) k;"
        );
        run(psql(&Self::sockets(inside))?.args(["-c", &text]))?;
        let options = ["-n", "-c", "2", "-R", "200", "-T", "100000", "-U", USER, "-h"];
        let mut bench = inside.command(user, &program("pgbench")?, options);
        self.bench = Some(Server::start(bench.arg(&sockets))?);
        Ok(())
    }

    fn client(&self, inside: &Inside, k: usize) -> Result<Box<dyn Client>> {
        Ok(Box::new(Connection { talk: Talk::start(&mut psql(&Self::sockets(inside))?)?, k }))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        let user = User::named(USER)?;
        // It names a process that runs: the one in the container. A copy elsewhere has none.
        fs::remove_file(copy.join("postmaster.pid")).context("no server ran on this tree")?;
        let place = tempfile::tempdir()?;
        let sockets = place.path();
        chown(sockets, Some(user.uid), Some(user.gid))?;
        let mut command = Command::new(program("postgres")?);
        command.args(arguments(copy, sockets)).args(["-c", "autovacuum=off"]).uid(user.uid).gid(user.gid);
        let mut judge = Judge(Server::start(command.current_dir("/"))?);
        ready(&mut judge.0, sockets)?;
        // Tables against their indexes, indexes against themselves.
        let mut amcheck = Command::new(program("pg_amcheck")?);
        amcheck.args(["-U", USER, "-d", USER, "--heapallindexed", "--parent-check", "-h"]).arg(sockets);
        let said = run(&mut amcheck)?;
        ensure!(said.trim().is_empty(), "pg_amcheck: {said}");
        let ask = |text: &str| run(psql(sockets)?.args(["-c", text]));
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
