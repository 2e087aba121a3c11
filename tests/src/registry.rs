//! A real registry on the loopback, and ways to it: a wire that can be slow, be watched and be cut, and one that misbehaves by the request.

mod faulty;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use faulty::{Fault, Faulty, Then};

/// Who may use it by which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Anybody, plain HTTP.
    Open,
    /// [`USER`] with [`PASSWORD`], TLS with a certificate by an authority of its own.
    Guarded,
    /// Whoever shows a certificate by that authority, TLS with one by the same.
    Mutual,
}

/// The user of a guarded registry.
pub const USER: &str = "me";
/// And the password.
pub const PASSWORD: &str = "hush-4711";
/// The same as the registry keeps it (bcrypt).
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuuytUdDONscKfgoFg/VA/Ex24XapSEkgm";

/// A registry, which ends with this value.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts one with nothing in it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(security: Security) -> Result<Registry> {
        Registry::start_in(security, &std::env::temp_dir())
    }

    /// As [`start`](Registry::start), with its content below `place`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_in(security: Security, place: &Path) -> Result<Registry> {
        let dir = tempfile::Builder::new().prefix("snapshot-registry-").tempdir_in(place)?;
        // Free a moment ago; nobody else on this machine takes ports at random.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/data}}}}\n"
        );
        let mut http = format!("addr: \"127.0.0.1:{port}\", secret: same-after-a-restart");
        if security != Security::Open {
            certificates(dir.path())?;
            let both = if security == Security::Mutual {
                format!(", clientcas: [{at}/ca.crt]")
            } else {
                String::new()
            };
            http += &format!(", tls: {{certificate: {at}/server.pem, key: {at}/server.key{both}}}");
        }
        if security == Security::Guarded {
            fs::write(dir.path().join("htpasswd"), format!("{USER}:{HASH}\n"))?;
            config += &format!("auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n");
        }
        fs::write(dir.path().join("config.yml"), format!("{config}http: {{{http}}}\n"))?;
        let mut registry = Registry { child: None, dir, port };
        registry.resume()?;
        Ok(registry)
    }

    /// Starts it again, with what it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&mut self) -> Result<()> {
        let log = fs::File::create(self.dir.path().join("log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.dir.path().join("config.yml"));
        command.env_clear().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("docker-registry is needed: `cargo xtask setup --tests`")?);
        let began = Instant::now();
        while TcpStream::connect(self.local()).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(20), "the registry does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it; nobody listens then.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it listens.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.local().to_string()
    }

    /// The authority that has signed its certificate, unless it is open.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A client's certificate by that authority, and its key.
    #[must_use]
    pub fn client(&self) -> [PathBuf; 2] {
        ["client.pem", "client.key"].map(|name| self.dir.path().join(name))
    }

    /// Where it keeps its images; made when the first one arrives.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it complained about.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Copies an image out of it into a layout, by skopeo.
    ///
    /// # Errors
    /// With what skopeo says.
    pub fn pull(&self, name: &str, to: &str) -> Result<()> {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet"]);
        if self.authority().exists() {
            // It takes every `.crt` in the directory for an authority.
            let certificates = self.dir.path().join("trusted");
            fs::create_dir_all(&certificates)?;
            fs::copy(self.authority(), certificates.join("ca.crt"))?;
            // And these two for the one to show, where that is asked for.
            let [certificate, key] = self.client();
            fs::copy(certificate, certificates.join("client.cert"))?;
            fs::copy(key, certificates.join("client.key"))?;
            command
                .arg("--src-cert-dir")
                .arg(certificates)
                .args(["--src-creds", &format!("{USER}:{PASSWORD}")]);
        } else {
            command.arg("--src-tls-verify=false");
        }
        command.arg(format!("docker://{}/{name}", self.host())).arg(to);
        skopeo(&mut command)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs skopeo.
///
/// # Errors
/// With what it says.
pub fn skopeo(command: &mut Command) -> Result<()> {
    let output = command.output().context("skopeo is needed: `cargo xtask setup --tests`")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An authority, and by it a certificate for 127.0.0.1 and one for a client.
fn certificates(dir: &Path) -> Result<()> {
    let openssl = |line: &str| -> Result<()> {
        let mut command = Command::new("openssl");
        let output = command.args(line.split(' ')).current_dir(dir).output().context("openssl is needed")?;
        ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 -keyout ca.key -out ca.crt -subj /CN=authority -days 2 {key}"))?;
    for (name, usage) in
        [("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")]
    {
        openssl(&format!("req -keyout {name}.key -out {name}.csr -subj /CN={name} {key}"))?;
        fs::write(dir.join("usage"), format!("{usage}\n"))?;
        let by = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile usage";
        openssl(&format!("x509 -req -in {name}.csr -out {name}.pem {by}"))?;
    }
    Ok(())
}

/// As in the files and headers that hold credentials.
#[must_use]
pub fn base64(text: &str) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = String::new();
    for group in text.as_bytes().chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for n in 0..4 {
            let digit = alphabet[(bits >> (18 - 6 * n) & 63) as usize];
            coded.push(if n <= group.len() { digit.into() } else { '=' });
        }
    }
    coded
}

/// A wire to a registry: counts what goes to it, and lets no more than so much through in a second.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    passed: AtomicU64,
    /// Bytes a second; 0 for no limit.
    rate: AtomicU64,
}

impl Wire {
    /// A wire to there.
    ///
    /// # Errors
    /// When nothing can be listened at.
    pub fn to(there: SocketAddr, rate: u64) -> Result<Wire> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { passed: AtomicU64::new(0), rate: AtomicU64::new(rate) });
        let counters = Arc::clone(&shared);
        // It listens until the test's process ends.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(there) else { continue };
                let (Ok(back), Ok(answers)) = (client.try_clone(), server.try_clone()) else { continue };
                let counters = Arc::clone(&counters);
                std::thread::spawn(move || pass(client, server, Some(&counters)));
                std::thread::spawn(move || pass(answers, back, None));
            }
        });
        Ok(Wire { address, shared })
    }

    /// Where to connect to.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Bytes that have gone to the registry.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Another rate, 0 for no limit.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counters: Option<&Shared>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
        if let Some(shared) = counters {
            shared.passed.fetch_add(n as u64, Ordering::Relaxed);
            let rate = shared.rate.load(Ordering::Relaxed);
            if let Some(micros) = (n as u64 * 1_000_000).checked_div(rate) {
                std::thread::sleep(Duration::from_micros(micros));
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
