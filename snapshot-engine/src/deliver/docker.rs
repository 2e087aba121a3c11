//! `docker-daemon:NAME:TAG`: a tar file into `POST /images/load`, made while it is sent.

use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::archive::Tar;
use super::content::Content;
use super::error::said;
use super::{DeliverError, Meter};
use crate::model::access::{Access, Delivery};

/// What docker writes of layers in a second, at the least, on a disk that is busy.
const SLOWEST: u64 = 4 << 20;

/// Loads the image.
pub(super) fn load(
    content: &Content,
    name: &str,
    access: &Access,
    meter: &Meter,
) -> Result<Delivery, DeliverError> {
    if content.is_nydus() {
        return Err(DeliverError::NydusForDocker { target: format!("docker-daemon:{name}") });
    }
    let socket = first(&access.docker);
    let daemon = format!("docker ({})", socket.display());
    let limit = access.timeout.as_duration() + Duration::from_secs(content.total() / SLOWEST);
    let (sender, receiver) = mpsc::channel(8);
    let mut packed = Ok(());
    let answer = std::thread::scope(|scope| {
        let packer = scope.spawn(|| {
            let mut tar = Tar::new(Parts { to: sender, part: Vec::new(), meter }, meter);
            tar.docker(content, name)?;
            tar.end().and_then(|mut parts| parts.flush()).map_err(DeliverError::io("pack", name))
        });
        let answer = super::run(meter, post(socket, &daemon, name, receiver, limit));
        packed = packer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answer
    });
    // What docker says of a tar file that broke off is only a consequence; but a daemon that goes away breaks it off.
    match (answer, packed) {
        (_, Err(DeliverError::Stopped)) => Err(DeliverError::Stopped),
        (_, Err(e @ DeliverError::Io { .. })) if !meter.is_stopped() && !broke(&e) => Err(e),
        (Err(e), _) => Err(e),
        (Ok(_), Err(e)) => Err(e),
        (Ok(id), Ok(())) => {
            let config = content.root()?.json["config"]["digest"].as_str().unwrap_or_default();
            Ok(Delivery {
                digest: id.unwrap_or_else(|| config.to_owned()),
                sent_bytes: meter.sent(),
                sent: u32::try_from(content.blobs.len()).unwrap_or(u32::MAX),
                ..Delivery::default()
            })
        }
    }
}

fn broke(error: &DeliverError) -> bool {
    matches!(error, DeliverError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// The first socket that is there; if none is, the first for the message.
pub(super) fn first(sockets: &[std::path::PathBuf]) -> &Path {
    let there = sockets.iter().find(|socket| socket.exists()).or(sockets.first());
    there.map_or(Path::new("/run/docker.sock"), |socket| socket)
}

/// Sends the file. The image's id then, if the daemon says it.
async fn post(
    socket: &Path,
    daemon: &str,
    name: &str,
    parts: mpsc::Receiver<Bytes>,
    limit: Duration,
) -> Result<Option<String>, DeliverError> {
    let failed = |why: String| DeliverError::Daemon { daemon: daemon.to_owned(), why };
    let client = super::registry::client(|builder| Ok(builder.unix_socket(socket.to_owned()).no_proxy()))?;
    let body = reqwest::Body::wrap(Stream { parts });
    let request = client.post("http://localhost/images/load?quiet=1");
    let request = request.header("content-type", "application/x-tar").body(body);
    let whole = async {
        let answer = request.send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.text().await?))
    };
    let answer = tokio::time::timeout(limit, whole).await;
    let answer = answer.map_err(|_| DeliverError::Hung { registry: daemon.to_owned(), after: limit })?;
    let (status, text) = answer.map_err(|e| failed(super::registry::chain(&e)))?;
    // It says 200 before it begins, and what goes wrong then in one of the lines.
    let complaint = text.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["error"].as_str().or(line["message"].as_str()).map(str::to_owned)
    });
    match complaint {
        Some(why) => Err(failed(said(&why))),
        None if !status.is_success() => Err(failed(format!("{status}: {}", said(&text)))),
        None => Ok(id(&client, name).await),
    }
}

/// What docker calls the image. By itself it keeps our config, whose digest is the id; in the containerd image store it writes a manifest of its own, and
/// the id is the digest of that.
async fn id(client: &reqwest::Client, name: &str) -> Option<String> {
    let asked = async {
        let answer = client.get(format!("http://localhost/images/{name}/json")).send().await?;
        answer.error_for_status()?.text().await
    };
    let text = tokio::time::timeout(Duration::from_secs(10), asked).await.ok()?.ok()?;
    let told: Value = serde_json::from_str(&text).ok()?;
    told["Id"].as_str().map(str::to_owned)
}

/// A tar file, cut into parts for the one who sends it.
struct Parts<'a> {
    to: mpsc::Sender<Bytes>,
    part: Vec<u8>,
    meter: &'a Meter,
}

const PART: usize = 256 << 10;

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        self.meter.count_sent(part.len() as u64);
        let gone = |_| io::ErrorKind::BrokenPipe.into();
        if part.is_empty() { Ok(()) } else { self.to.blocking_send(part.into()).map_err(gone) }
    }
}

/// The same as a body.
struct Stream {
    parts: mpsc::Receiver<Bytes>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.parts.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}
