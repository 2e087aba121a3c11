//! SQLite, Redis and PostgreSQL in one container of a real runtime, which serves them by its own command.
//!
//! ```text
//!   image       the host's programs, with the libraries they are linked to, beside busybox
//!   command     makes what is not there yet, and serves: PostgreSQL as the container's first process, Redis beside it
//!   load        clients of all three; SQLite's are processes inside
//!   the image of a snapshot, run by the same command: each database recovers what it finds, and is asked
//! ```
//!
//! All clients together have one history: one instant must explain what all three databases have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::journal::Load;
use super::postgres::{self, Postgres};
use super::redis::{self, Redis};
use super::site::Site;
use super::sqlite::{self, Sqlite};
use super::talk::run;
use super::{Client, Recovered};
use crate::inside::{Inside, User};

/// Where the directories of all three lie, in the container.
const PLACE: &str = "/srv/databases";
/// The sockets of both servers.
const SOCKETS: &str = "/srv/sockets";
/// What the container's command says.
const LOG: &str = "/srv/sockets/log";
const NAMES: [&str; 3] = ["sqlite", "redis", "postgres"];
/// Of each database.
pub const CLIENTS: usize = 2;
/// How long a client rests between two transactions: the container is not alone on the machine.
const PACE: Duration = Duration::from_millis(4);

/// Directories of the host below PostgreSQL's own, as far as a server needs them.
fn directories() -> Result<[PathBuf; 3]> {
    let version = postgres::version()?;
    let [lib, share] = ["lib", "share"].map(|dir| PathBuf::from(format!("/usr/{dir}/postgresql/{version}")));
    Ok([lib.join("bin"), lib.join("lib"), share])
}

/// The user of the container's processes, by its name there and on this machine: PostgreSQL refuses to be root, and the others need not be.
pub const USER: &str = postgres::USER;

/// Files that the databases are made of, by their names on this machine, which they keep.
fn files() -> Result<BTreeSet<PathBuf>> {
    let mut programs = vec![PathBuf::from(sqlite::PROGRAM)];
    programs.extend(redis::PROGRAMS.map(PathBuf::from));
    let [bin, lib, share] = directories()?;
    programs.extend(["initdb", "postgres", "pgbench"].map(|name| bin.join(name)));
    // In the order of Debian's package, but for the compiler, which is another 100 MiB.
    let modules = ["plpgsql.so", "dict_snowball.so", "amcheck.so"];
    programs.extend(modules.map(|name| lib.join(name)));
    let mut files = BTreeSet::new();
    for program in programs {
        ensure!(program.is_file(), "{} is missing: cargo xtask setup --tests", program.display());
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader (ldd(1)).
        let said = run(Command::new("ldd").arg(&program))?;
        files.extend(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.insert(program);
    }
    let mut dirs = vec![share];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { _ = files.insert(path) }
        }
    }
    Ok(files)
}

/// Adds the databases' programs to the root of an image, and the empty directories of their data.
///
/// # Errors
/// When one is not installed.
pub fn add_to(root: &Path) -> Result<()> {
    let within = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for file in files()? {
        let to = within(&file);
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        // What a link leads to: the tree needs no other layout than the names.
        fs::copy(&file, &to).with_context(|| file.display().to_string())?;
    }
    let user = User::named(USER)?;
    let mut own: Vec<PathBuf> = NAMES.iter().map(|name| Path::new(PLACE).join(name)).collect();
    own.push(SOCKETS.into());
    for dir in own {
        fs::create_dir_all(within(&dir))?;
        chown(within(&dir), Some(user.uid), Some(user.gid))?;
    }
    fs::set_permissions(within(Path::new("/tmp")), fs::Permissions::from_mode(0o1777))?;
    // `initdb` wants its user to have a name.
    let passwd = within(Path::new("/etc/passwd"));
    let line = format!("{USER}:x:{}:{}::/:/bin/sh\n", user.uid, user.gid);
    Ok(fs::write(&passwd, fs::read_to_string(&passwd)? + &line)?)
}

fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    words.join(" ")
}

/// Sites by the names of their databases, in the container of this way in or as its own command sees them.
fn site(inside: Option<&Inside>, name: &str) -> Site {
    let (data, sockets) = (Path::new(PLACE).join(name), Path::new(SOCKETS));
    inside.map_or_else(|| Site::here(&data, sockets), |inside| Site::inside(inside, &data, sockets))
}

/// The command of the container, a script.
///
/// # Errors
/// When PostgreSQL is not installed.
pub fn script() -> Result<String> {
    let postgres = site(None, "postgres");
    Ok(format!(
        "set -e\nexport LC_ALL=C\nexec >>{LOG} 2>&1\n{} &\n[ -e {}/PG_VERSION ] || {}\nexec {}\n",
        quoted(&redis::server(&site(None, "redis"), redis::GROWTH)),
        postgres.data().display(),
        quoted(&postgres::maker(&postgres)?),
        quoted(&postgres::server(&postgres)?),
    ))
}

/// The databases in a container that runs.
#[derive(Debug)]
pub struct Together {
    inside: Inside,
    sqlite: Sqlite,
    redis: Redis,
    postgres: Postgres,
}

impl Together {
    /// Waits until the container's command serves them: makes them, or recovers what is there.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn new(inside: Inside) -> Result<Together> {
        let served = |name, ask: fn(&Site) -> bool| {
            let (site, began) = (site(Some(&inside), name), std::time::Instant::now());
            while !ask(&site) {
                let there = inside.root().join("bin").exists();
                if !there || began.elapsed() > Duration::from_secs(60) {
                    let said = fs::read_to_string(site.seen(Path::new(LOG))).unwrap_or_default();
                    bail!("{name} does not come up (container there: {there}): {said}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        };
        served("redis", redis::is_served)?;
        served("postgres", postgres::is_served)?;
        Ok(Together { inside, sqlite: Sqlite::Wal, redis: Redis::default(), postgres: Postgres::default() })
    }

    fn all(&self) -> [(Site, &dyn Recovered); 3] {
        let all: [&dyn Recovered; 3] = [&self.sqlite, &self.redis, &self.postgres];
        let mut names = NAMES.iter();
        all.map(|database| (site(Some(&self.inside), names.next().unwrap_or(&"")), database))
    }

    /// Makes their tables, and sets all clients to work.
    ///
    /// # Errors
    /// When a program fails.
    pub fn load(&mut self) -> Result<Load> {
        use super::Database as _;
        let [one, _, three] = NAMES.map(|name| site(Some(&self.inside), name));
        self.sqlite.start(&one, CLIENTS)?;
        self.postgres.fill(&three, CLIENTS)?;
        let mut clients: Vec<Box<dyn Client>> = Vec::new();
        for (site, database) in self.all() {
            for k in 0..CLIENTS {
                clients.push(database.client(&site, k)?);
            }
        }
        Load::start(clients, PACE)
    }

    /// How many transactions of each client they have, in the order of [`Together::load`]'s history, after each has checked itself.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn audit(&self) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for ((site, database), name) in self.all().into_iter().zip(NAMES) {
            all.extend(database.audit(&site, CLIENTS).context(name)?);
        }
        Ok(all)
    }
}
