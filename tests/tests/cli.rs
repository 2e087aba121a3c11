//! The real binary, from the outside: arguments, formats, exit codes, hostile work directories. Needs no container.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test file; clippy knows only #[test] functions as tests"
)]

use snapshot_tests::engine::binary;
use snapshot_tests::root_or_skip;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// `nobody` on every distribution.
const NOBODY: u32 = 65534;

fn engine(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_remove("SNAPSHOT_ENGINE_WORK_DIR").env_remove("RUST_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    engine(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn wrong_arguments_exit_with_2_and_say_the_remedy() {
    for args in [
        &[][..],
        &["nonsense"],
        &["commit", "web"],
        &["commit", "web", "docker://host/app:1"],
        &["commit", "web", "registry.example.com/app"],
        &["commit", "web", "docker-daemon:web"],
        &["commit", "web", "oci:/i:t", "--tls-key", "/key.pem"],
        &["commit", "../web", "oci:/i:t"],
        &["commit", "web", "oci:/i:t", "--max-pause", "soon"],
        &["commit", "web", "oci:/i:t", "--fs-version", "4"],
        &["seamless-commit", "--container", "web", "--pid", "1", "--target", "oci:/i:t"],
    ] {
        let out = run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{args:?}");
    }
    let out = run(&["commit", "web", "docker://user:secret@host/app:1"]);
    assert!(text(&out.stderr).contains("--password-stdin"), "{}", text(&out.stderr));
    let out = run(&["commit", "web", "oci:/i:t", "--fs-version", "4", "--output", "json"]);
    assert!(text(&out.stderr).contains("\"exit_code\": 2"), "{}", text(&out.stderr));
    let out = run(&["commit", "web", "nowhere", "--output=json"]);
    assert!(text(&out.stderr).trim_start().starts_with('{'), "{}", text(&out.stderr));
}

#[test]
fn an_empty_work_directory_has_no_snapshots_and_stays_empty() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().to_str().unwrap();
    let out = run(&["list", "--work-dir", dir]);
    assert!(out.status.success());
    assert_eq!(text(&out.stdout).lines().count(), 1, "only the heading");
    let out = engine(&["list", "--output", "json"]).env("SNAPSHOT_ENGINE_WORK_DIR", dir).output().unwrap();
    assert_eq!(text(&out.stdout).split_whitespace().collect::<String>(), r#"{"snapshots":[]}"#);
    assert!(run(&["stats", "--work-dir", dir]).status.success());
    for command in ["status", "resume", "remove"] {
        let out = run(&[command, "snapshot-1", "--work-dir", dir]);
        assert_eq!(out.status.code(), Some(1), "{command}");
        assert!(
            text(&out.stderr).starts_with("error: there is no snapshot `snapshot-1`\nhelp: "),
            "{command}"
        );
    }
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let out = run(&["completions", shell]);
        assert!(out.status.success() && text(&out.stdout).contains("seamless-commit"), "{shell}");
    }
    assert!(text(&run(&["man"]).stdout).contains(".TH"));
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["man", dir.path().to_str().unwrap()]).status.success());
    for page in ["snapshot-engine.1", "snapshot-engine-seamless-commit.1", "snapshot-engine-stats.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    let help = run(&["seamless-commit", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Examples:"));
}

#[test]
fn a_work_directory_that_cannot_be_written_exits_with_4() {
    if !root_or_skip() {
        return;
    }
    // Not even root can make a directory in sysfs.
    let out = run(&["commit", "web", "oci:/nowhere/images:t", "--work-dir", "/sys/kernel"]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("help: "), "{}", text(&out.stderr));
}

#[test]
fn without_privilege_it_exits_with_4_and_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    // nobody must be able to reach the binary, wherever the build is.
    let place =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
    let place = place.unwrap();
    let copy = place.path().join("snapshot-engine-copy");
    // By another process: a test beside us that forks while we had it open for writing would keep it from being run (ETXTBSY).
    assert!(Command::new("cp").arg(binary()).arg(&copy).status().unwrap().success());
    let nobody = |args: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(args).env_remove("SNAPSHOT_ENGINE_WORK_DIR").uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let dir = place.path().to_str().unwrap();
    let out = nobody(&["commit", "web", "oci:/tmp/images:t", "--work-dir", dir]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("CAP_SYS_ADMIN"), "{}", text(&out.stderr));
    // root's snapshots are not nobody's to see.
    fs::create_dir(place.path().join("snapshot-engine")).unwrap();
    let out = nobody(&["list", "--work-dir", dir]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("belongs to user 0"), "{}", text(&out.stderr));
}
