use std::path::Path;
use std::sync::atomic::Ordering;

use super::*;
use crate::model::base::KnownImage;
use crate::model::fault::{Class, Fault};
use crate::pipeline::fake::{Fake, Then};
use crate::pipeline::progress::Quiet;
use crate::store;

fn request(work: &Path) -> CommitRequest {
    CommitRequest {
        container: "web".parse().unwrap(),
        target: format!("oci:{}:v1", work.join("layout").display()).parse().unwrap(),
        options: CommitOptions::default().work_dir(work),
    }
}

/// The cut checks privileges first; without them these tests have nothing to test.
fn privileged() -> bool {
    let ok = preflight::privileges().is_ok();
    assert!(ok || std::env::var_os("CI").is_none(), "CI must run these tests as root");
    if !ok {
        eprintln!("skipped: needs CAP_SYS_ADMIN and CAP_BPF");
    }
    ok
}

fn directories(work: &Path) -> usize {
    std::fs::read_dir(work.join("snapshot-engine/snapshots")).unwrap().count()
}

#[test]
fn a_commit_completes_and_is_remembered() {
    if !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let fake = Fake::new(Then::Succeed, Then::Succeed);
    let mut claimed = cut(&fake, request(work.path()), &Quiet).unwrap();
    let id = claimed.record().snapshot_id;
    let store = Store::open(work.path()).unwrap();
    let pending = store.status(id).unwrap();
    assert_eq!(
        (pending.state, pending.interrupted, pending.pid),
        (State::Pending, false, Some(std::process::id()))
    );
    assert!(matches!(store.remove(id), Err(store::Error::Busy { .. })));
    let record = finish(&fake, &mut claimed, &Quiet).unwrap();
    assert_eq!((record.state, record.image_attempts), (State::Completed, 1));
    // Repeating it does nothing.
    finish(&fake, &mut claimed, &Quiet).unwrap();
    assert_eq!(fake.images.load(Ordering::SeqCst), 1);
    drop(claimed);
    let done = store.status(id).unwrap();
    assert_eq!((done.state, done.interrupted, done.pid), (State::Completed, false, None));
    assert!((done.progress - 1.0).abs() < 1e-9);
    assert_eq!(pauses::load(&store).unwrap().figures()[0].count, 1);
    store.remove(id).unwrap();
    assert_eq!(directories(work.path()), 0);
}

#[test]
fn a_failed_or_interrupted_cut_leaves_nothing() {
    if !privileged() {
        return;
    }
    for then in [Then::Fail, Then::Interrupt] {
        let work = tempfile::tempdir().unwrap();
        let error = cut(&Fake::new(then, Then::Succeed), request(work.path()), &Quiet).unwrap_err();
        assert_eq!(directories(work.path()), 0);
        if then == Then::Fail {
            assert_eq!(error.class(), Class::NoContainer);
            assert_eq!(error.chain(), "could not find the container: it is gone");
        }
    }
}

