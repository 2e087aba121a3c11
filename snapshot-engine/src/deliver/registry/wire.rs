//! One request to a registry and what comes of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Bytes;
use oci_client::Reference;
use oci_client::errors::OciEnvelope;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Url};
use rustls::AlertDescription;

use super::auth::Auth;
use super::credentials::{self, Found};
use super::retry::{Policy, Tries, Trouble};
use super::tls;
use crate::deliver::error::said;
use crate::deliver::{DeliverError, Meter};
use crate::model::access::{Access, Login};

/// The most of an answer that is read: a manifest may have as much.
const LARGEST: usize = 4 << 20;

/// A connection to a repository.
pub(super) struct Wire<'a> {
    http: Client,
    base: Url,
    auth: Auth,
    /// Whether we show a certificate.
    certified: bool,
    policy: Policy,
    pub(super) target: Reference,
    pub(super) meter: &'a Meter,
}

/// A part of a file as the body of a request.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Bytes of it that have been given to the connection.
    pub(super) given: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Bytes),
    Piece(Piece),
}

/// A request that can be made again.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    method: Method,
    url: Url,
    headers: HeaderMap,
    content: Content,
    /// Where the body of a good answer goes, and how long it is.
    into: Option<(Arc<File>, u64)>,
    what: &'static str,
}

