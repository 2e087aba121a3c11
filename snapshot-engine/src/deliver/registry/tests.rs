//! Pushes to a registry that misbehaves.

#[path = "pull_tests.rs"]
mod pull;

use std::path::Path;
use std::time::{Duration, Instant};

use super::scripted_tests::{Fault, Guard, Scripted, Then};
use super::*;
use crate::deliver::content::sample;
use crate::deliver::{Replace, run};
use crate::model::access::{Access, Login};
use crate::model::fault::{Class, Fault as _};
use crate::model::target::ImageTarget;

/// Two chunks and a piece.
const LARGE: usize = (8 << 20) + 4711;

struct Scene {
    registry: Scripted,
    dir: tempfile::TempDir,
    content: Content,
    login: Option<Login>,
    near: Vec<String>,
    origin: Option<String>,
    /// How long an answer may take: far longer than one does on a busy machine.
    patience: Duration,
}

impl Scene {
    fn new(guard: Guard, layers: &[&[u8]]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let content = sample::layout(&dir.path().join("layout"), layers);
        let login = match guard {
            // Not what this machine's own configuration may say.
            Guard::Nobody => Some(Login::default()),
            _ => Some(Login { username: "me".into(), password: "secret".into() }),
        };
        let registry = Scripted::start(guard);
        Scene {
            registry,
            dir,
            content,
            login,
            near: Vec::new(),
            origin: None,
            patience: Duration::from_secs(10),
        }
    }

    fn fail(self, method: &'static str, part: &'static str, times: u32, then: Then) -> Scene {
        self.registry.state().faults.push(Fault { method, part, skip: 0, times, then });
        self
    }

    fn push(&self) -> Result<Delivery, DeliverError> {
        let host = self.registry.address.to_string();
        let target: ImageTarget = format!("{host}/team/app:1").parse().unwrap();
        let access = Access { insecure: true, ..Access::default() };
        let request = Request {
            layout: Path::new("unused"),
            tag: "t",
            target: &target,
            access: &access,
            login: self.login.as_ref(),
            replace: Replace::No,
            near: &self.near,
            origin: self.origin.as_deref(),
            journal: self.dir.path().join("push.json"),
        };
        let policy = retry::Policy {
            request: self.patience,
            tries: 3,
            first: Duration::from_millis(2),
            ..retry::Policy::new(access.timeout)
        };
        let meter = Meter::default();
        let name = Reference::with_tag(host, "team/app".into(), "1".into());
        let done = run(&meter, pushed(&self.content, &request, name, policy, &meter));
        if done.is_ok() {
            assert_eq!(meter.done(), self.content.total(), "what is told at the end is all");
        }
        done
    }

    fn is_there(&self) -> bool {
        let state = self.registry.state();
        let whole = |blob: &crate::deliver::content::Blob| {
            state.blobs.contains_key(&("team/app".to_owned(), blob.digest.clone()))
        };
        self.content.blobs.iter().all(whole)
            && state.manifests.get("team/app:1") == Some(&self.content.root().unwrap().bytes)
    }
}

#[test]
fn a_push_brings_everything_and_a_second_one_nothing() {
    let large = vec![7; LARGE];
    let scene = Scene::new(Guard::Nobody, &[b"one", &large, b""]);
    let done = scene.push().unwrap();
    assert!(scene.is_there());
    assert_eq!((done.sent, done.present, done.retries), (4, 0, 0));
    assert_eq!(done.digest, scene.content.root().unwrap().blob.digest);
    assert_eq!(done.sent_bytes, scene.content.total());
    assert_eq!(scene.registry.count("PATCH", ""), 3, "only the large one goes in chunks");
    assert!(!scene.dir.path().join("push.json").exists());
    let again = scene.push().unwrap();
    assert_eq!((again.sent, again.present, again.sent_bytes), (0, 4, 0));
}

#[test]
fn a_registry_that_is_busy_is_left_alone_as_long_as_it_says() {
    let scene =
        Scene::new(Guard::Nobody, &[b"one"]).fail("POST", "uploads", 1, Then::Answer(429, "retry-after: 1"));
    let began = Instant::now();
    let done = scene.push().unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1) && scene.is_there());
    assert_eq!(done.retries, 1);
}

#[test]
fn errors_that_pass_are_waited_out_and_those_that_stay_are_told() {
    let scene = Scene::new(Guard::Nobody, &[b"one"])
        .fail("GET", "/v2/", 1, Then::Answer(503, ""))
        .fail("HEAD", "blobs", 2, Then::Answer(500, ""))
        .fail("PUT", "uploads", 1, Then::Answer(502, ""))
        .fail("PUT", "manifests", 2, Then::Answer(500, ""));
    assert!(scene.push().unwrap().retries >= 6 && scene.is_there());

    let scene = Scene::new(Guard::Nobody, &[b"one"]).fail("PUT", "manifests", 99, Then::Answer(500, ""));
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Refused { status: 500, .. }), "{error}");
    assert_eq!(error.class(), Class::Network);
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("resume")));
    assert_eq!(scene.registry.count("PUT", "manifests"), 3);
    // What is there is not sent again.
    scene.registry.state().faults.clear();
    assert_eq!(scene.push().unwrap().present, 2);
}

