//! Images of plain layers read back: our own and those of umoci and tar, beside what overlayfs shows and what umoci unpacks; and layers that mean harm.
//!
//! Needs root (overlay mounts, owners, devices). `cargo xtask setup --tests` installs the judges.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use snapshot_engine::image::archive::{self, Request};
use snapshot_engine::image::mount::mount_files;
use snapshot_engine::image::{Quiet, Task, build};
use snapshot_engine::model::chunk::{ChunkSize, Format};
use snapshot_engine::model::format::{LayerCompression, ZstdLevel};
use snapshot_tests::building::{layers_request, plain, request, task};
use snapshot_tests::engine::engine;
use snapshot_tests::everything::{everything, make, noise};
use snapshot_tests::layered::layers;
use snapshot_tests::root_or_skip;
use snapshot_tests::unpacked::{GO, must_be_equal, run, umoci};

const ALL: [LayerCompression; 3] =
    [LayerCompression::None, LayerCompression::Gzip, LayerCompression::Zstd(ZstdLevel::DEFAULT)];

fn image<A: AsRef<OsStr>>(command: &str, args: &[A]) -> Result<Output> {
    Ok(engine(["image", command]).args(args).args(["--output", "json"]).output()?)
}

/// The answer of a command of `image`, and its exit code.
fn answer(command: &str, args: &[&str]) -> Result<(Value, i32)> {
    let out = image(command, args)?;
    let said = || format!("{command} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok((serde_json::from_slice(&out.stdout).with_context(said)?, out.status.code().with_context(said)?))
}

fn unpacked(name: &str, to: &Path) -> Result<Value> {
    let (report, code) = answer("unpack", &[name, &to.display().to_string()])?;
    ensure!(code == 0 && report["left_out"] == 0, "{report}");
    Ok(report)
}

#[test]
fn our_layers_show_what_the_overlay_shows() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let layers = layers("", true)?;
    let dir = layers.dir.path();
    let reference = layers.merged("")?;
    for (n, compression) in ALL.into_iter().enumerate() {
        let tag = format!("v{n}");
        let cache_dir = dir.join(format!("cache-{n}"));
        let task = Task { cache_dir, ..task(dir, &tag, &layers.lowers, &layers.upper) };
        let request = Request { compression, ..plain(task) };
        archive::build(&request, &Quiet)?;
        let name = format!("{}:{tag}", dir.join("layout").display());
        let (report, code) = answer("check", &[&name])?;
        ensure!(code == 0 && report["problems_found"] == 0 && report["blobs"] == 3, "{report:#}");
        let (summary, _) = answer("inspect", &[&name])?;
        ensure!(
            summary["kind"] == "oci" && summary["layers"][2]["whiteouts"].as_u64() > Some(2),
            "{summary:#}"
        );
        ensure!(summary["counts"]["entries"].as_u64() > Some(3100), "{summary:#}");
        let at = dir.join(format!("at-{n}"));
        unpacked(&name, &at)?;
        must_be_equal(&reference.0, &at, 3100, &[]).with_context(|| format!("{compression:?}"))?;
    }
    let names = |n: u8| format!("{}:v{n}", dir.join("layout").display());
    let (equal, code) = answer("diff", &[&names(0), &names(2)])?;
    ensure!(code == 0 && equal["equal"] == true, "{equal:#}");
    Ok(())
}

