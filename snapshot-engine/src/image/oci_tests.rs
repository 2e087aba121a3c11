use std::time::Duration;

use super::*;
use crate::image::nydus::{self, BlobLayer};
use crate::model::chunk::FsVersion;
use crate::model::config::Config;

fn content(bootstrap: &[u8], blobs: &[BlobLayer]) -> Vec<Layer> {
    nydus::layers(bootstrap, FsVersion::V6, blobs, 0).unwrap()
}

fn write(
    target: &OciTarget,
    layers: Vec<Layer>,
    config: &ImageConfig,
    created: SystemTime,
    care: Care,
) -> Result<ManifestDigest, ImageError> {
    super::write(target, Content { layers: &layers, base: Base::Merged }, config, created, care)
}

const SYNC: Care = Care { sync: true, verify: false };

fn some_config() -> ImageConfig {
    let run = Config { command: vec!["/bin/sh".into()], ..Config::default() };
    ImageConfig { run, message: "why".into(), ..ImageConfig::default() }
}

fn target(dir: &Path, tag: &str, overwrite: bool) -> OciTarget {
    OciTarget { dir: dir.to_owned(), tag: tag.to_owned(), overwrite }
}

fn blob(dir: &Path) -> BlobLayer {
    let bytes = b"blob bytes";
    let id = BlobId(Sha256::digest(bytes).into());
    let path = dir.join(id.to_string());
    std::fs::write(&path, bytes).unwrap();
    BlobLayer { id, path, size: bytes.len() as u64 }
}

fn read(store: &Path, digest: &str) -> Vec<u8> {
    let bytes = std::fs::read(store.join(digest.trim_start_matches("sha256:"))).unwrap();
    assert_eq!(super::digest(&bytes), digest);
    bytes
}

#[test]
fn layouts_are_valid_and_tags_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/layout");
    let blob = blob(dir.path());
    let config = some_config();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let one =
        write(&target(&out, "v1", false), content(b"boot", std::slice::from_ref(&blob)), &config, time, SYNC)
            .unwrap();
    let two =
        write(&target(&out, "v2", false), content(b"boot two", &[]), &config, time, Care::default()).unwrap();
    assert_ne!(one, two);
    let index: Value = serde_json::from_slice(&std::fs::read(out.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0]["annotations"][REF_NAME], "v1");

    let store = out.join("blobs/sha256");
    let manifest: Value = serde_json::from_slice(&read(&store, &one.0)).unwrap();
    let config: Value =
        serde_json::from_slice(&read(&store, manifest["config"]["digest"].as_str().unwrap())).unwrap();
    assert_eq!(config["config"]["Cmd"][0], "/bin/sh");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len());
    assert_eq!(layers.len(), config["history"].as_array().unwrap().len());
    assert_eq!(read(&store, layers[0]["digest"].as_str().unwrap()), b"blob bytes");
    assert_eq!(layers[0]["mediaType"], "application/vnd.oci.image.layer.nydus.blob.v1");
    let packed = read(&store, layers[1]["digest"].as_str().unwrap());
    let mut tar = Vec::new();
    io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut tar).unwrap();
    assert_eq!(digest(&tar), config["rootfs"]["diff_ids"][1].as_str().unwrap());
    let mut archive = tar::Archive::new(&tar[..]);
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [Path::new("image/"), Path::new("image/image.boot")]);
    assert_eq!(layers[1]["annotations"]["containerd.io/snapshot/nydus-fs-version"], "6");

    // The same image again, and another one of the same tag.
    let same = write(
        &target(&out, "v2", false),
        content(b"boot two", &[]),
        &ImageConfig::default(),
        time,
        Care::default(),
    );
    assert!(matches!(same, Err(ImageError::TargetExists { .. })), "another config is another image");
    let repeated = some_config();
    assert_eq!(
        write(&target(&out, "v2", false), content(b"boot two", &[]), &repeated, time, Care::default())
            .unwrap(),
        two
    );
    let again =
        write(&target(&out, "v1", false), content(b"x", &[]), &ImageConfig::default(), time, Care::default());
    assert!(matches!(again, Err(ImageError::TargetExists { tag, .. }) if tag == "v1"));
    let three =
        write(&target(&out, "v1", true), content(b"x", &[]), &ImageConfig::default(), time, Care::default())
            .unwrap();
    let index = read_index(&out).unwrap();
    assert_eq!(index.iter_tags().count(), 2);
    assert!(index.document.to_string().contains(&three.0) && !index.document.to_string().contains(&one.0));
}

#[test]
fn other_directories_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious"), "x").unwrap();
    let bad = |path: &Path| check(&target(path, "t", true));
    assert!(matches!(bad(dir.path()), Err(ImageError::NotALayout { .. })));
    assert!(matches!(bad(&dir.path().join("precious")), Err(ImageError::NotALayout { .. })));
    assert!(bad(&dir.path().join("new")).is_ok());
    assert!(matches!(check(&target(dir.path(), "-t", true)), Err(ImageError::BadTag { .. })));
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    assert!(bad(dir.path()).is_ok());
    std::fs::write(dir.path().join("index.json"), "{").unwrap();
    assert!(matches!(bad(dir.path()), Err(ImageError::Damaged { .. })));
}

#[test]
fn concurrent_writers_all_get_their_tag() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("layout");
    std::thread::scope(|scope| {
        for i in 0..8 {
            let out = &out;
            scope.spawn(move || {
                let target = target(out, &format!("t{i}"), false);
                write(
                    &target,
                    content(b"b", &[]),
                    &ImageConfig::default(),
                    SystemTime::UNIX_EPOCH,
                    Care::default(),
                )
                .unwrap();
            });
        }
    });
    assert_eq!(read_index(&out).unwrap().iter_tags().count(), 8);
}

#[test]
fn targets_parse() {
    let got: OciTarget = "oci:/a:b/dir:v1.0".parse().unwrap();
    assert_eq!((got.dir.to_str(), got.tag.as_str()), (Some("/a:b/dir"), "v1.0"));
    for bad in ["", "oci:", "oci:dir", "oci::tag", "oci:dir:", "docker:dir:tag", "oci:dir:.x"] {
        assert!(bad.parse::<OciTarget>().is_err(), "{bad}");
    }
}

#[test]
fn a_damaged_blob_of_an_earlier_try_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("layout");
    let mut blob = blob(dir.path());
    let placed = out.join("blobs/sha256").join(blob.id.to_string());
    std::fs::create_dir_all(placed.parent().unwrap()).unwrap();
    std::fs::write(&placed, b"blob bytEs").unwrap();
    let make = |blob: &BlobLayer, verify| {
        let care = Care { verify, ..SYNC };
        let config = ImageConfig::default();
        write(
            &target(&out, "v", true),
            content(b"boot", std::slice::from_ref(blob)),
            &config,
            SystemTime::UNIX_EPOCH,
            care,
        )
    };
    make(&blob, false).unwrap();
    assert_eq!(std::fs::read(&placed).unwrap(), b"blob bytEs", "name and length are enough");
    make(&blob, true).unwrap();
    assert_eq!(std::fs::read(&placed).unwrap(), b"blob bytes");
    // Its source is damaged too.
    blob.path = dir.path().join("source");
    std::fs::write(&blob.path, b"blob bytES").unwrap();
    std::fs::remove_file(&placed).unwrap();
    assert!(make(&blob, true).unwrap_err().to_string().contains("place the blob"));
}
