use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::access::{Access, Delivery};
use crate::model::change::Change;
use crate::model::fault::{Class, Fault};
use crate::model::format::{Compressor, ImageFormat};
use crate::model::globs::PathGlob;
use crate::model::nanos::Nanos;
use crate::model::options::CommitOptions;
use crate::pipeline::fake::{sample_cut, sample_image};

pub(crate) fn sample_record() -> Record {
    Record {
        version: 1,
        snapshot_id: "snapshot-1752857512540089368".parse().unwrap(),
        container: "web".parse().unwrap(),
        target: "oci:/images:v1".parse().unwrap(),
        options: CommitOptions::default().settled(),
        state: State::Completed,
        failure: None,
        cut: sample_cut(Path::new("/srv/frozen")),
        cut_time: Nanos(200_000_000),
        image_attempts: 1,
        image: Some(sample_image()),
        image_time: Some(Nanos(50_000_000)),
        delivery: None,
    }
}

/// A snapshot as `commit::cut` makes it.
fn publish(store: &Store, state: State) -> Claimed {
    let draft = store.begin().unwrap();
    fs::create_dir(draft.path().join("frozen")).unwrap();
    let record = Record { snapshot_id: draft.id(), state, image: None, image_time: None, ..sample_record() };
    draft.publish(record).unwrap()
}

fn names(store: &Store) -> Vec<String> {
    fs::read_dir(store.snapshots()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_schema_of_version_1() {
    let golden = include_str!("record-v1.json");
    let written = serde_json::to_string_pretty(&sample_record()).unwrap() + "\n";
    assert_eq!(
        written, golden,
        "a change of the schema must be readable by older engines, or raise SCHEMA_VERSION"
    );
    assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), sample_record());
}

#[test]
fn the_schema_of_version_2() {
    let target = "localhost:5000/team/web:1".parse().unwrap();
    let mut record = Record {
        version: version_for(&target, &sample_record().options),
        target,
        delivery: Some(Delivery {
            digest: "sha256:00".into(),
            sent_bytes: 4200,
            sent: 3,
            ..Delivery::default()
        }),
        ..sample_record()
    };
    record.options.access =
        Access { insecure: true, tls_ca: Some("/etc/ca.pem".into()), ..Access::default() };
    let golden = include_str!("record-v2.json");
    let written = serde_json::to_string_pretty(&record).unwrap() + "\n";
    assert_eq!(
        written, golden,
        "a change of the schema must be readable by older engines, or raise SCHEMA_VERSION"
    );
    assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), record);
    let sample = sample_record();
    assert_eq!((record.version, version_for(&sample.target, &sample.options)), (SCHEMA_VERSION, 1));
}

#[test]
fn what_an_older_engine_would_make_something_else_of_has_a_version_it_does_not_know() {
    let version = |options: CommitOptions| version_for(&sample_record().target, &options.settled());
    let usual = CommitOptions::default;
    assert_eq!(version(usual().compressor(Compressor::None).fs_version(5u32)), 1);
    assert_eq!(version(usual().format(ImageFormat::Oci)), 2);
    assert_eq!(version(usual().changes(vec!["USER x".parse::<Change>().unwrap()])), 2);
    assert_eq!(version(usual().without_paths(vec!["/x".parse::<PathGlob>().unwrap()])), 2);
}

#[test]
fn ids_are_unique_under_concurrency() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    let ids: Vec<SnapshotId> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    (0..20).map(|_| publish(&store, State::Pending).record().snapshot_id).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 160);
    assert_eq!(store.list().unwrap().len(), 160);
}

/// What a kill between any two steps leaves, built by hand; none of it is ever listed, and the next command removes it.
#[test]
fn a_kill_before_the_birth_leaves_nothing_that_counts() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    let record = serde_json::to_vec(&sample_record()).unwrap();
    type Step<'a> = (&'a str, &'a dyn Fn(&Path));
    let steps: [Step<'_>; 6] = [
        ("after mkdir", &|_| {}),
        ("after the lock", &|d| fs::write(d.join("lock"), "1").unwrap()),
        ("while the shadow grows", &|d| fs::create_dir_all(d.join("shadow/a/b")).unwrap()),
        ("after the freeze", &|d| fs::create_dir_all(d.join("frozen")).unwrap()),
        ("while the record is written", &|d| {
            fs::create_dir_all(d.join("frozen")).unwrap();
            fs::write(d.join("record.tmp"), &record[..20]).unwrap();
        }),
        ("a record without a frozen upperdir", &|d| {
            let pending = Record { state: State::Pending, ..sample_record() };
            fs::write(d.join("record.json"), serde_json::to_vec(&pending).unwrap()).unwrap();
        }),
    ];
    for (what, step) in steps {
        let dir = store.snapshots().join("snapshot-1752857512540089368");
        fs::create_dir(&dir).unwrap();
        step(&dir);
        assert!(store.list().unwrap().is_empty(), "{what}");
        assert!(matches!(store.find("snapshot-1752"), Err(Error::Unknown { .. })), "{what}");
        Store::open_existing(work.path()).unwrap().unwrap();
        assert!(dir.exists(), "{what}: reading changes nothing");
        Store::open(work.path()).unwrap();
        assert_eq!(names(&store), [""; 0], "{what}");
    }
    fs::create_dir_all(store.snapshots().join(".trash-snapshot-1/frozen/x")).unwrap();
    Store::open(work.path()).unwrap();
    assert_eq!(names(&store), [""; 0]);
}

