//! How daemons are asked: over their sockets, by HTTP or gRPC, with one deadline for the whole conversation.
//!
//! ```text
//!   converse(socket) ─► a tokio runtime of this thread alone ─► connect ─► SO_PEERCRED: whose eyes? ─► Http / Grpc
//!            '──────── all of it within the deadline, after which nothing of it is left ────────'
//! ```
//!
//! The only asynchronous code of the engine: both protocols' crates are. The runtime lives on the asking thread and ends with the conversation, so the
//! window's process has no thread that nobody accounts for.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Candidate, Resolver, Wanted};
use crate::container::error::Error;
use crate::container::places::Socket;
use crate::container::vantage::Vantage;
use crate::model::pid::Pid;
use crate::model::reference::Runtime;

/// How long a runtime may take to answer all that it is asked.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// The most of one answer that is read: tens of thousands of containers.
const LARGEST: usize = 64 << 20;

/// A runtime that is asked over its socket.
pub(super) trait Daemon: Send + Sync {
    /// Whose.
    fn runtime(&self) -> Runtime;

    /// Where it listens.
    fn socket(&self) -> &Socket;

    /// The containers that are wanted of it.
    async fn ask(&self, peer: Peer, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Failed>;

    /// What it says of a container, with what others know who are asked when the conversation is over.
    fn completed(&self, said: Candidate) -> Candidate {
        said
    }
}

impl<D: Daemon> Resolver for D {
    fn runtime(&self) -> Runtime {
        Daemon::runtime(self)
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let talk = async |peer| self.ask(peer, wanted).await;
        let found = converse(Daemon::runtime(self), self.socket(), talk)?;
        Ok(found.unwrap_or_default().into_iter().map(|said| self.completed(said)).collect())
    }

    fn places(&self) -> Vec<String> {
        vec![self.socket().path.display().to_string()]
    }
}

/// A daemon that somebody listens for.
pub(super) struct Peer {
    vantage: Vantage,
    stream: UnixStream,
}

/// Talks with the daemon at a socket; `None` if it is a usual place and nobody is there.
///
/// # Errors
/// [`Error::Permission`], or [`Error::Unanswered`] with what went wrong.
pub(super) fn converse<T>(
    runtime: Runtime,
    place: &Socket,
    talk: impl AsyncFnOnce(Peer) -> Result<T, Failed>,
) -> Result<Option<T>, Error> {
    converse_within(DEADLINE, runtime, place, talk)
}

fn converse_within<T>(
    deadline: Duration,
    runtime: Runtime,
    place: &Socket,
    talk: impl AsyncFnOnce(Peer) -> Result<T, Failed>,
) -> Result<Option<T>, Error> {
    let unanswered = |detail: String| Error::Unanswered { runtime, place: place.path.clone(), detail };
    let local = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = local.map_err(|e| Error::io(Path::new("/dev/null"), e))?;
    let whole = async {
        let stream = match UnixStream::connect(&place.path).await {
            // Nobody listens behind a socket that was left there.
            Err(e)
                if place.usual
                    && matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                    ) =>
            {
                return Ok(None);
            }
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::io(&place.path, e));
            }
            other => other.map_err(|e| unanswered(e.to_string()))?,
        };
        let peer = stream.peer_cred().ok().and_then(|cred| u32::try_from(cred.pid()?).ok());
        let vantage = Vantage::of(peer.filter(|pid| *pid != 0).map(Pid));
        let said = talk(Peer { vantage, stream }).await;
        said.map(Some).map_err(|Failed(detail)| unanswered(detail))
    };
    // Within the runtime: a time limit needs its clock.
    match local.block_on(async { tokio::time::timeout(deadline, whole).await }) {
        Ok(said) => said,
        Err(_) => Err(unanswered(format!("it did not answer within {} s", deadline.as_secs_f64()))),
    }
}

/// What went wrong in a conversation, for the message.
#[derive(Debug)]
pub(super) struct Failed(pub(super) String);

fn failed(error: impl std::error::Error) -> Failed {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Failed(text)
}

/// A connection that speaks HTTP.
pub(super) struct Http {
    sender: SendRequest<Empty<Bytes>>,
    pub(super) vantage: Vantage,
}

impl Http {
    /// Begins to speak HTTP.
    pub(super) async fn over(peer: Peer) -> Result<Http, Failed> {
        let (sender, connection) = http1::handshake(TokioIo::new(peer.stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(Http { sender, vantage: peer.vantage })
    }

    /// What is at a path; `None` if nothing is.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, Failed> {
        self.sender.ready().await.map_err(failed)?;
        let request = hyper::Request::get(path)
            .header(hyper::header::HOST, "localhost")
            .body(Empty::new())
            .map_err(failed)?;
        let answer = self.sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST);
        let body = body.collect().await.map_err(|e| Failed(e.to_string()))?.to_bytes();
        match status {
            hyper::StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                serde_json::from_slice(&body).map(Some).map_err(|e| Failed(format!("GET {path}: {e}")))
            }
            status => Err(Failed(format!("GET {path}: {status}"))),
        }
    }
}

