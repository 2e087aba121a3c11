//! OCI images judged by those who will unpack them: a model of our own, umoci, skopeo and tar. The reference is what a real overlay mount of the same layers
//! shows.
//!
//! Needs root (overlay mounts, owners, devices). `cargo xtask setup --tests` installs the judges.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::FileType;
use snapshot_engine::image::archive::{self, Image, Request};
use snapshot_engine::image::build;
use snapshot_engine::image::mount::mount as mount_image;
use snapshot_engine::image::oci::OciTarget;
use snapshot_engine::image::{ImageError, Quiet, Task};
use snapshot_engine::model::base::LayoutImage;
use snapshot_engine::model::format::{Compressor, Format, LayerCompression, ZstdLevel};
use snapshot_engine::model::globs::PathGlobs;
use snapshot_engine::model::ids::{IdMap, Ids};
use snapshot_tests::building::{layers_request as request, nydus, plain, task};
use snapshot_tests::everything::{everything, make, node, noise, xattr};
use snapshot_tests::layered::{FOLLOW, REDIRECT, layers};
use snapshot_tests::root_or_skip;
use snapshot_tests::unpacked::{GO, OciImage, must_be_equal, run, umoci};

const ALL: [LayerCompression; 3] =
    [LayerCompression::None, LayerCompression::Gzip, LayerCompression::Zstd(ZstdLevel::DEFAULT)];

fn made(request: &Request) -> Result<(Image, OciImage)> {
    let image = archive::build(request, &Quiet)?;
    let read = OciImage::read(&request.task.target.dir, &request.task.target.tag)?;
    ensure!(read.layers.len() == image.layers.len());
    Ok((image, read))
}

#[test]
fn everything_a_file_system_holds_arrives() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-everything-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    everything(&tree, true)?;
    for (n, compression) in ALL.into_iter().enumerate() {
        let request = Request { compression, ..request(dir.path(), &format!("v{n}"), &[], &tree) };
        let (image, read) = made(&request)?;
        ensure!(image.sockets == 1 && image.content_bytes > 20 << 20, "{image:?}");
        ensure!(read.manifest["layers"][0]["mediaType"] == compression.media_type());
        let at = dir.path().join(format!("unpacked-{n}"));
        read.unpack(&at)?;
        must_be_equal(&tree, &at, 90, &[]).with_context(|| format!("{compression:?}"))?;
    }
    Ok(())
}

#[test]
fn the_layers_show_what_the_overlay_shows() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    for (options, read_options) in [("", ""), (REDIRECT, FOLLOW)] {
        let layers = layers(options, true)?;
        let dir = layers.dir.path();
        let reference = layers.merged(read_options)?;
        let (image, read) = made(&request(dir, "one", &layers.lowers, &layers.upper))?;
        ensure!((read.layers.len(), image.cached_lowers) == (3, 0), "{image:?}");
        read.unpack(&dir.join("model"))?;
        must_be_equal(&reference.0, &dir.join("model"), 3100, &[]).context(options)?;
        umoci(&dir.join("layout"), "one", &dir.join("umoci"))?;
        must_be_equal(&reference.0, &dir.join("umoci"), 3100, GO)
            .with_context(|| format!("umoci {options}"))?;
        // The lowers come out of the cache, and the image is the same.
        let (again, _) = made(&request(dir, "two", &layers.lowers, &layers.upper))?;
        ensure!(again.cached_lowers == 2 && again.manifest == image.manifest, "{again:?}");
        // Another number of workers: the same bytes.
        let single = Task {
            workers: 1,
            cache_dir: dir.join("other-cache"),
            ..task(dir, "three", &layers.lowers, &layers.upper)
        };
        ensure!(made(&plain(single))?.0.manifest == image.manifest);
    }
    Ok(())
}

#[test]
fn skopeo_and_tar_take_the_image() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-skopeo-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    // No ACLs: GNU tar has records of its own for them.
    everything(&tree, false)?;
    let (_, read) = made(&request(dir.path(), "v1", &[], &tree))?;
    let from = format!("oci:{}:v1", dir.path().join("layout").display());
    // Into docker's form: every layer is unpacked, and compared with its diff id.
    let to = format!("docker-archive:{}:x:1", dir.path().join("docker.tar").display());
    run("skopeo", &["copy", "--insecure-policy", &from, &to].map(OsStr::new))?;
    let at = make(dir.path(), "tar")?;
    let args = [
        "--extract",
        "--gunzip",
        "--same-owner",
        "--same-permissions",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--directory",
    ];
    let mut args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    args.extend([at.as_os_str(), OsStr::new("--file"), read.layers[0].as_os_str()]);
    run("tar", &args)?;
    must_be_equal(&tree, &at, 90, &[])
}

