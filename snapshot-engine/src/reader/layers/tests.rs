//! Whole layouts, opened.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::reader::unpack::{Options, unpack};
use crate::reader::{Opened, ReaderError, Source, check, open};

fn blob(dir: &Path, bytes: &[u8]) -> Value {
    let hex = hex::encode(Sha256::digest(bytes));
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("blobs/sha256").join(&hex), bytes).unwrap();
    json!({"mediaType": "application/octet-stream", "digest": format!("sha256:{hex}"), "size": bytes.len()})
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A manifest of these layers, each with the digest of its tar.
fn manifest(dir: &Path, layers: &[(Value, String)]) -> Value {
    let diff_ids: Vec<&String> = layers.iter().map(|(_, diff_id)| diff_id).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(dir, config.to_string().as_bytes());
    let layers: Vec<&Value> = layers.iter().map(|(layer, _)| layer).collect();
    blob(dir, json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().as_bytes())
}

fn tag(dir: &Path, manifest: &Value) {
    fs::write(dir.join("index.json"), json!({"manifests": [manifest]}).to_string()).unwrap();
}

fn image(layers: &[(Vec<u8>, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<_> = layers.iter().map(|(file, tar)| (blob(dir.path(), file), sha256(tar))).collect();
    tag(dir.path(), &manifest(dir.path(), &layers));
    dir
}

fn opened(dir: &Path) -> Result<Opened, ReaderError> {
    open(&Source::Layout { dir: dir.to_owned(), tag: None }, Some(dir))
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn problems(opened: &Opened) -> Vec<String> {
    opened.problems.iter().map(|p| format!("{}: {}", p.place, p.what)).collect()
}

#[test]
fn layers_are_read_however_they_are_compressed() {
    let large = vec![7; 3 << 20];
    let tars = [
        tar(&[("a", b"below"), ("b/x", b"1"), ("large", &large)]),
        tar(&[("a", b"above"), ("b/.wh.x", b"")]),
        tar(&[("c", b"third")]),
        Vec::new(),
    ];
    let (half, rest) = tars[2].split_at(700);
    let dir = image(&[
        (tars[0].clone(), tars[0].clone()),
        (zstd::encode_all(&tars[1][..], 1).unwrap(), tars[1].clone()),
        // Several members are one stream.
        ([gzip(half), gzip(rest)].concat(), tars[2].clone()),
        (Vec::new(), Vec::new()),
    ]);
    let opened = opened(dir.path()).unwrap().complete().unwrap();
    let layers = opened.layers.as_ref().unwrap();
    assert_eq!(
        layers.iter().map(|layer| (layer.entries, layer.whiteouts)).collect::<Vec<_>>(),
        [(3, 0), (2, 1), (1, 0), (0, 0)]
    );
    let at = dir.path().join("at");
    let report =
        unpack(&opened, &at, Options { unprivileged: true, ..Options::default() }, &|_, _| {}).unwrap();
    assert_eq!((report.entries, report.bytes), (5, (3 << 20) + 10));
    assert_eq!(
        (fs::read(at.join("a")).unwrap(), fs::read(at.join("c")).unwrap()),
        (b"above".to_vec(), b"third".to_vec())
    );
    assert!(
        fs::read(at.join("large")).unwrap() == large && fs::read_dir(at.join("b")).unwrap().next().is_none()
    );
    assert_eq!(fs::metadata(at.join("a")).unwrap().mode() & 0o7777, 0o640);
    let report = check::check(&opened, &|_, _| {});
    assert!(report.is_sound() && report.blobs == 4 && report.tar_bytes.unwrap() > 3 << 20, "{report:?}");
}

#[test]
fn everything_that_is_wrong_is_told_and_the_rest_is_read() {
    let good = tar(&[("good", b"x")]);
    let noise: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let cut = gzip(&tar(&[("half", &noise)]));
    let dir = image(&[
        (good.clone(), good.clone()),
        (good.clone(), b"another".to_vec()),
        (cut[..cut.len() / 2].to_vec(), good.clone()),
        (b"no tar at all".repeat(100), good.clone()),
        (tar(&[("../out", b"x"), ("in", b"x")]), tar(&[("../out", b"x"), ("in", b"x")])),
    ]);
    let opened = opened(dir.path()).unwrap();
    let said = problems(&opened);
    assert_eq!(said.len(), 4, "{said:#?}");
    for (said, part) in
        said.iter().zip(["the config says", "cut off", "checksum", "../out: its path leads out"])
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(opened.image.tree.lookup(b"good").is_some() && opened.image.tree.lookup(b"in").is_some());
    assert!(matches!(opened.sound(), Err(ReaderError::Damaged { count: 4, .. })));

    // A layer that is something else than its name says, and one that is not there.
    let dir = image(&[(good.clone(), good.clone()), (cut.clone(), good)]);
    let store = dir.path().join("blobs/sha256");
    fs::write(store.join(hex::encode(Sha256::digest(&cut))), &cut[..cut.len() - 1]).unwrap();
    assert!(
        problems(&super::super::open(&Source::Layout { dir: dir.path().into(), tag: None }, None).unwrap())
            .iter()
            .any(|said| said.contains("are described"))
    );
    fs::remove_file(store.join(hex::encode(Sha256::digest(&cut)))).unwrap();
    let said =
        problems(&super::super::open(&Source::Layout { dir: dir.path().into(), tag: None }, None).unwrap());
    assert!(said.len() == 1 && said[0].contains("it is missing"), "{said:?}");
}

/// 200 MB of zeros in a few bytes: holes.
#[test]
fn zeros_take_no_room() {
    let big = tar(&[("zeros", &vec![0; 200 << 20])]);
    let dir = image(&[(zstd::encode_all(&big[..], 1).unwrap(), big)]);
    let opened = opened(dir.path()).unwrap().complete().unwrap();
    let kept = opened.files[0].get().unwrap().metadata().unwrap();
    assert_eq!((kept.len(), kept.blocks()), (200 << 20, 0));
}

/// Memory goes by the bytes of the layer, not by how many entries they stand for.
#[test]
fn entries_out_of_nothing_are_refused() {
    let many = tar(&[("again", b"")])[..512].repeat(200_000);
    let layer = zstd::encode_all(&many[..], 1).unwrap();
    assert!(layer.len() < 50_000, "{}", layer.len());
    let dir = image(&[(layer, many)]);
    let opened = opened(dir.path()).unwrap();
    let said = problems(&opened);
    assert!(said.len() == 1 && said[0].contains("more entries than layers of this length"), "{said:?}");
    assert!(opened.layers.unwrap()[0].entries < 100_000);
    // One path of directories that nobody names, again and again.
    let deep = "d/".repeat(40);
    let names: Vec<String> = (0..8000).map(|n| format!("{n}/{deep}f")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let tar = tar(&files);
    let dir = image(&[(zstd::encode_all(&tar[..], 1).unwrap(), tar)]);
    let said =
        problems(&super::super::open(&Source::Layout { dir: dir.path().into(), tag: None }, None).unwrap());
    assert!(said[0].contains("directories that nobody names"), "{said:?}");
}

#[test]
fn of_an_index_the_image_for_this_machine_is_read() {
    let good = tar(&[("good", b"x")]);
    let dir = image(&[]);
    let layer = blob(dir.path(), &good);
    let own = manifest(dir.path(), &[(layer, sha256(&good))]);
    let other = manifest(dir.path(), &[]);
    let own_machine = crate::model::config::Platform::default().or_this_machine();
    let with = |mut manifest: Value, architecture: &str| {
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifest
    };
    let index = |manifests: Vec<Value>| {
        blob(dir.path(), json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes())
    };
    let wrong = with(other.clone(), "pdp11");
    tag(dir.path(), &index(vec![wrong.clone(), with(own.clone(), &own_machine.architecture)]));
    let opened_own = opened(dir.path()).unwrap().sound().unwrap();
    assert_eq!(opened_own.layout.unwrap().manifest, own["digest"].as_str().unwrap());
    assert!(opened_own.image.tree.lookup(b"good").is_some());
    tag(dir.path(), &index(vec![wrong]));
    let refused = opened(dir.path()).unwrap_err();
    assert!(refused.to_string().contains("no image for linux/"), "{refused}");
}