/// An image as others make them: everything in one layer, and a second one that changes and removes.
#[test]
fn layers_of_umoci_show_what_umoci_unpacks() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-umoci-").tempdir()?;
    let layout = dir.path().join("layout");
    let say = |args: &[&str]| run("umoci", &args.iter().map(OsStr::new).collect::<Vec<_>>());
    let at = layout.display().to_string();
    let (name, bundle) = (format!("{at}:v1"), dir.path().join("bundle"));
    say(&["init", "--layout", &at])?;
    say(&["new", "--image", &name])?;
    let bundle_name = bundle.display().to_string();
    let root = bundle.join("rootfs");
    say(&["unpack", "--image", &name, &bundle_name])?;
    everything(&root, true)?;
    // Go's writer refuses it, as tar has none.
    fs::remove_file(root.join("socket"))?;
    fs::write(make(&root, "gone")?.join("f"), "x")?;
    say(&["repack", "--image", &name, &bundle_name])?;
    fs::remove_dir_all(&bundle)?;
    say(&["unpack", "--image", &name, &bundle_name])?;
    fs::remove_dir_all(root.join("gone"))?;
    fs::remove_file(root.join("size-65537"))?;
    fs::write(root.join("new"), noise(1, 3 << 20))?;
    fs::write(root.join("text"), "shorter")?;
    say(&["repack", "--image", &name, &bundle_name])?;
    umoci(&layout, "v1", &dir.path().join("umoci"))?;
    let (report, code) = answer("check", &[&name])?;
    ensure!(code == 0 && report["blobs"] == 2, "{report:#}");
    unpacked(&name, &dir.path().join("ours"))?;
    ensure!(!dir.path().join("ours/gone").exists() && dir.path().join("ours/new").exists());
    must_be_equal(&dir.path().join("umoci"), &dir.path().join("ours"), 80, GO)
}

/// A layout of layers that are already there.
fn layout(dir: &Path, layers: &[(PathBuf, Vec<u8>)]) -> Result<String> {
    let store = make(dir, "blobs/sha256")?;
    let blob = |bytes: &[u8]| -> Result<Value> {
        let hex = hex::encode(Sha256::digest(bytes));
        fs::write(store.join(&hex), bytes)?;
        Ok(json!({"digest": format!("sha256:{hex}"), "size": bytes.len()}))
    };
    let diff_id = |tar: &Vec<u8>| format!("sha256:{}", hex::encode(Sha256::digest(tar)));
    let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| diff_id(tar)).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
    let config = blob(config.to_string().as_bytes())?;
    let layers = layers.iter().map(|(file, _)| blob(&fs::read(file)?)).collect::<Result<Vec<_>>>()?;
    let manifest = blob(json!({"config": config, "layers": layers}).to_string().as_bytes())?;
    fs::write(dir.join("index.json"), json!({"manifests": [manifest]}).to_string())?;
    Ok(dir.display().to_string())
}

#[test]
fn layers_of_tar_show_what_they_were_made_of() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-tar-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    // GNU tar has records of its own for access control lists.
    everything(&tree, false)?;
    for (format, more) in [("pax", &["--xattrs", "--xattrs-include=*"][..]), ("gnu", &[])] {
        let file = dir.path().join(format!("{format}.tar"));
        let mut args: Vec<&OsStr> = ["--create", "--numeric-owner", "--directory"].map(OsStr::new).to_vec();
        let format_option = format!("--format={format}");
        args.extend([tree.as_os_str(), OsStr::new(&format_option), OsStr::new("--file"), file.as_os_str()]);
        args.extend(more.iter().map(OsStr::new));
        args.push(OsStr::new("."));
        run("tar", &args)?;
        let name = layout(&make(dir.path(), format)?, &[(file.clone(), fs::read(&file)?)])?;
        let at = dir.path().join(format!("at-{format}"));
        unpacked(&name, &at)?;
        if format == "pax" {
            must_be_equal(&tree, &at, 80, &[])?;
        } else {
            // It holds neither attributes nor parts of seconds: the judge is tar itself.
            let judge = make(dir.path(), "by-tar")?;
            let args = ["--extract", "--same-owner", "--same-permissions", "--numeric-owner", "--directory"];
            let mut args: Vec<&OsStr> = args.map(OsStr::new).to_vec();
            args.extend([judge.as_os_str(), OsStr::new("--file"), file.as_os_str()]);
            run("tar", &args)?;
            must_be_equal(&judge, &at, 80, &[])?;
        }
    }
    Ok(())
}