impl Ask {
    /// `what` completes "answers 500 to ..".
    pub(super) fn new(method: Method, url: Url, what: &'static str) -> Ask {
        Ask {
            method,
            url,
            headers: HeaderMap::new(),
            content: Content::Bytes(Bytes::new()),
            into: None,
            what,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Ask {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    pub(super) fn authorized(mut self, value: HeaderValue) -> Ask {
        self.headers.insert(AUTHORIZATION, value);
        self
    }

    pub(super) fn bytes(mut self, bytes: Vec<u8>) -> Ask {
        self.content = Content::Bytes(bytes.into());
        self
    }

    pub(super) fn piece(mut self, piece: Piece) -> Ask {
        self.content = Content::Piece(piece);
        self
    }

    /// The body of a good answer, which has so many bytes, goes into a file.
    pub(super) fn into_file(mut self, file: Arc<File>, bytes: u64) -> Ask {
        self.into = Some((file, bytes));
        self
    }

    /// The same at another address.
    pub(super) fn at(mut self, url: Url) -> Ask {
        self.url = url;
        self
    }

    fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Piece(piece) => piece.length,
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What went wrong, in the registry's words.
    fn says(&self) -> String {
        match serde_json::from_slice::<OciEnvelope>(&self.body) {
            Ok(envelope) => {
                let all: Vec<String> = envelope.errors.iter().map(|e| e.message.clone()).collect();
                said(&all.join(", "))
            }
            Err(_) => {
                // Its codes are a closed set there, and some registries have more.
                let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
                said(json["errors"][0]["message"].as_str().or(json["details"].as_str()).unwrap_or_default())
            }
        }
    }
}

impl<'a> Wire<'a> {
    /// Finds out how the registry is spoken to, and who we are to it.
    pub(super) async fn open(
        target: Reference,
        near: &[String],
        access: &Access,
        login: Option<&Login>,
        policy: Policy,
        meter: &'a Meter,
    ) -> Result<Wire<'a>, DeliverError> {
        let known = match login {
            Some(login) => Some(Found::Login(login.clone())),
            None => credentials::find(&target)?,
        };
        let auth = Auth::new(known, target.repository(), near);
        let host = target.resolve_registry().to_owned();
        let base = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/")).map_err(|e| DeliverError::Protocol {
                registry: host.clone(),
                why: format!("that is not the name of a host: {e}"),
            })
        };
        let (http, certified) = (tls::of(access)?, access.tls_cert.is_some());
        let mut wire = Wire { http, base: base("https")?, auth, certified, policy, target, meter };
        let plain = base("http")?;
        let mut tries = Tries::new(policy, meter);
        loop {
            let mut done = wire.hello().await;
            if access.insecure && done.as_ref().is_err_and(is_no_secure_connection) {
                let secure = std::mem::replace(&mut wire.base, plain.clone());
                let plainly = wire.hello().await;
                if plainly.as_ref().is_err_and(is_no_secure_connection) {
                    wire.base = secure;
                } else {
                    done = plainly;
                }
            }
            match done {
                Ok(()) => return Ok(wire),
                Err(trouble) => tries.again(trouble).await?,
            }
        }
    }

    /// Asks whether there is a registry, and answers its challenge.
    async fn hello(&self) -> Result<(), Trouble> {
        let ask = Ask::new(Method::GET, self.url("")?, "a greeting");
        let answer = self.once(&ask).await?;
        match answer.status {
            // Some have nothing at this address for tokens that are good for one repository.
            200..=299 | 403 | 404 => Ok(()),
            401 => Err(self.unauthorized(&answer).into()),
            _ => Err(self.refused(&ask, &answer)),
        }
    }

    /// The address below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Result<Url, DeliverError> {
        self.base.join(&format!("/v2/{path}")).map_err(|e| self.nonsense(e.to_string()))
    }

    /// An address of the target's repository.
    pub(super) fn at(&self, path: &str) -> Result<Url, DeliverError> {
        self.url(&format!("{}/{path}", self.target.repository()))
    }

    /// The address an answer names, which may be one without a host.
    pub(super) fn location(&self, answer: &Answer) -> Result<Url, DeliverError> {
        let named =
            answer.header("location").ok_or_else(|| self.nonsense("it names no location".to_owned()))?;
        let mut url = self.base.join(named).map_err(|e| self.nonsense(format!("its location: {e}")))?;
        // A registry behind a proxy that ends TLS may not know better.
        if self.base.scheme() == "https"
            && url.scheme() == "http"
            && url.host_str() == self.base.host_str()
            && url.port().is_none()
        {
            let _ = url.set_scheme("https");
        }
        Ok(url)
    }

    /// Whether an address is the registry's own: credentials go to no other (CVE-2020-15157).
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    pub(super) fn tries(&self) -> Tries<'a> {
        Tries::new(self.policy, self.meter)
    }

    /// Makes a request until it is answered with something that is no passing trouble. For what may be asked twice.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, DeliverError> {
        let mut tries = self.tries();
        loop {
            match self.once(ask).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => tries.again(trouble).await?,
            }
        }
    }

    /// Makes a request once, and again if it is challenged. Answers that tell of a passing trouble are errors, all others are answers.
    pub(super) async fn once(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let mut used = None;
        // A fresh token may be used up by others before it is our turn; one that is refused for good stays so.
        for last in [false, false, true] {
            let mut dressed = ask.clone();
            if self.is_own(&ask.url)
                && let Some(header) = self.auth.header()
            {
                used = Some(header.clone());
                dressed = dressed.authorized(header);
            }
            let answer = self.once_plainly(&dressed).await?;
            if answer.status != 401 || last || !self.is_own(&ask.url) {
                return if answer.status == 401 {
                    Err(self.unauthorized(&answer).into())
                } else {
                    Ok(answer)
                };
            }
            let challenges: Vec<String> = answer
                .headers
                .get_all("www-authenticate")
                .iter()
                .filter_map(|value| Some(value.to_str().ok()?.to_owned()))
                .collect();
            if !self.auth.answer(self, &challenges, used.as_ref()).await? {
                return Err(self.unauthorized(&answer).into());
            }
        }
        Err(self.nonsense("it challenges without end".to_owned()).into())
    }

    /// Makes a request once, as it is.
    pub(super) async fn once_plainly(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let limit = self.policy.limit(ask.length() + ask.into.as_ref().map_or(0, |(_, bytes)| *bytes));
        let body = match &ask.content {
            Content::Bytes(bytes) => bytes.clone().into(),
            Content::Piece(piece) => {
                piece.given.store(0, Ordering::Relaxed);
                reqwest::Body::wrap(Sent { piece: piece.clone() })
            }
        };
        let mut request = self.http.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
        if ask.length() > 0 || matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) {
            // An empty body has a length too, which some registries insist on.
            request = request.header("content-length", ask.length()).body(body);
        }
        let whole = async {
            if let Some((file, _)) = &ask.into
                && let Err(e) = file.set_len(0)
            {
                return Ok(Err(e));
            }
            let mut answer = request.send().await?;
            let (status, headers) = (answer.status().as_u16(), std::mem::take(answer.headers_mut()));
            let (mut body, mut written) = (Vec::new(), 0);
            while let Some(part) = answer.chunk().await? {
                match &ask.into {
                    Some((file, bytes)) if status == 200 => {
                        // More than there can be is not kept: the length tells.
                        if written <= *bytes
                            && let Err(e) = file.write_all_at(&part, written)
                        {
                            return Ok(Err(e));
                        }
                        written += part.len() as u64;
                    }
                    _ if body.len() < LARGEST => body.extend_from_slice(&part),
                    _ => {}
                }
            }
            Ok(Ok(Answer { status, headers, body: body.into() }))
        };
        let done = tokio::time::timeout(limit, whole).await;
        if let Content::Piece(piece) = &ask.content {
            self.meter.count_sent(piece.given.load(Ordering::Relaxed));
        }
        let registry = || self.target.registry().to_owned();
        let answer = match done {
            Err(_) => {
                let error = DeliverError::Hung { registry: registry(), after: limit };
                return Err(Trouble::Passing { error, after: None });
            }
            Ok(Err(e)) => return Err(self.broken(&e)),
            Ok(Ok(Err(e))) => {
                return Err(DeliverError::io("write what is fetched below", "the work directory")(e).into());
            }
            Ok(Ok(Ok(answer))) => answer,
        };
        match answer.status {
            408 | 425 | 429 | 500..=599 => Err(self.refused(ask, &answer)),
            _ => Ok(answer),
        }
    }

    /// What a connection that did not come about or broke off is.
    fn broken(&self, error: &reqwest::Error) -> Trouble {
        let (registry, why) = (self.target.registry().to_owned(), chain(error));
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            match tls_within(error) {
                // What is no TLS at all, and alerts of the other side that may pass.
                Some(rustls::Error::InvalidMessage(_)) => {
                    let why = "it does not speak TLS".to_owned();
                    return Trouble::Lasting(DeliverError::Untrusted { registry, why });
                }
                Some(tls @ rustls::Error::AlertReceived(alert)) if is_of_our_certificate(*alert) => {
                    let (shown, why) = (self.certified, tls.to_string());
                    return Trouble::Lasting(DeliverError::Uncertified { registry, shown, why });
                }
                Some(
                    tls @ (rustls::Error::InvalidCertificate(_)
                    | rustls::Error::AlertReceived(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::PeerIncompatible(_)),
                ) => {
                    let why = tls.to_string();
                    return Trouble::Lasting(DeliverError::Untrusted { registry, why });
                }
                _ => cause = error.source(),
            }
        }
        let error = DeliverError::Unreachable { registry, tries: 1, why };
        Trouble::Passing { error, after: None }
    }

    /// What an answer is that is none of those a request allows.
    pub(super) fn refused(&self, ask: &Ask, answer: &Answer) -> Trouble {
        if answer.status == 401 || answer.status == 403 {
            return Trouble::Lasting(self.unauthorized(answer));
        }
        let error = DeliverError::Refused {
            registry: self.target.registry().to_owned(),
            status: answer.status,
            what: ask.what.to_owned(),
            why: answer.says(),
        };
        match answer.status {
            408 | 425 | 429 | 500..=599 => {
                // In seconds; the other form, a date, is one that registries do not use.
                let after = answer.header("retry-after").and_then(|text| text.trim().parse().ok());
                Trouble::Passing { error, after: after.map(Duration::from_secs) }
            }
            _ => Trouble::Lasting(error),
        }
    }

    pub(super) fn unauthorized(&self, answer: &Answer) -> DeliverError {
        let why = match answer.says() {
            says if says.is_empty() => format!("it answers {}", answer.status),
            says => says,
        };
        DeliverError::Unauthorized {
            registry: self.target.registry().to_owned(),
            known: self.auth.is_known(),
            why,
        }
    }

    pub(super) fn nonsense(&self, why: String) -> DeliverError {
        DeliverError::Protocol { registry: self.target.registry().to_owned(), why: said(&why) }
    }

    /// Whether a name of the repository stands for a manifest already.
    pub(super) async fn has_manifest(&self, name: &str, digest: &str) -> Result<bool, DeliverError> {
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let ask =
            Ask::new(Method::HEAD, self.at(&format!("manifests/{name}"))?, "the question for the manifest");
        let answer = self.ask(&ask.with("accept", accept)).await?;
        Ok(answer.status == 200 && answer.header("docker-content-digest") == Some(digest))
    }

    /// Puts a manifest under a name.
    pub(super) async fn put_manifest(
        &self,
        name: &str,
        kind: &str,
        digest: &str,
        bytes: Vec<u8>,
    ) -> Result<(), DeliverError> {
        let url = self.at(&format!("manifests/{name}"))?;
        let ask = Ask::new(Method::PUT, url, "the manifest").with("content-type", kind).bytes(bytes);
        let mut tries = self.tries();
        let answer = loop {
            let trouble = match self.once(&ask).await {
                Ok(answer) if (200..300).contains(&answer.status) => break answer,
                Ok(answer) => self.refused(&ask, &answer),
                Err(trouble) => trouble,
            };
            tries.again(trouble).await?;
        };
        match answer.header("docker-content-digest") {
            Some(other) if other != digest => {
                Err(self.nonsense(format!("it has made {other} of the manifest {digest}")))
            }
            _ => Ok(()),
        }
    }
}

