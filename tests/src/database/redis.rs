//! Redis with its append-only file, synced before each answer and rewritten all the time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::talk::{Server, run};
use super::{Client, Database, Recovered, Rows, Site, prefixes, row};
use crate::inside::User;

/// Debian's.
pub(super) const PROGRAMS: [&str; 2] = ["/usr/bin/redis-server", "/usr/bin/redis-check-aof"];
const SOCKET: &str = "redis.sock";
/// The list of the files that together are the append-only file.
const MANIFEST: &str = "appendonlydir/appendonly.aof.manifest";

/// Percent by which the file grows until it is rewritten, so that it is rewritten all the time.
pub(super) const GROWTH: u32 = 100;

/// The server in the container.
#[derive(Debug, Default)]
pub struct Redis {
    server: Option<Server>,
}

/// The server's words; `growth`: percent by which the file grows until it is rewritten; 0 for never.
pub(super) fn server(site: &Site, growth: u32) -> Vec<String> {
    let text = format!(
        "{} --port 0 --daemonize no --save  --appendonly yes --appendfsync always --aof-load-truncated no \
         --auto-aof-rewrite-percentage {growth} --auto-aof-rewrite-min-size 256kb --dir {} --unixsocket {}",
        PROGRAMS[0],
        site.data().display(),
        socket(site).display()
    );
    // Between two blanks is an empty argument: no snapshots of its own.
    text.split(' ').map(str::to_owned).collect()
}

fn socket(site: &Site) -> PathBuf {
    site.sockets().join(SOCKET)
}

/// Whether a server answers there that has loaded its data.
pub(super) fn is_served(site: &Site) -> bool {
    let connection = Connection::new(&site.seen(&socket(site)), 0);
    connection.and_then(|mut c| c.call(&["PING"])).is_ok()
}

fn serve(site: &Site, growth: u32) -> Result<Server> {
    let words = server(site, growth);
    let mut server = Server::start(&mut site.command(User::ROOT, &words[0], &words[1..]))?;
    server.wait("redis does not load it", || is_served(site))?;
    Ok(server)
}

/// Redis' own judge of the files finds nothing wrong, also nothing that is cut off at the end.
fn checked(site: &Site) -> Result<()> {
    let said = run(&mut site.command(User::ROOT, PROGRAMS[1], [site.data().join(MANIFEST)]))?;
    ensure!(said.contains("All AOF files and manifest are valid"), "redis-check-aof: {said}");
    Ok(())
}

impl Database for Redis {
    fn mapped(&self) -> bool {
        false
    }

    fn vital(&self) -> &'static str {
        MANIFEST
    }

    fn start(&mut self, site: &Site, _: usize) -> Result<()> {
        self.server = Some(serve(site, GROWTH)?);
        Ok(())
    }

    fn client(&self, site: &Site, k: usize) -> Result<Box<dyn Client>> {
        Ok(Box::new(Connection::new(&site.seen(&socket(site)), k)?))
    }

    fn judge(&self, copy: &Path, clients: usize) -> Result<Vec<u64>> {
        // A socket's path is short, and a judged directory's may not be.
        let place = tempfile::tempdir()?;
        let site = Site::here(copy, place.path());
        checked(&site)?;
        // A rewrite is a process of its own, which would outlive the server that is killed.
        let _server = serve(&site, 0)?;
        self.audit(&site, clients)
    }
}

impl Recovered for Redis {
    fn audit(&self, site: &Site, clients: usize) -> Result<Vec<u64>> {
        checked(site)?;
        let mut connection = Connection::new(&site.seen(&socket(site)), 0)?;
        let mut rows = vec![Rows::default(); clients];
        let number = |answer: Vec<String>| -> Result<u64> {
            answer.first().map_or(Ok(0), |n| Ok(if n.is_empty() { 0 } else { n.parse()? }))
        };
        let mut sum = 0;
        for k in 0..clients {
            let row = row(&mut rows, k)?;
            for n in connection.call(&["LRANGE", &format!("journal:{k}"), "0", "-1"])? {
                row.add(n.parse()?);
            }
            row.tally = number(connection.call(&["GET", &format!("tally:{k}")])?)?;
            sum += row.tally;
        }
        let total = number(connection.call(&["GET", "total"])?)?;
        ensure!(total == sum, "the total is {total}, and the tallies make {sum}");
        prefixes(&rows)
    }
}

/// A client of the protocol (RESP2): arrays of strings there, any value back.
struct Connection {
    stream: BufReader<UnixStream>,
    k: usize,
}

impl Connection {
    fn new(socket: &PathBuf, k: usize) -> Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Connection { stream: BufReader::new(stream), k })
    }

    fn send(&mut self, words: &[&str]) -> Result<()> {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    /// The strings of an answer, one after the other; nothing is an empty one.
    fn answer(&mut self) -> Result<Vec<String>> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).context("redis is gone")?;
        Ok(match kind {
            "+" | ":" => vec![rest.to_owned()],
            "$" if rest == "-1" => vec![String::new()],
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>()? + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                vec![String::from_utf8(bytes)?]
            }
            "*" => {
                let mut all = Vec::new();
                for _ in 0..rest.parse::<u64>()? {
                    all.extend(self.answer()?);
                }
                all
            }
            _ => bail!("redis says {line}"),
        })
    }

    fn call(&mut self, words: &[&str]) -> Result<Vec<String>> {
        self.send(words)?;
        self.answer()
    }
}

impl Client for Connection {
    fn transact(&mut self, n: u64) -> Result<()> {
        let (k, n, body) = (self.k, n.to_string(), n.to_string().repeat(400));
        let calls: [&[&str]; 6] = [
            &["MULTI"],
            &["RPUSH", &format!("journal:{k}"), &n],
            &["INCR", &format!("tally:{k}")],
            &["INCR", "total"],
            &["SET", &format!("filler:{k}"), &body],
            &["EXEC"],
        ];
        for words in calls {
            self.send(words)?;
        }
        for _ in 0..calls.len() {
            self.answer()?;
        }
        Ok(())
    }
}