/// A connection that speaks gRPC.
pub(super) struct Grpc {
    client: tonic::client::Grpc<Channel>,
    pub(super) vantage: Vantage,
}

impl Grpc {
    /// Begins to speak gRPC.
    pub(super) async fn over(peer: Peer) -> Result<Grpc, Failed> {
        let mut stream = Some(peer.stream);
        // One connection is all there is: it is not made anew behind our back, where another daemon might answer.
        let connector = tower::service_fn(move |_: hyper::Uri| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        // The host of a socket's address has no meaning.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.map_err(failed)?;
        let client = tonic::client::Grpc::new(channel).max_decoding_message_size(LARGEST);
        Ok(Grpc { client, vantage: peer.vantage })
    }

    /// Calls `/SERVICE/METHOD`, in a namespace of containerd's if one is given. `None`: the daemon knows no such thing, or has no
    /// such service.
    pub(super) async fn call<Q, A>(
        &mut self,
        method: &'static str,
        namespace: Option<&str>,
        question: Q,
    ) -> Result<Option<A>, Failed>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let (request, path, codec) = self.begin(method, namespace, question).await?;
        match self.client.unary(request, path, codec).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) => nothing_or_failed(method, &status),
        }
    }

    /// What every call begins with: a connection that takes one, and the question in its form.
    async fn begin<Q, A>(
        &mut self,
        method: &'static str,
        namespace: Option<&str>,
        question: Q,
    ) -> Result<(tonic::Request<Q>, PathAndQuery, ProstCodec<Q, A>), Failed> {
        self.client.ready().await.map_err(failed)?;
        let mut request = tonic::Request::new(question);
        if let Some(namespace) = namespace {
            let value: MetadataValue<Ascii> = namespace.parse().map_err(failed)?;
            request.metadata_mut().insert("containerd-namespace", value);
        }
        Ok((request, PathAndQuery::from_static(method), ProstCodec::default()))
    }

    /// The same of a method that answers in pieces; `size` says how large one is, and they are read as far as one answer may go.
    pub(super) async fn stream<Q, A>(
        &mut self,
        method: &'static str,
        namespace: Option<&str>,
        question: Q,
        size: impl Fn(&A) -> usize,
    ) -> Result<Option<Vec<A>>, Failed>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let (request, path, codec) = self.begin(method, namespace, question).await?;
        let mut answer = match self.client.server_streaming(request, path, codec).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return nothing_or_failed(method, &status),
        };
        let (mut pieces, mut total) = (Vec::new(), 0);
        loop {
            match answer.message().await {
                Ok(None) => return Ok(Some(pieces)),
                Ok(Some(piece)) => {
                    total += size(&piece);
                    if total > LARGEST {
                        return Err(Failed(format!("{method}: an answer of more than {LARGEST} bytes")));
                    }
                    pieces.push(piece);
                }
                Err(status) => return nothing_or_failed(method, &status),
            }
        }
    }
}

/// A service that the daemon was configured not to have is no answer, but no failure either.
fn nothing_or_failed<T>(method: &str, status: &tonic::Status) -> Result<Option<T>, Failed> {
    match status.code() {
        tonic::Code::NotFound | tonic::Code::Unimplemented => Ok(None),
        code => Err(Failed(format!("{method}: {code:?}: {}", status.message()))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    fn get(deadline: Duration, place: &Socket) -> Result<Option<serde_json::Value>, Error> {
        let answer = converse_within(deadline, Runtime::Docker, place, async |peer| {
            Http::over(peer).await?.get("/containers/json").await
        })?;
        Ok(answer.flatten())
    }

    #[test]
    fn a_daemon_that_hangs_costs_its_deadline_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = Socket { path: dir.path().join("hung.sock"), usual: true };
        // It accepts and says nothing, as a daemon that was stopped.
        let _listener = UnixListener::bind(&place.path).unwrap();
        let began = Instant::now();
        let error = get(Duration::from_millis(100), &place).unwrap_err().to_string();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(
            error.contains("docker") && error.contains("hung.sock") && error.contains("0.1 s"),
            "{error}"
        );
    }

    #[test]
    fn nobody_at_a_usual_place_is_no_error_but_at_a_given_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Socket { path: dir.path().join("none.sock"), usual: true };
        assert_eq!(get(DEADLINE, &place).unwrap(), None);
        // A socket whose daemon is gone.
        drop(UnixListener::bind(&place.path).unwrap());
        assert_eq!(get(DEADLINE, &place).unwrap(), None);
        place.usual = false;
        assert!(matches!(get(DEADLINE, &place), Err(Error::Unanswered { .. })));
    }

    #[test]
    fn nonsense_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let place = Socket { path: dir.path().join("odd.sock"), usual: true };
        let listener = UnixListener::bind(&place.path).unwrap();
        let answers = [
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{",
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            "SSH-2.0-x\r\n",
        ];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        for part in ["EOF", "500", "HTTP"] {
            let error = get(DEADLINE, &place).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        server.join().unwrap();
    }
}