/// An error with its causes in one line. Addresses are left out: what a registry adds to them may be a permission.
pub(in crate::deliver) fn chain(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut all: Vec<String> = Vec::new();
    while let Some(error) = cause {
        let next = error.to_string();
        if all.last().is_none_or(|last| !last.ends_with(&next)) {
            all.push(next);
        }
        cause = error.source();
    }
    if all.is_empty() {
        all.push(if error.is_timeout() {
            "it took too long".to_owned()
        } else {
            "the connection broke".to_owned()
        });
    }
    said(&all.join(": "))
}

/// Whether nobody answered over TLS; with `--target-insecure` there may be somebody without.
fn is_no_secure_connection(trouble: &Trouble) -> bool {
    let (Trouble::Passing { error, .. } | Trouble::Lasting(error)) = trouble;
    matches!(error, DeliverError::Unreachable { .. } | DeliverError::Untrusted { .. })
}

/// Whether the other side says by this alert that it wants another certificate of ours, or any (RFC 8446, section 6.2). One that demands none sends none of these.
fn is_of_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::CertificateRequired
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    )
}

/// What TLS says, if an error is one of it. As an error of I/O it is a content and no source, and may be one twice over.
fn tls_within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    while let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inner;
    }
    error.downcast_ref()
}

/// A piece on its way.
struct Sent {
    piece: Piece,
}

/// What is given to the connection at a time.
const PART: u64 = 128 << 10;

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = &self.piece;
        let given = piece.given.load(Ordering::Relaxed);
        let length = (piece.length - given).min(PART);
        if length == 0 {
            return Poll::Ready(None);
        }
        let mut part = vec![0; usize::try_from(length).unwrap_or(0)];
        // Just written, and so from memory as a rule: not worth a thread.
        if let Err(e) = piece.file.read_exact_at(&mut part, piece.offset + given) {
            return Poll::Ready(Some(Err(e)));
        }
        piece.given.fetch_add(length, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(part.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.piece.length - self.piece.given.load(Ordering::Relaxed))
    }
}