#[test]
fn the_sweep_spares_what_is_held_and_what_it_does_not_understand() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    let draft = store.begin().unwrap();
    for (name, text) in [("snapshot-1", "not json"), ("snapshot-2", r#"{"version": 3}"#)] {
        fs::create_dir(store.snapshots().join(name)).unwrap();
        fs::write(store.snapshots().join(name).join("record.json"), text).unwrap();
    }
    fs::create_dir(store.snapshots().join("somebody's")).unwrap();
    Store::open(work.path()).unwrap();
    assert!(draft.path().exists());
    assert_eq!(names(&store).len(), 4);
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.record("snapshot-1".parse().unwrap()), Err(Error::Record { .. })));
    assert!(matches!(store.record("snapshot-2".parse().unwrap()), Err(Error::Version { version: 3, .. })));
    drop(draft);
    assert_eq!(names(&store).len(), 3);
}

#[test]
fn a_snapshot_without_its_process_is_interrupted_and_can_be_claimed() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    let claimed = publish(&store, State::Processing);
    let id = claimed.record().snapshot_id;
    claimed.set_progress(0.25);
    let status = store.status(id).unwrap();
    assert!(!status.interrupted && status.pid == Some(std::process::id()));
    assert!((status.progress - 0.25).abs() < 1e-9);
    assert!(matches!(store.claim(id), Err(Error::Busy { pid: Some(_) })));
    // A child that was given the descriptor holds the same lock.
    let shared = claimed.share_lock().unwrap();
    drop(claimed);
    assert!(!store.status(id).unwrap().interrupted);
    drop(shared);
    assert!(store.status(id).unwrap().interrupted);
    // Trying again clears the word; an unusable progress file is no error.
    fs::write(store.path(id).join("progress"), "NaN").unwrap();
    assert!(store.status(id).unwrap().progress.abs() < 1e-9);
    let mut again = store.claim(id).unwrap();
    again.update(|r| r.state = State::Completed).unwrap();
    assert!(!store.status(id).unwrap().interrupted);
}

#[test]
fn finds_by_prefix() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    for name in ["snapshot-120", "snapshot-1234", "snapshot-12"] {
        let dir = store.snapshots().join(name);
        fs::create_dir_all(dir.join("frozen")).unwrap();
        let record = Record { snapshot_id: name.parse().unwrap(), ..sample_record() };
        fs::write(dir.join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    }
    assert_eq!(store.find("123").unwrap().as_u64(), 1234);
    assert_eq!(store.find("snapshot-120").unwrap().as_u64(), 120);
    assert_eq!(store.find("12").unwrap().as_u64(), 12, "a whole id is not the beginning of another");
    assert!(matches!(store.find("1"), Err(Error::Ambiguous { count: 3, .. })));
    for unknown in ["", "9", "snapshot-", "../12", "x"] {
        assert!(matches!(store.find(unknown), Err(Error::Unknown { .. })), "{unknown}");
    }
    assert_eq!(
        store.list().unwrap().iter().map(|s| s.snapshot_id.as_u64()).collect::<Vec<_>>(),
        [12, 120, 1234]
    );
}

#[test]
fn a_hostile_work_directory_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("snapshot-engine");
    let elsewhere = work.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &root).unwrap();
    assert!(matches!(Store::open(work.path()), Err(Error::NotADirectory { .. })));
    assert!(matches!(Store::open_existing(work.path()), Err(Error::NotADirectory { .. })));
    fs::remove_file(&root).unwrap();

    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(work.path()).unwrap_err();
    assert!(matches!(error, Error::Open { mode: 0o755, .. }));
    assert_eq!(error.class(), Class::Permission);

    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(65534), None).unwrap();
        assert!(matches!(Store::open(work.path()), Err(Error::Owner { owner: 65534, .. })));
        std::os::unix::fs::chown(&root, Some(0), None).unwrap();
    }
    Store::open(work.path()).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);

    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(
        matches!(Store::open(work.path()), Err(Error::Open { .. })),
        "anybody could put another in its place"
    );
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    Store::open(work.path()).unwrap();
}

#[test]
fn pauses_of_many_processes_are_all_remembered() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(work.path()).unwrap();
    let pause = sample_cut(Path::new("/")).pause;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10).for_each(|_| super::pauses::remember(&store, &pause).unwrap()));
        }
    });
    assert_eq!(super::pauses::load(&store).unwrap().figures()[0].count, 40);
}
