//! What lies between a client and its registry and may misbehave: a proxy that answers some requests itself, breaks some off, and wants tokens that expire.
//!
//! ```text
//!   engine ── request ──► a fault that fits? ── yes ──► its answer, or the connection breaks within the body
//!                             │ no
//!                         a token is wanted, and this one is used up? ── yes ──► 401, and where to get another
//!                             │ no
//!                             '──► the registry, one connection a request
//! ```

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::{PASSWORD, USER};

/// What comes of a request instead of what should.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// This status, with this header (`name: value`, or nothing).
    Answer(u16, &'static str),
    /// The registry gets so many bytes of the body, and then the connection breaks on both sides.
    Break(u64),
    /// The registry gets it without what stands behind the question mark: so a mount becomes an upload.
    WithoutQuery,
}

/// Which requests fare so.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Their method.
    pub method: &'static str,
    /// In their path.
    pub part: &'static str,
    /// So many of them are spared first.
    pub skip: u32,
    /// So many fare so.
    pub times: u32,
    /// What comes of them.
    pub then: Then,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    /// How many requests a token is good for; `None`: nobody is asked for one.
    uses: Option<u32>,
    left: u32,
    tokens: u32,
}

/// See the head of this file. Listens until the test's process ends.
#[derive(Debug)]
pub struct Faulty {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Faulty {
    /// A way to the registry at this address, with nothing wrong with it.
    ///
    /// # Errors
    /// When nothing can be listened at.
    pub fn to(registry: SocketAddr) -> Result<Faulty> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let way = Way { registry, address, state: Arc::clone(&shared) };
                // One that breaks is what it is for.
                std::thread::spawn(move || way.pass(client));
            }
        });
        Ok(Faulty { address, state })
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What goes wrong from now on, instead of what did.
    pub fn set(&self, faults: &[Fault]) {
        lock(&self.state).faults = faults.to_vec();
    }

    /// From now on [`USER`] with [`PASSWORD`] gets a token that is good for so many requests, and nobody gets through without.
    pub fn guard(&self, uses: u32) {
        lock(&self.state).uses = Some(uses);
    }

    /// Tokens given out.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        lock(&self.state).tokens
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Way {
    registry: SocketAddr,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Way {
    /// One request, and the end of the connection.
    fn pass(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        // A TLS client greets with 22.
        if reader.fill_buf()?.first().is_none_or(|byte| *byte == 22) {
            return client.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = reader.take(length.unwrap_or(0));
        let then = self.instead(&head);
        if let Some(Then::Answer(status, header)) = then {
            // All of it is read: who closes with something unread takes his answer back.
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, status, header, "");
        }
        if let Some((status, header, text)) = self.challenge(&head) {
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, status, &header, &text);
        }
        let mut registry = TcpStream::connect(self.registry)?;
        // The client's own wish for the connection, and then ours.
        let kept =
            head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let mut kept = kept.map(|line| format!("{line}\r\n")).collect::<String>();
        if matches!(then, Some(Then::WithoutQuery)) {
            let path = word(&head, 1);
            let bare = path.split('?').next().unwrap_or(path);
            kept = kept.replacen(path, bare, 1);
        }
        write!(registry, "{kept}connection: close\r\n\r\n")?;
        if let Some(Then::Break(most)) = then {
            io::copy(&mut body.take(most), &mut registry)?;
            return Ok(());
        }
        io::copy(&mut body, &mut registry)?;
        io::copy(&mut registry, &mut client)?;
        Ok(())
    }

    fn instead(&self, head: &str) -> Option<Then> {
        let (method, path) = (word(head, 0), word(head, 1));
        let mut state = lock(&self.state);
        let fits =
            |fault: &&mut Fault| fault.method == method && path.contains(fault.part) && fault.times > 0;
        let fault = state.faults.iter_mut().find(fits)?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        Some(fault.then)
    }

    /// Status, header and body for who has no token, or asks for one.
    fn challenge(&self, head: &str) -> Option<(u16, String, String)> {
        let mut state = lock(&self.state);
        let uses = state.uses?;
        let authorization = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then_some(value)
        });
        if word(head, 1).starts_with("/token") {
            let expected = format!("Basic {}", super::base64(&format!("{USER}:{PASSWORD}")));
            if authorization != Some(&expected) {
                return Some((401, String::new(), String::new()));
            }
            state.tokens += 1;
            state.left = uses;
            return Some((200, String::new(), format!(r#"{{"token":"t{}"}}"#, state.tokens)));
        }
        if state.left > 0 && authorization == Some(&format!("Bearer t{}", state.tokens)) {
            state.left -= 1;
            return None;
        }
        let header =
            format!("www-authenticate: Bearer realm=\"http://{}/token\",service=\"s\"", self.address);
        Some((401, header, String::new()))
    }
}

fn word(head: &str, at: usize) -> &str {
    head.split_ascii_whitespace().nth(at).unwrap_or_default()
}

fn answer(to: &mut TcpStream, status: u16, header: &str, body: &str) -> io::Result<()> {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let length = body.len();
    write!(to, "HTTP/1.1 {status} X\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}
