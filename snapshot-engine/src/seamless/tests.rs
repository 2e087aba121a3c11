use super::*;
use crate::pipeline::fake::{Fake, Then};

fn engine(work: &std::path::Path, image: Then) -> SeamlessSnapshot {
    let options = CommitOptions::default().work_dir(work);
    SeamlessSnapshot::with_stages(options, Arc::new(Fake::new(Then::Succeed, image)))
}

fn target(work: &std::path::Path) -> String {
    format!("oci:{}:v1", work.join("layout").display())
}

/// The cut checks privileges first.
fn privileged(result: &Result<SnapshotResult, Error>) -> bool {
    let skip = matches!(result, Err(Error::Privilege { .. }));
    assert!(!skip || std::env::var_os("CI").is_none(), "CI must run these tests as root");
    !skip
}

#[test]
fn waits_reports_and_times_out() {
    let work = tempfile::tempdir().unwrap();
    let long = Duration::from_secs(20);
    let done = engine(work.path(), Then::Succeed).commit_with_wait("web", &target(work.path()), long);
    if !privileged(&done) {
        return;
    }
    assert_eq!(done.unwrap().state, State::Completed);

    let slow = engine(work.path(), Then::Take(Duration::from_millis(400)));
    let error = slow.commit_with_wait("web", &target(work.path()), Duration::from_millis(20)).unwrap_err();
    let Error::StillProcessing { id, .. } = error else { panic!("{error}") };
    assert!(!slow.get_status(id).unwrap().interrupted);
    let began = Instant::now();
    while slow.get_status(id).unwrap().state != State::Completed {
        assert!(began.elapsed() < long);
        thread::sleep(Duration::from_millis(10));
    }

    let failing = engine(work.path(), Then::Fail);
    let error = failing.commit_with_wait("web", &target(work.path()), long).unwrap_err();
    let Error::Failed { id, .. } = error else { panic!("{error}") };
    assert_eq!(failing.get_status(id).unwrap().state, State::Failed);
    assert!(failing.get_status("snapshot-1".parse().unwrap()).is_err());
}

#[test]
fn the_json_of_a_result() {
    let record = store::tests::sample_record();
    let json = serde_json::to_value(SnapshotResult::new(&record, Duration::from_millis(250))).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "snapshot_id": "snapshot-1752857512540089368",
            "container": "web",
            "target": "oci:/images:v1",
            "state": "completed",
            "pause_time": {"ns": 6400, "human": "6.4us"},
            "total_time": {"ns": 250_000_000, "human": "250.0ms"},
            "old_upper_dir": "/srv/frozen",
            "new_upper_dir": "/upper",
            "gate": "fence",
            "attempts": 1,
            "longest_stop": {"ns": 6100, "human": "6.1us"},
            "rounds": 3,
            "residual_inodes": 4,
            "residual_bytes": 8192,
            "voided": 0,
            "tracker": "tracepoints",
            "tracker_misses": 0,
            "image": {
                "manifest": "sha256:00",
                "bootstrap": "/layout/blobs/sha256/01",
                "blobs": ["/layout/blobs/sha256/02"],
                "entries": 7,
                "chunks": 5,
                "content_bytes": 9000,
                "stored_bytes": 4000,
                "timings": []
            },
            "timings": [{"stage": "window", "ns": 9000}]
        })
    );
}