#[test]
fn images_of_both_kinds_are_compared_exported_and_mounted() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-both-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    everything(&tree, true)?;
    archive::build(&layers_request(dir.path(), "oci", &[], &tree), &Quiet)?;
    // With chunks as plain layers have them, and with others.
    build::build(&request(dir.path(), "nydus", Format::default(), &tree), &Quiet)?;
    let small = Format { chunk_size: ChunkSize::new(64 << 10)?, ..Format::default() };
    build::build(&request(dir.path(), "small", small, &tree), &Quiet)?;
    let name = |tag: &str| format!("{}:{tag}", dir.path().join("layout").display());
    for other in ["nydus", "small"] {
        let (report, code) = answer("diff", &[&name(other), &name("oci")])?;
        // Tar has no sockets.
        let differences = report["differences"].as_array().context("a list")?;
        ensure!(code == 1 && differences.len() == 1 && differences[0]["path"] == "/socket", "{report:#}");
    }
    let disk = dir.path().join("disk");
    let out = image("export", &[&name("oci"), &disk.display().to_string()])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mounted = mount_files(&disk, &[], &make(dir.path(), "mount")?)?;
    must_be_equal(&tree, mounted.path(), 80, &[])?;
    drop(mounted);
    let at = make(dir.path(), "served")?;
    let (report, code) = answer("mount", &[&name("oci"), &at.display().to_string()])?;
    let equal = must_be_equal(&tree, &at, 80, &[]);
    ensure!(image("unmount", &[&at])?.status.success());
    ensure!(code == 0 && report["through"] == "fuse", "{report}");
    equal
}

/// An entry of a tar: its type, path, link and content.
type Harm<'a> = (u8, &'a str, &'a str, &'a [u8]);

/// Entries of a tar as somebody writes them who means harm: nothing of this would be written by a builder.
fn harmful(entries: &[Harm<'_>]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, path, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().linkflag = [*kind];
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content)?;
    }
    Ok(tar.into_inner()?)
}

#[test]
fn what_means_harm_writes_nothing_outside() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("oci-harm-").tempdir()?;
    let outside = make(dir.path(), "outside")?;
    fs::write(outside.join("secret"), "untouched")?;
    let out = outside.display().to_string();
    let secret = format!("{out}/secret");
    let link = (b'2', "way", out.as_str(), &b""[..]);
    let layers: &[(&str, &[Harm<'_>])] = &[
        ("dots", &[(b'0', "../../../../../../outside/new", "", b"x")]),
        ("within", &[(b'0', "a/../../outside/new", "", b"x")]),
        ("way", &[link, (b'0', "way/new", "", b"x")]),
        ("twice", &[link, (b'2', "on", "way", b""), (b'0', "on/new", "", b"x")]),
        ("hard", &[(b'1', "mine", &secret, b""), (b'0', "mine", "", b"overwritten")]),
        ("hard-way", &[link, (b'1', "mine", "way/secret", b""), (b'0', "mine", "", b"overwritten")]),
        ("gone", &[link, (b'0', "way/.wh.secret", "", b"")]),
        ("gone-dots", &[(b'0', "../outside/.wh.secret", "", b"")]),
    ];
    for (name, entries) in layers {
        let bytes = harmful(entries)?;
        let file = dir.path().join(format!("{name}.tar"));
        fs::write(&file, &bytes)?;
        let image_name = layout(&make(dir.path(), name)?, &[(file, bytes)])?;
        let at = dir.path().join(format!("at-{name}"));
        // One whiteout finds nothing to take away, and that is all there is to it.
        let expected = i32::from(*name != "gone");
        let (report, code) = answer("check", &[&image_name])?;
        ensure!(code == expected, "{name}: {report:#}");
        let done = image("unpack", &[image_name.as_str(), &at.display().to_string()])?;
        ensure!(done.status.code() == Some(expected), "{name}: {done:?}");
        ensure!(
            fs::read_to_string(&secret)? == "untouched" && fs::read_dir(&outside)?.count() == 1,
            "{name}"
        );
    }
    // In the layer above, what was a link is a directory.
    let below = harmful(&[link])?;
    let above = harmful(&[(b'0', "way/secret", "", b"own")])?;
    let files = [("below", below), ("above", above)].map(|(name, bytes)| {
        let file = dir.path().join(format!("{name}.tar"));
        (fs::write(&file, &bytes), file, bytes)
    });
    let files: Vec<_> = files.into_iter().map(|(_, file, bytes)| (file, bytes)).collect();
    let name = layout(&make(dir.path(), "two")?, &files)?;
    let at = dir.path().join("at-two");
    unpacked(&name, &at)?;
    ensure!(fs::read_to_string(at.join("way/secret"))? == "own" && !at.join("way").is_symlink());
    ensure!(fs::read_to_string(&secret)? == "untouched");
    Ok(())
}