#[test]
fn a_registry_that_hangs_costs_its_time_limit_and_is_named() {
    let long = Then::Hang(Duration::from_secs(20));
    for (method, part) in [("GET", "/v2/"), ("HEAD", "blobs"), ("PUT", "uploads")] {
        let mut scene = Scene::new(Guard::Nobody, &[b"one"]).fail(method, part, 99, long);
        scene.patience = Duration::from_millis(800);
        let began = Instant::now();
        let error = scene.push().unwrap_err();
        assert!(matches!(error, DeliverError::Hung { .. }), "{error}");
        assert_eq!(error.class(), Class::Network);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn a_connection_that_drops_within_a_chunk_goes_on_from_there() {
    let large = vec![7; LARGE];
    let scene = Scene::new(Guard::Nobody, &[&large]).fail("PATCH", "", 1, Then::DropAfter(3 << 20)).fail(
        "PUT",
        "uploads",
        1,
        Then::DropAfter(0),
    );
    // One that keeps no half chunks: the first is lost whole.
    let done = scene.push().unwrap();
    assert!(scene.is_there() && done.retries >= 2);
    let twice = done.sent_bytes - scene.content.total();
    assert!(twice <= 8 << 20, "{twice} bytes were sent twice");
}

#[test]
fn a_broken_push_goes_on_where_it_was() {
    let large = vec![7; LARGE];
    let scene = Scene::new(Guard::Nobody, &[b"one", &large]);
    let then = Then::Answer(500, "");
    scene.registry.state().faults.push(Fault { method: "PATCH", part: "", skip: 1, times: 99, then });
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Refused { status: 500, .. }), "{error}");
    assert!(scene.dir.path().join("push.json").exists());
    scene.registry.state().faults.clear();
    let done = scene.push().unwrap();
    assert!(scene.is_there());
    assert_eq!(done.continued_bytes, 4 << 20);
    assert!(done.sent_bytes <= scene.content.total() - (4 << 20), "{done:?}");
}

#[test]
fn nobody_there_is_told_after_some_tries() {
    let mut scene = Scene::new(Guard::Nobody, &[b"one"]);
    // A port that was free a moment ago.
    scene.registry.address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Unreachable { tries: 3, .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(error.class(), Class::Network);
}

#[test]
fn credentials_are_shown_only_when_asked_for_and_wrong_ones_are_told_at_once() {
    for guard in [Guard::Basic, Guard::Token(1000)] {
        let scene = Scene::new(guard, &[b"one"]);
        scene.push().unwrap();
        assert!(scene.is_there());
        for login in [Login { username: "me".into(), password: "wrong".into() }, Login::default()] {
            let mut scene = Scene::new(guard, &[b"one"]);
            scene.login = Some(login);
            let error = scene.push().unwrap_err();
            assert!(matches!(error, DeliverError::Unauthorized { known: true, .. }), "{error}");
            assert_eq!(error.class(), Class::Network);
            assert!(!format!("{error} {error:?}").contains("wrong"));
            assert!(scene.registry.state().log.len() <= 4, "it is not tried again");
        }
    }
}

#[test]
fn a_token_that_expires_is_replaced() {
    let large = vec![7; LARGE];
    let scene = Scene::new(Guard::Token(5), &[b"one", &large, b"three"]);
    let done = scene.push().unwrap();
    assert!(scene.is_there() && scene.registry.state().tokens.len() >= 3, "{done:?}");
    assert_eq!(done.sent, 4);
}

#[test]
fn blobs_are_taken_from_repositories_nearby() {
    let mut scene = Scene::new(Guard::Nobody, &[b"one", b"two"]);
    let host = scene.registry.address;
    scene.near =
        vec![format!("{host}/base/os:1"), "elsewhere.example/base/os:1".into(), format!("{host}/team/app:0")];
    let known = scene.content.blobs[0].digest.clone();
    scene.registry.state().blobs.insert(("base/os".into(), known), Vec::new());
    let done = scene.push().unwrap();
    assert!(scene.is_there());
    assert_eq!((done.mounted, done.sent), (1, 2));
    assert_eq!(scene.registry.count("", "elsewhere"), 0);
}

#[test]
fn a_blob_that_has_rotted_is_told_and_not_pushed() {
    let scene = Scene::new(Guard::Nobody, &[b"one"]);
    std::fs::write(&scene.content.blobs[0].path, "ONE").unwrap();
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Damaged { .. }), "{error}");
    assert!(scene.registry.state().manifests.is_empty());
}

#[test]
fn credentials_go_to_nobody_else() {
    let scene = Scene::new(Guard::Basic, &[b"one"]);
    let other = Scripted::start(Guard::Basic);
    let moved: &'static str =
        Box::leak(format!("location: http://{}/v2/team/app/blobs/uploads/x", other.address).into_boxed_str());
    let scene = scene.fail("POST", "uploads", 99, Then::Answer(202, moved));
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Unauthorized { .. }), "the other one wants to know us: {error}");
    assert_eq!(other.count("PUT", "uploads"), 1, "asked once, and not answered");
}