#[test]
fn the_bases_layers_are_referred_to() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let layers = layers("", true)?;
    let dir = layers.dir.path();
    let (base, read) = made(&request(dir, "base", &layers.lowers[1..], &layers.lowers[0]))?;
    let by_config = read.manifest["config"]["digest"].as_str().context("a digest")?.to_owned();
    let reference = layers.merged("")?;
    // Neither read nor written again: the cache stays where it is.
    for (tag, digest) in [("by-manifest", base.manifest.0.clone()), ("by-config", by_config)] {
        let cache_dir = dir.join(format!("cache-{tag}"));
        let task = Task { cache_dir, ..task(dir, tag, &layers.lowers, &layers.upper) };
        let request = Request { base_digest: Some(digest), ..plain(task) };
        let (image, read) = made(&request)?;
        ensure!((image.of_base, read.layers.len()) == (2, 3), "{image:?}");
        ensure!(image.layers[..2] == base.layers[..], "{image:?}");
        ensure!(fs::read_dir(request.task.cache_dir.join("blobs"))?.count() == 0);
        read.unpack(&dir.join(tag))?;
        must_be_equal(&reference.0, &dir.join(tag), 3100, &[])?;
    }
    // From another layout: its layers are brought along. A lower it does not account for becomes a layer of its own.
    let named = LayoutImage { dir: dir.join("layout"), tag: "base".to_owned() };
    let runtimes_own = make(dir, "own")?;
    fs::write(runtimes_own.join(".dockerenv"), "")?;
    let mut lowers = vec![runtimes_own];
    lowers.extend(layers.lowers.iter().cloned());
    let target = OciTarget { dir: dir.join("other"), tag: "t".to_owned(), overwrite: false };
    let elsewhere = Task { target, ..task(dir, "named", &lowers, &layers.upper) };
    let request_named = Request { base: Some(named.clone()), ..plain(elsewhere) };
    let (image, read) = made(&request_named)?;
    ensure!((image.of_base, read.layers.len()) == (2, 4), "{image:?}");
    read.unpack(&dir.join("named"))?;
    ensure!(dir.join("named/.dockerenv").exists());
    // One that is not there, or not whole.
    let missing = LayoutImage { tag: "none".to_owned(), ..named.clone() };
    let refused =
        archive::build(&Request { base: Some(missing), ..request(dir, "x", &lowers, &layers.upper) }, &Quiet);
    ensure!(matches!(refused, Err(ImageError::NoBase { .. })), "{refused:?}");
    fs::remove_file(&base.layers[0].path)?;
    let refused =
        archive::build(&Request { base: Some(named), ..request(dir, "x", &lowers, &layers.upper) }, &Quiet);
    ensure!(matches!(refused, Err(ImageError::NoBase { .. })), "{refused:?}");
    // Found by its digest and not whole: then the lowers become layers.
    let request = Request {
        base_digest: Some(base.manifest.0),
        ..request(dir, "whole", &layers.lowers, &layers.upper)
    };
    ensure!(made(&request)?.0.of_base == 0);
    Ok(())
}

#[test]
fn owners_are_those_that_the_container_sees() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-ids-").tempdir()?;
    let (lower, upper) = (make(dir.path(), "lower")?, make(dir.path(), "upper")?);
    fs::write(lower.join("mapped-already"), "x")?;
    for (path, uid, gid) in [(upper.join("a"), 100_000, 100_005), (upper.join("b"), 7, 100_000)] {
        fs::write(&path, "x")?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
    }
    std::os::unix::fs::chown(&upper, Some(100_000), Some(100_000))?;
    let map = IdMap::parse("0 100000 65536").context("a map")?;
    let ids = Ids { users: map.clone(), groups: map };
    let (_, read) = made(&plain(Task { ids, ..task(dir.path(), "v1", &[lower], &upper) }))?;
    let at = dir.path().join("at");
    read.unpack(&at)?;
    let owner = |name: &str| fs::metadata(at.join(name)).map(|m| (m.uid(), m.gid()));
    ensure!(owner("a")? == (0, 5) && owner("b")? == (65534, 0) && owner(".")? == (0, 0));
    ensure!(owner("mapped-already")? == (0, 0));
    Ok(())
}

