//! What is read from a registry: the image that a container was started from, and layers that it has and we do not.

use serde_json::json;

use super::*;
use crate::deliver::origin::digest;
use crate::model::config::Platform;

const LAYERS: [&[u8]; 2] = [b"the lowest", b"the next"];

/// An image whose first two layers are in the registry's `base/os`, and not here.
fn scene(guard: Guard) -> Scene {
    let mut scene = Scene::new(guard, &[LAYERS[0], LAYERS[1], b"ours"]);
    scene.origin = Some(format!("{}/base/os", scene.registry.address));
    for (blob, bytes) in scene.content.blobs.iter_mut().zip(LAYERS) {
        scene.registry.state().blobs.insert(("base/os".into(), blob.digest.clone()), bytes.to_vec());
        std::fs::remove_file(&blob.path).unwrap();
        blob.here = false;
    }
    scene
}

/// Bytes that are ours: one layer and the config.
fn ours(scene: &Scene) -> u64 {
    scene.content.blobs[2..].iter().map(|blob| blob.size).sum()
}

#[test]
fn layers_that_the_registry_has_are_neither_read_nor_sent() {
    for guard in [Guard::Nobody, Guard::Token(1000)] {
        let scene = scene(guard);
        let done = scene.push().unwrap();
        assert!(scene.is_there());
        assert_eq!((done.mounted, done.sent, done.sent_bytes), (2, 2, ours(&scene)));
        assert_eq!(scene.registry.count("GET", "/blobs/sha256"), 0);
        assert!(!scene.content.blobs[0].path.exists());
    }
}

#[test]
fn a_registry_that_mounts_nothing_gets_them_through_us() {
    let scene = scene(Guard::Nobody);
    scene.registry.state().mounts = false;
    let done = scene.push().unwrap();
    assert!(scene.is_there());
    assert_eq!((done.mounted, done.sent, done.sent_bytes), (0, 4, scene.content.total()));
    let key = ("team/app".to_owned(), scene.content.blobs[0].digest.clone());
    assert_eq!(scene.registry.state().blobs[&key], LAYERS[0]);
    // Each session that a refused mount has begun is used.
    assert_eq!(scene.registry.count("POST", "uploads"), 4);
}

#[test]
fn what_is_fetched_is_what_its_name_says_and_is_there_when_it_goes_on() {
    let scene = scene(Guard::Nobody);
    scene.registry.state().mounts = false;
    let key = ("base/os".to_owned(), scene.content.blobs[1].digest.clone());
    for wrong in [&b"the nexT"[..], b"the next and more", b""] {
        scene.registry.state().blobs.insert(key.clone(), wrong.to_vec());
        let error = scene.push().unwrap_err();
        assert!(matches!(error, DeliverError::Protocol { .. }), "{error}");
        assert!(!scene.content.blobs[1].path.exists());
    }
    scene.registry.state().blobs.insert(key, LAYERS[1].to_vec());
    // A connection that breaks on the way.
    let scene = scene.fail("GET", "/blobs/sha256", 1, Then::DropAfter(0));
    scene.push().unwrap();
    assert!(scene.is_there() && scene.content.blobs[1].path.exists());
}

#[test]
fn a_registry_that_keeps_its_blobs_elsewhere_says_where_and_we_do_not_say_there_who_we_are() {
    let other = Scripted::start(Guard::Basic);
    let scene = scene(Guard::Basic);
    scene.registry.state().mounts = false;
    let stored = format!("/v2/store/blobs/{}", scene.content.blobs[0].digest);
    let to = format!("location: http://{}{stored}", other.address);
    let part: &'static str =
        Box::leak(format!("os/blobs/{}", scene.content.blobs[0].digest).into_boxed_str());
    let scene = scene.fail("GET", part, 9, Then::Answer(307, Box::leak(to.into_boxed_str())));
    // It is guarded, so that it would take our credentials if it got them.
    let key = ("store".to_owned(), scene.content.blobs[0].digest.clone());
    other.state().blobs.insert(key, LAYERS[0].to_vec());
    assert!(matches!(scene.push().unwrap_err(), DeliverError::Unauthorized { .. }));
    other.state().guard = Guard::Nobody;
    scene.push().unwrap();
    assert!(scene.is_there() && other.count("GET", "store") == 2);
}

