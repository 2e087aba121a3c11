//! A registry in a few lines that misbehaves as it is told, for the tests.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// What it does instead of what it should.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// This status, with this header.
    Answer(u16, &'static str),
    /// It reads and says nothing for so long.
    Hang(Duration),
    /// It takes so many bytes of the body and is gone.
    DropAfter(usize),
}

/// Where it misbehaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) method: &'static str,
    /// In the path.
    pub(super) part: &'static str,
    /// So many of these requests are answered as they should be.
    pub(super) skip: u32,
    /// And so many not.
    pub(super) times: u32,
    pub(super) then: Then,
}

/// Who may push.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guard {
    Nobody,
    /// `me:secret`.
    Basic,
    /// `me:secret` for a token that is good for so many requests.
    Token(u32),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) faults: Vec<Fault>,
    pub(super) guard: Guard,
    /// By repository and digest.
    pub(super) blobs: HashMap<(String, String), Vec<u8>>,
    /// Whether it takes blobs from its other repositories.
    pub(super) mounts: bool,
    pub(super) manifests: HashMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    /// Uploads that were begun so far: each has a name of its own, also of two that are asked for at once.
    begun: u32,
    /// Method and path of every request.
    pub(super) log: Vec<String>,
    /// How often each token that was given out may still be used.
    pub(super) tokens: Vec<u32>,
}

pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

const BASIC: &str = "authorization: basic bwu6c2vjcmv0";

impl Scripted {
    pub(super) fn start(guard: Guard) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            faults: Vec::new(),
            guard,
            blobs: HashMap::new(),
            mounts: true,
            manifests: HashMap::new(),
            uploads: HashMap::new(),
            begun: 0,
            log: Vec::new(),
            tokens: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        // They end with the test's process: nobody waits for a thread that accepts.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, address, &state));
            }
        });
        Scripted { address, state }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Requests of this kind so far.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        let state = self.state();
        state.log.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
    }
}

fn serve(stream: TcpStream, address: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        // A TLS client greets with 22.
        if reader.fill_buf()?.first().is_none_or(|byte| *byte == 22) {
            return writer.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let mut words = head.split_ascii_whitespace();
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let lower = head.to_ascii_lowercase();
        let length =
            lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let fault = {
            let mut state = state.lock().unwrap();
            state.log.push(format!("{method} {path}"));
            let found =
                state.faults.iter_mut().find(|f| f.method == method && path.contains(f.part) && f.times > 0);
            found.and_then(|fault| {
                if fault.skip > 0 {
                    fault.skip -= 1;
                    return None;
                }
                fault.times -= 1;
                Some(fault.then)
            })
        };
        let mut body =
            vec![0; if let Some(Then::DropAfter(most)) = fault { most.min(length) } else { length }];
        reader.read_exact(&mut body)?;
        let (status, headers, answer) = match fault {
            Some(Then::Hang(time)) => {
                std::thread::sleep(time);
                return Ok(());
            }
            Some(Then::DropAfter(_)) => {
                handle(&mut state.lock().unwrap(), address, &method, &path, &lower, &body);
                return Ok(());
            }
            Some(Then::Answer(status, header)) => (status, header.to_owned(), Vec::new()),
            None => handle(&mut state.lock().unwrap(), address, &method, &path, &lower, &body),
        };
        let headers = if headers.is_empty() { headers } else { headers + "\r\n" };
        write!(writer, "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", answer.len())?;
        if method != "HEAD" {
            writer.write_all(&answer)?;
        }
    }
}

fn handle(
    state: &mut State,
    address: SocketAddr,
    method: &str,
    path: &str,
    head: &str,
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let plain = |status| (status, String::new(), Vec::new());
    if path.starts_with("/token") {
        if !head.contains(BASIC) {
            return plain(401);
        }
        let uses = if let Guard::Token(uses) = state.guard { uses } else { 0 };
        state.tokens.push(uses);
        return (200, String::new(), format!(r#"{{"token":"t{}"}}"#, state.tokens.len()).into_bytes());
    }
    let challenge = match state.guard {
        Guard::Nobody => None,
        Guard::Basic => (!head.contains(BASIC)).then(|| "Basic realm=\"x\"".to_owned()),
        Guard::Token(_) => {
            // Each has its own end: two that were asked for at once are both good.
            let given = (1..).zip(&mut state.tokens).find(|(n, _)| head.contains(&format!("bearer t{n}\r")));
            let good = given.is_some_and(|(_, uses)| {
                let left = *uses > 0;
                *uses = uses.saturating_sub(1);
                left
            });
            (!good).then(|| format!("Bearer realm=\"http://{address}/token\",service=\"s\""))
        }
    };
    if let Some(challenge) = challenge {
        return (401, format!("www-authenticate: {challenge}"), Vec::new());
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let query: HashMap<&str, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key, value.replace("%3A", ":").replace("%2F", "/")))
        .collect();
    let Some(path) = path.strip_prefix("/v2/").filter(|path| !path.is_empty()) else { return plain(200) };
    if let Some((repository, name)) = path.split_once("/manifests/") {
        let key = format!("{repository}:{name}");
        let digest =
            |bytes: &[u8]| format!("docker-content-digest: sha256:{}", hex::encode(Sha256::digest(bytes)));
        if method == "PUT" {
            state.manifests.insert(key, body.to_vec());
            return (201, digest(body), Vec::new());
        }
        return state.manifests.get(&key).map_or(plain(404), |bytes| (200, digest(bytes), bytes.clone()));
    }
    let Some((repository, rest)) = path.split_once("/blobs/") else { return plain(404) };
    let Some(id) = rest.strip_prefix("uploads/") else {
        let there = state.blobs.get(&(repository.to_owned(), rest.to_owned()));
        return there.map_or(plain(404), |bytes| (200, String::new(), bytes.clone()));
    };
    if id.is_empty() {
        if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from"))
            && state.mounts
            && let Some(bytes) = state.blobs.get(&(from.clone(), digest.clone())).cloned()
        {
            state.blobs.insert((repository.to_owned(), digest.clone()), bytes);
            return plain(201);
        }
        state.begun += 1;
        let id = format!("u{}", state.begun);
        state.uploads.insert(id.clone(), Vec::new());
        return (202, format!("location: /v2/{repository}/blobs/uploads/{id}"), Vec::new());
    }
    let Some(upload) = state.uploads.get_mut(id) else { return plain(404) };
    let location = format!("location: /v2/{repository}/blobs/uploads/{id}");
    let range = |upload: &Vec<u8>| format!("{location}\r\nrange: 0-{}", upload.len().saturating_sub(1));
    match method {
        "GET" => (204, range(upload), Vec::new()),
        "PATCH" => {
            let from = head
                .lines()
                .find_map(|line| line.strip_prefix("content-range: ")?.split_once('-')?.0.parse().ok());
            if from != Some(upload.len()) {
                return plain(416);
            }
            upload.extend_from_slice(body);
            (202, range(upload), Vec::new())
        }
        _ => {
            upload.extend_from_slice(body);
            let digest = format!("sha256:{}", hex::encode(Sha256::digest(&*upload)));
            let whole = state.uploads.remove(id).unwrap_or_default();
            if query.get("digest") != Some(&digest) {
                return (
                    400,
                    String::new(),
                    br#"{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}"#.to_vec(),
                );
            }
            state.blobs.insert((repository.to_owned(), digest), whole);
            plain(201)
        }
    }
}
