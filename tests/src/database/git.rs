//! A git repository: each client commits on a branch of its own, in a work tree of its own, while git packs and prunes what has become loose.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::talk::{Talk, run};
use super::{Client, Database, Rows, Site, prefixes, row};
use crate::inside::User;

/// The repository.
#[derive(Debug)]
pub struct Git;

/// Its configuration lies with it; nobody's own is read.
const INIT: &str = "git init -q --bare repository
    cd repository
    git config user.name test
    git config user.email test@localhost
    git config gc.auto 150
    tree=$(git mktree </dev/null)
    root=$(git commit-tree -m 0 $tree)
    for k in $(seq 0 $((CLIENTS - 1))); do git worktree add -q -b client$k ../work$k $root; done";

/// A number a line, and the answer when its commit is done. Git's own packing in the background may hold a lock that a commit wants, or remove an
/// empty directory of objects that it was about to use; such a commit fails and is tried again, as a person would.
const COMMIT: &str = "commit() { git add -A && git commit -q -m $n; }
  while read n; do
    echo $n > number
    mkdir -p $((n % 7))
    seq $n $((n + 50)) > $((n % 7))/file
    commit || { sleep 0.2; commit; } || { sleep 1; commit; }
    echo $n
  done";

fn shell(site: &Site, dir: &str, text: &str) -> Command {
    let text = format!("set -e; cd {}/{dir}; {text}", site.data().display());
    let mut command = site.command(User::ROOT, "/bin/sh", ["-c", &text]);
    command.env("HOME", "/nonexistent");
    command
}

impl Database for Git {
    fn mapped(&self) -> bool {
        false
    }

    fn vital(&self) -> &'static str {
        "repository/refs/heads/client0"
    }

    fn pace(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn start(&mut self, site: &Site, clients: usize) -> Result<()> {
        run(shell(site, ".", INIT).env("CLIENTS", clients.to_string())).map(drop)
    }

    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>> {
        Ok(Box::new(Connection(Talk::start(&mut shell(site, &format!("work{k}"), COMMIT))?)))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            // The judge runs as whoever owns the copy.
            command.env("GIT_DIR", copy.join("repository")).env("HOME", "/nonexistent").args(args);
            run(&mut command)
        };
        git(&["fsck", "--full", "--strict", "--no-dangling", "--no-progress"])?;
        let mut rows = vec![Rows::default(); clients];
        for k in 0..clients {
            let row = row(&mut rows, k)?;
            let branch = format!("client{k}");
            let mut last = None;
            for subject in git(&["log", "--format=%s", &branch])?.lines() {
                let n: u64 = subject.parse()?;
                ensure!(last.is_none_or(|last| n + 1 == last), "{n} comes before {last:?} on {branch}");
                last = Some(n);
                if n > 0 {
                    row.add(n);
                }
            }
            row.tally = match row.count {
                0 => 0,
                _ => git(&["show", &format!("{branch}:number")])?.trim().parse().context("number")?,
            };
        }
        prefixes(&rows)
    }
}

struct Connection(Talk);

impl Client for Connection {
    fn transact(&mut self, n: u64) -> Result<()> {
        self.0.ask(&n.to_string(), &n.to_string())
    }
}