#[test]
fn nothing_touches_the_container_before_everything_is_checked() {
    let fake = Fake::new(Then::Succeed, Then::Succeed);
    let work = tempfile::tempdir().unwrap();
    let mut bad = request(work.path());
    bad.options.fs_version = 4;
    assert_eq!(cut(&fake, bad, &Quiet).unwrap_err().class(), Class::Arguments);
    let file = work.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut bad = request(work.path());
    bad.options.work_dir = file.clone();
    assert!(cut(&fake, bad, &Quiet).is_err());
    let mut bad = request(work.path());
    bad.options.parent = Some(KnownImage { bootstrap: file, blobs: Vec::new() });
    let error = cut(&fake, bad, &Quiet).unwrap_err();
    assert!(!privileged() || matches!(error, Error::BaseUnusable { .. }), "{error:?}");
    let layout = work.path().join("layout");
    std::fs::create_dir(&layout).unwrap();
    let index = r#"{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}"#;
    std::fs::write(layout.join("index.json"), index).unwrap();
    let error = cut(&fake, request(work.path()), &Quiet).unwrap_err();
    assert!(!privileged() || matches!(error, Error::TargetExists { .. }));
    assert_eq!(fake.cuts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failed_image_is_on_record_and_can_be_resumed() {
    if !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let fake = Fake::new(Then::Succeed, Then::Fail);
    let mut claimed = cut(&fake, request(work.path()), &Quiet).unwrap();
    let id = claimed.record().snapshot_id;
    finish(&fake, &mut claimed, &Quiet).unwrap_err();
    drop(claimed);
    let store = Store::open(work.path()).unwrap();
    let status = store.status(id).unwrap();
    assert_eq!((status.state, status.interrupted), (State::Failed, false));
    assert_eq!(status.failure.unwrap().message, "could not write the blobs: it is gone");
    // Interrupted, it is neither failed nor lost.
    *fake.image.lock().unwrap() = Then::Interrupt;
    finish(&fake, &mut store.claim(id).unwrap(), &Quiet).unwrap_err();
    let status = store.status(id).unwrap();
    assert_eq!((status.state, status.interrupted, status.word()), (State::Processing, true, "interrupted"));
    *fake.image.lock().unwrap() = Then::Succeed;
    let record = finish(&fake, &mut store.claim(id).unwrap(), &Quiet).unwrap();
    assert_eq!((record.state, record.image_attempts, record.failure), (State::Completed, 3, None));
}

#[test]
fn the_frozen_upperdir_goes_only_if_asked_and_only_when_complete() {
    if !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let fake = Fake::new(Then::Succeed, Then::Fail);
    let mut wanted = request(work.path());
    wanted.options.keep_frozen = false;
    let mut claimed = cut(&fake, wanted, &Quiet).unwrap();
    let frozen = claimed.path().join("frozen");
    finish(&fake, &mut claimed, &Quiet).unwrap_err();
    assert!(frozen.is_dir());
    *fake.image.lock().unwrap() = Then::Succeed;
    finish(&fake, &mut claimed, &Quiet).unwrap();
    assert!(!frozen.exists());
    let id = claimed.record().snapshot_id;
    drop(claimed);
    assert_eq!(Store::open(work.path()).unwrap().status(id).unwrap().state, State::Completed);
}

/// A cut whose image goes to a registry, where this becomes of it.
fn cut_for_a_registry(work: &Path, deliver: Then) -> (Fake, Claimed) {
    let fake = Fake::new(Then::Succeed, Then::Succeed);
    *fake.deliver.lock().unwrap() = deliver;
    let mut wanted = request(work);
    wanted.target = "localhost:5000/team/web:1".parse().unwrap();
    let claimed = cut(&fake, wanted, &Quiet).unwrap();
    (fake, claimed)
}

#[test]
fn an_image_that_could_not_be_delivered_is_delivered_later_and_built_once() {
    if !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (fake, mut claimed) = cut_for_a_registry(work.path(), Then::Fail);
    let layout = claimed.path().join("layout");
    finish(&fake, &mut claimed, &Quiet).unwrap_err();
    let record = claimed.record();
    assert_eq!((record.state, record.image.is_some(), record.version), (State::Failed, true, 2));
    assert!(record.failure.as_ref().unwrap().message.starts_with("could not deliver the image"));
    assert!(layout.is_dir());
    *fake.deliver.lock().unwrap() = Then::Succeed;
    let record = finish(&fake, &mut claimed, &Quiet).unwrap();
    assert_eq!(
        (record.state, record.failure, record.delivery.map(|d| d.sent)),
        (State::Completed, None, Some(3))
    );
    assert!(!layout.exists());
    assert_eq!((fake.images.load(Ordering::SeqCst), fake.deliveries.load(Ordering::SeqCst)), (1, 2));
    // Without its layout it would have to be built again; but it is complete.
    finish(&fake, &mut claimed, &Quiet).unwrap();
    assert_eq!(fake.images.load(Ordering::SeqCst), 1);
}

#[test]
fn an_image_whose_layers_have_gone_from_the_registry_is_made_once_more() {
    if !privileged() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (fake, mut claimed) = cut_for_a_registry(work.path(), Then::LayersGone);
    let error = finish(&fake, &mut claimed, &Quiet).unwrap_err();
    assert_eq!((error.class(), fake.images.load(Ordering::SeqCst)), (Class::Network, 2));
    assert!(
        error.chain().starts_with("could not deliver the image: localhost:5000 does not have"),
        "{error}"
    );
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("resume")));
    // Nor is what refers to them kept for the next try.
    assert_eq!((claimed.record().state, claimed.record().image.as_ref()), (State::Failed, None));
    assert!(!claimed.path().join("layout").exists());
    *fake.deliver.lock().unwrap() = Then::Succeed;
    assert_eq!(finish(&fake, &mut claimed, &Quiet).unwrap().state, State::Completed);
    assert_eq!(fake.images.load(Ordering::SeqCst), 3);
}

#[test]
fn docker_is_refused_an_image_it_cannot_use_before_anything_is_done() {
    let work = tempfile::tempdir().unwrap();
    let fake = Fake::new(Then::Succeed, Then::Succeed);
    let mut wanted = request(work.path());
    wanted.target = "docker-daemon:web:1".parse().unwrap();
    let error = cut(&fake, wanted, &Quiet).unwrap_err();
    assert!(!privileged() || error.class() == Class::Arguments, "{error}");
    assert_eq!(fake.cuts.load(Ordering::SeqCst), 0);
}