#[test]
fn layers_that_are_nowhere_any_more_are_named() {
    let scene = scene(Guard::Nobody);
    scene.registry.state().blobs.clear();
    let error = scene.push().unwrap_err();
    assert!(matches!(error, DeliverError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("base/os") && scene.registry.state().manifests.is_empty(), "{error}");
}

/// The registry has the scene's image as `base/os`, by its tag, its digest, and behind an index.
fn published(scene: &Scene) -> (String, String, String) {
    let root = scene.content.root().unwrap();
    let (manifest, config) = (&root.bytes, root.json["config"]["digest"].as_str().unwrap());
    let own = Platform::default().or_this_machine();
    let other = json!({"os": "linux", "architecture": "other"});
    let index = json!({"manifests": [
        {"digest": digest(b"other"), "size": 5, "platform": other},
        {"digest": root.blob.digest, "size": manifest.len(), "platform": own},
    ]});
    let index = index.to_string().into_bytes();
    let mut state = scene.registry.state();
    for blob in &scene.content.blobs {
        let bytes = std::fs::read(&blob.path).unwrap();
        state.blobs.insert(("base/os".into(), blob.digest.clone()), bytes);
    }
    for (name, bytes) in [(&root.blob.digest, manifest), (&digest(&index), &index)] {
        state.manifests.insert(format!("base/os:{name}"), bytes.clone());
    }
    state.manifests.insert("base/os:1".into(), index.clone());
    (digest(&index), root.blob.digest.clone(), config.to_owned())
}

fn look(scene: &Scene, digest: &str, name: &str, timeout: Duration) -> Result<Option<Origin>, DeliverError> {
    let host = scene.registry.address.to_string();
    let target: ImageTarget = format!("{host}/team/app:1").parse().unwrap();
    let access = Access { insecure: true, timeout: timeout.into(), ..Access::default() };
    let names = [format!("{host}/{name}"), "elsewhere.example/base/os:1".to_owned()];
    let question = Question {
        digest,
        platform: Platform::default().or_this_machine(),
        names: &names,
        target: &target,
        access: &access,
        login: scene.login.as_ref(),
        store: None,
        name: "",
        blobs: Path::new("unused"),
    };
    origin(&question, [&host, &"team/app".to_owned(), &"1".to_owned()], &Meter::default())
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn the_very_image_of_the_container_is_found_by_whatever_its_runtime_calls_it() {
    let scene = Scene::new(Guard::Token(1000), &LAYERS);
    let (index, manifest, config) = published(&scene);
    for digest in [&index, &manifest, &config] {
        let found = look(&scene, digest, "base/os:1", LONG).unwrap().unwrap();
        assert_eq!(found.manifest, scene.content.root().unwrap().bytes);
        assert_eq!(found.layers, Whereabouts::Repository(format!("{}/base/os", scene.registry.address)));
    }
    // As distribution answers where there is a blob of that digest, and no manifest.
    let path: &'static str = Box::leak(format!("/manifests/{config}").into_boxed_str());
    let scene = scene.fail("GET", path, 2, Then::Answer(500, ""));
    assert!(look(&scene, &config, "base/os:1", LONG).unwrap().is_some());
    assert_eq!(scene.registry.count("GET", path), 2, "before, and once now");
    // The tag has moved since.
    scene.registry.state().manifests.remove("base/os:1");
    assert_eq!(look(&scene, &config, "base/os:1", LONG).unwrap(), None);
    assert!(look(&scene, &config, &format!("base/os@{index}"), LONG).unwrap().is_some());
    assert!(look(&scene, &index, "base/os:1", LONG).unwrap().is_some());
    // Another image.
    assert_eq!(look(&scene, &digest(b"x"), &format!("base/os@{index}"), LONG).unwrap(), None);
    assert_eq!(look(&scene, &index, "base/none:1", LONG).unwrap(), None);
    assert_eq!(scene.registry.count("", "elsewhere"), 0);
    // One that is not all there.
    scene.registry.state().blobs.remove(&("base/os".into(), scene.content.blobs[1].digest.clone()));
    assert_eq!(look(&scene, &index, "base/os:1", LONG).unwrap(), None);
    assert!(
        scene.registry.state().log.iter().all(|line| line.starts_with("GET") || line.starts_with("HEAD"))
    );
}

#[test]
fn documents_that_are_not_what_their_digest_says_are_not_believed() {
    let scene = Scene::new(Guard::Nobody, &LAYERS);
    let (_, manifest, config) = published(&scene);
    let whole = scene.registry.state().manifests[&format!("base/os:{manifest}")].clone();
    scene.registry.state().manifests.insert(format!("base/os:{manifest}"), [&whole[..], b" "].concat());
    assert_eq!(look(&scene, &manifest, "base/os:2", LONG).unwrap(), None);
    scene.registry.state().manifests.insert(format!("base/os:{manifest}"), whole);
    scene.registry.state().blobs.insert(("base/os".into(), config), b"{}".to_vec());
    assert_eq!(look(&scene, &manifest, "base/os:2", LONG).unwrap(), None);
}

#[test]
fn the_question_takes_no_longer_than_one_answer_may() {
    let scene = Scene::new(Guard::Nobody, &LAYERS).fail("GET", "manifests", 99, Then::Hang(LONG));
    let began = Instant::now();
    let error = look(&scene, &digest(b"x"), "base/os:1", Duration::from_millis(600)).unwrap_err();
    assert!(matches!(error, DeliverError::Hung { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