/// What the format cannot hold is refused by name, and marks that were not overlayfs' own never get into an image.
#[test]
fn what_would_mean_something_else_is_refused_or_left_out() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-unfit-").tempdir()?;
    let reserved = make(dir.path(), "reserved")?;
    fs::write(make(&reserved, "etc")?.join(".wh.passwd"), "")?;
    let refused = archive::build(&request(dir.path(), "v1", &[], &reserved), &Quiet);
    ensure!(
        matches!(&refused, Err(ImageError::Unfit { path, .. }) if path == Path::new("etc/.wh.passwd")),
        "{refused:?}"
    );
    let marked = make(dir.path(), "marked")?;
    fs::write(marked.join("f"), "x")?;
    xattr(&marked.join("f"), "user.overlay.opaque", b"y")?;
    xattr(&marked.join("f"), "trusted.overlay.overlay.opaque", b"y")?;
    xattr(&marked.join("f"), "user.own", b"1")?;
    let (_, read) = made(&request(dir.path(), "v2", &[], &marked))?;
    // The model refuses such attributes.
    read.unpack(&dir.path().join("at"))?;
    let equals = make(dir.path(), "equals")?;
    fs::write(equals.join("f"), "x")?;
    xattr(&equals.join("f"), "user.a=b", b"1")?;
    let refused = archive::build(&request(dir.path(), "v3", &[], &equals), &Quiet);
    ensure!(matches!(refused, Err(ImageError::Unfit { .. })), "{refused:?}");
    Ok(())
}

/// More than the blocks of the stream, names that no header holds, a file that shrank under its reader: nothing of it hangs or lies.
#[test]
fn large_and_deep_trees() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-large-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    fs::write(tree.join("large"), noise(5, 40 << 20))?;
    fs::File::create(tree.join("hole"))?.set_len((8 << 30) + 4096)?;
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o700))?;
    let zstd = LayerCompression::Zstd(ZstdLevel::DEFAULT);
    let image =
        archive::build(&Request { compression: zstd, ..request(dir.path(), "v1", &[], &tree) }, &Quiet)?;
    ensure!(image.content_bytes == (8 << 30) + 4096 + (40 << 20), "{image:?}");
    ensure!(image.stored_bytes < 60 << 20, "{image:?}");
    let listed = std::process::Command::new("tar")
        .args(["--zstd", "--list", "--verbose", "--file"])
        .arg(&image.layers[0].path)
        .output()?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(listed.contains("8589938688") && listed.contains("41943040"), "{listed}");
    Ok(())
}

/// What is left out is as if the container had not touched it, in images of both kinds.
#[test]
fn paths_are_left_out() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-without-").tempdir()?;
    let (lower, upper) = (make(dir.path(), "lower")?, make(dir.path(), "upper")?);
    for (layer, word) in [(&lower, "below"), (&upper, "own")] {
        for name in ["etc/conf", "var/cache/a", "var/cache/deep/b", "srv/x.pyc", "srv/keep"] {
            let path = layer.join(name);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, word)?;
        }
    }
    fs::remove_file(upper.join("etc/conf"))?;
    node(&upper.join("etc/conf"), FileType::CharacterDevice, 0, 0)?;
    fs::write(upper.join("srv/new.pyc"), "own")?;
    let globs =
        ["/var/cache/*", "*.pyc", "/etc"].map(str::parse).into_iter().collect::<Result<Vec<_>, _>>()?;
    let without = PathGlobs::of(&globs);
    let expected = [
        ("etc/conf", Some("below")),
        ("var/cache/a", Some("below")),
        ("var/cache/deep/b", Some("below")),
        ("srv/x.pyc", Some("below")),
        ("srv/new.pyc", None),
        ("srv/keep", Some("own")),
    ];
    let check = |root: &Path| -> Result<()> {
        for (name, content) in expected {
            let found = fs::read_to_string(root.join(name)).ok();
            ensure!(found.as_deref() == content, "{name}: {found:?}");
        }
        Ok(())
    };
    let lowers = [lower];
    let own = |name| Task { without: without.clone(), ..task(dir.path(), name, &lowers, &upper) };
    let (_, read) = made(&plain(own("v1")))?;
    let names = read.paths()?.pop().context("a layer")?;
    ensure!(!names.iter().any(|name| name.as_encoded_bytes().starts_with(b"etc")), "{names:?}");
    read.unpack(&dir.path().join("oci"))?;
    check(&dir.path().join("oci"))?;
    let format = Format { compressor: Compressor::None, ..Format::default() };
    let image = build::build(&nydus(own("v2"), format), &Quiet)?;
    let mounted = mount_image(&image, &make(dir.path(), "erofs")?)?;
    check(mounted.path())
}
