use std::path::PathBuf;

use clap::CommandFactory;
use snapshot_engine::model::format::{ImageFormat, LayerCompression};
use snapshot_engine::model::nanos::{Nanos, Span};
use snapshot_engine::model::options::CommitOptions;
use snapshot_engine::model::reference::{ContainerRef, Runtime};
use snapshot_engine::model::snapshot::Gate;
use snapshot_engine::{SnapshotResult, State};

use super::args::{Cli, Command, Wanted};
use super::*;

fn wanted(args: &[&str]) -> std::result::Result<Wanted, clap::Error> {
    let cli = Cli::try_parse_from(std::iter::once(&"snapshot-engine").chain(args))?;
    Ok(match cli.command {
        Command::SeamlessCommit(args) => args.into(),
        Command::Commit(args) => args.into(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn clap_finds_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn every_visible_command_has_examples() {
    for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains("Examples:") && after.contains("snapshot-engine"), "{}", command.get_name());
    }
}

#[test]
fn the_defaults_are_the_librarys() {
    let long =
        wanted(&["seamless-commit", "--container", "web", "--target", "oci:/i:t", "--work-dir", "/tmp"])
            .unwrap();
    assert_eq!(long.options, CommitOptions::default());
    assert!(!long.wait);
    let short = wanted(&["commit", "web", "oci:/i:t", "--work-dir", "/tmp"]).unwrap();
    assert_eq!((short.container, short.target, short.options), (long.container, long.target, long.options));
}

#[test]
fn containers_and_pids() {
    let pid = wanted(&["seamless-commit", "--pid", "7", "--target", "oci:/i:t"]).unwrap();
    assert_eq!(pid.container, ContainerRef::Pid(7));
    assert_eq!(wanted(&["commit", "pid:7", "oci:/i:t"]).unwrap().container, ContainerRef::Pid(7));
    for bad in [
        &["seamless-commit", "--target", "oci:/i:t"][..],
        &["seamless-commit", "--pid", "7", "--container", "c", "--target", "oci:/i:t"],
        &["seamless-commit", "--pid", "0", "--target", "oci:/i:t"],
        &["seamless-commit", "--container", "c"],
        &["commit", "c", "docker://x/y"],
        &["commit", "c", "oci:/i:t", "--gate", "wall"],
        &["commit", "c", "oci:/i:t", "--max-pause", "1"],
    ] {
        assert!(wanted(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn runtimes_are_looked_for_where_flags_say() {
    let args = "commit docker://web oci:/i:t --docker-host unix:///srv/d.sock --runc-root /srv/runc --podman-root /srv/pods";
    let w = wanted(&args.split(' ').collect::<Vec<_>>()).unwrap();
    assert_eq!(w.container, ContainerRef::At { runtime: Runtime::Docker, name: "web".into() });
    let places = w.runtimes.places();
    assert_eq!((places.docker.len(), places.docker[0].path.to_str()), (1, Some("/srv/d.sock")));
    assert!(!places.docker[0].usual, "what was asked for must be there");
    assert_eq!(places.runc, [std::path::Path::new("/srv/runc")]);
    assert_eq!(places.storage.len(), 1);
    assert!(places.containerd.iter().all(|socket| socket.usual) && !places.crun.is_empty());
    for bad in [
        "--docker-host ssh://host",
        "--containerd-address tcp://127.0.0.1:1",
        "--podman-runroot /x",
        "--runtimes-of 0",
    ] {
        let args = format!("commit web oci:/i:t {bad}");
        assert!(wanted(&args.split(' ').collect::<Vec<_>>()).is_err(), "{bad}");
    }
}

#[test]
fn options_arrive() {
    let args =
        "commit c oci:/i:t --max-pause 500us --chunk-size 64KiB --compressor zstd --keep-frozen=false --wait";
    let w = wanted(&args.split(' ').collect::<Vec<_>>()).unwrap();
    assert_eq!((w.options.max_pause, w.options.chunk_size), (Nanos(500_000), 64 << 10));
    assert_eq!(
        (w.options.rafs().unwrap().compressor.to_string(), w.options.keep_frozen, w.wait),
        ("zstd".to_owned(), false, true)
    );
}

#[test]
fn the_format_of_the_image_arrives() {
    let args = "commit c oci:/i:t --fs-version 5 --compressor zstd:19 --digest sha256 --blob-layout inline --prefetch /a --prefetch /b \
                --parent bootstrap=/p --chunk-dict bootstrap=/d,blobs=/e --full";
    let options = wanted(&args.split_whitespace().collect::<Vec<_>>()).unwrap().options;
    let format = options.rafs().unwrap();
    assert_eq!((format.version.number(), format.compressor.to_string()), (5, "zstd:19".to_owned()));
    assert_eq!((format.digester.to_string(), format.layout.to_string()), ("sha256".into(), "inline".into()));
    assert_eq!(options.prefetch, ["/a", "/b"].map(PathBuf::from));
    assert_eq!(options.parent.unwrap().to_string(), "bootstrap=/p");
    assert_eq!(options.chunk_dict[0].to_string(), "bootstrap=/d,blobs=/e");
    assert!(options.full && !wanted(&["commit", "c", "oci:/i:t"]).unwrap().options.full);
}

#[test]
fn what_an_oci_image_is_made_of_arrives() {
    let args = "commit c oci:/i:t --format oci --base-image oci:/b:v1 --without-path /tmp/* --without-path *.pyc --with-path /srv//db/ --with-path /a";
    let args: Vec<&str> =
        args.split_whitespace().chain(["--change", "ENV A=b", "-c", r#"CMD ["x"]"#]).collect();
    let options = wanted(&args).unwrap().options;
    options.validate().unwrap();
    assert_eq!((options.format, options.layers()), (ImageFormat::Oci, LayerCompression::Gzip));
    assert_eq!(options.base_image.unwrap().to_string(), "oci:/b:v1");
    let changes: Vec<String> = options.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["ENV A=b", r#"CMD ["x"]"#]);
    let without: Vec<String> = options.without_paths.iter().map(ToString::to_string).collect();
    assert_eq!(without, ["/tmp/*", "*.pyc"]);
    let with: Vec<&str> = options.with_paths.iter().filter_map(|path| path.to_str()).collect();
    assert_eq!(with, ["/srv/db", "/a"]);
    for bad in
        [["--change", "RUN x"], ["--without-path", "/"], ["--base-image", "/b:v1"], ["--format", "tar"]]
    {
        assert!(wanted(&[&["commit", "c", "oci:/i:t"][..], &bad[..]].concat()).is_err(), "{bad:?}");
    }
}

#[test]
fn the_text_of_a_commit_is_exact() {
    let span = |ns| Span::from(Nanos(ns));
    let mut result = SnapshotResult {
        snapshot_id: "snapshot-1752857512540089368".parse().unwrap(),
        container: "web".into(),
        target: "oci:/i:t".into(),
        state: State::Pending,
        pause_time: span(6_400),
        total_time: span(1),
        old_upper_dir: "/old".into(),
        new_upper_dir: "/new".into(),
        with_paths: vec![],
        gate: Gate::Fence,
        attempts: 1,
        longest_stop: span(6_100),
        rounds: 1,
        residual_inodes: 0,
        residual_bytes: 0,
        voided: 0,
        tracker: None,
        delivery: None,
        tracker_misses: 0,
        image: None,
        timings: vec![],
    };
    assert_eq!(
        commit::text(&result) + commit::COMPLETED,
        "Seamless snapshot created successfully:\n  \
           Snapshot ID: snapshot-1752857512540089368\n  \
           Pause Time: 6.4us (gate: fence, attempts: 1, longest stop of a task: 6.1us)\n  \
           Old Upper Dir: /old\n  \
           New Upper Dir: /new\n\
         Background commit processing started for snapshot: snapshot-1752857512540089368\n\
         Background processing completed successfully.\n"
    );
    result.with_paths = vec!["/srv/db".into()];
    assert!(commit::text(&result).contains("  New Upper Dir: /new\n  With Path: /srv/db\nBackground"));
}

#[test]
fn json_is_meant_even_where_the_arguments_are_wrong() {
    let sniff = |args: &[&str]| Format::sniff(&args.iter().map(OsString::from).collect::<Vec<_>>());
    assert_eq!(sniff(&["x", "--output", "json", "nonsense"]), Format::Json);
    assert_eq!(sniff(&["x", "--output=json"]), Format::Json);
    assert_eq!(sniff(&["x", "json"]), Format::Text);
}

#[test]
fn how_the_target_is_reached_arrives() {
    let args = "commit c localhost:5000/a:1 --tls-ca /ca --tls-cert /cert --tls-key /key --target-insecure --target-timeout 2s --username me";
    let access = wanted(&args.split_whitespace().collect::<Vec<_>>()).unwrap().options.access;
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!((access.tls_ca, access.tls_cert, access.tls_key), (path("/ca"), path("/cert"), path("/key")));
    assert_eq!((access.insecure, access.timeout), (true, Nanos(2_000_000_000)));
}
