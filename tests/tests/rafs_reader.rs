//! Images read back by the engine: those of `nydus-image` and its own, equal to their source; damaged ones refused.
//!
//! Needs root for owners, devices and mounts. `nydus-image` is looked for in `$NYDUS_BIN`, then in `$PATH`; where it is missing, its tests say so
//! and pass, unless `CI` or `SNAPSHOT_REQUIRE_JUDGES` is set.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use snapshot_engine::image::compare::compare;
use snapshot_engine::image::mount::mount_files;
use snapshot_engine::model::chunk::{ChunkSize, Compressor, Digester, Format, FsVersion};
use snapshot_engine::reader::check::check;
use snapshot_engine::reader::diff::diff;
use snapshot_engine::reader::export::{self, export};
use snapshot_engine::reader::unpack::{Options, unpack};
use snapshot_engine::reader::{Opened, Source, open};
use snapshot_tests::engine::engine;
use snapshot_tests::everything::xattr;
use snapshot_tests::images::{engine_image, nydus_create, plain_tree, whole_tree};
use snapshot_tests::judges::judge;
use snapshot_tests::root_or_skip;

fn opened(path: &Path, blob_dir: &Path) -> Result<Opened> {
    Ok(open(&Source::find(path, Some(blob_dir))?, None)?)
}

/// Sound, and what comes out of it equals its source.
fn must_hold(image: &Opened, source: &Path, scratch: &Path) -> Result<()> {
    let report = check(image, &|_, _| {});
    ensure!(report.is_sound(), "{:#?}", report.problems);
    ensure!(report.counts.entries > 1080 && report.chunk_bytes > 9 << 20, "{report:?}");
    let to = scratch.join("unpacked");
    let report = unpack(image, &to, Options::default(), &|_, _| {})?;
    ensure!(report.left_out == 0);
    ensure!(report.written + (20 << 20) < report.bytes, "holes were written: {report:?}");
    must_be_equal(source, &to)?;
    fs::remove_dir_all(&to)?;
    Ok(())
}

fn must_be_equal(source: &Path, copy: &Path) -> Result<()> {
    let result = compare(source, copy, 20)?;
    let list: Vec<String> = result.differences.iter().map(ToString::to_string).collect();
    ensure!(list.is_empty(), "{} entries compared, differences:\n{}", result.entries, list.join("\n"));
    ensure!(result.entries > 1080, "only {} entries compared", result.entries);
    Ok(())
}

#[test]
fn images_of_nydus_image_read_back_equal() -> Result<()> {
    let Some(tool) = judge("nydus-image")? else { return Ok(()) };
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    whole_tree(&source)?;
    let mut first: Option<Opened> = None;
    for version in ["6", "5"] {
        for compressor in ["none", "lz4_block", "zstd"] {
            for digester in ["blake3", "sha256"] {
                for chunk in ["0x100000", "0x10000"] {
                    if digester == "sha256" && chunk == "0x10000" {
                        continue;
                    }
                    let what = format!("v{version} {compressor} {digester} {chunk}");
                    let place = dir.path().join(what.replace(' ', "-"));
                    let blobs = place.join("blobs");
                    fs::create_dir_all(&blobs)?;
                    let boot = place.join("boot");
                    let words = ["--fs-version", version, "--compressor", compressor, "--digester", digester];
                    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
                    args.extend(["--chunk-size", chunk, "-B"].map(OsStr::new));
                    args.extend([boot.as_os_str(), OsStr::new("-D"), blobs.as_os_str()]);
                    nydus_create(&tool, &source, &args).context(what.clone())?;
                    let image = opened(&boot, &blobs).context(what.clone())?;
                    must_hold(&image, &source, &place).context(what.clone())?;
                    match &first {
                        None => first = Some(image),
                        // Any two of them are one tree, by digests or byte by byte.
                        Some(first) => {
                            let report = diff(first, &image)?;
                            ensure!(report.equal, "{what}: {:#?}", report.differences);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn blobs_with_their_own_bootstrap_read_back_equal() -> Result<()> {
    let Some(tool) = judge("nydus-image")? else { return Ok(()) };
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    whole_tree(&source)?;
    for toc in [&["--features", "blob-toc"][..], &[]] {
        for compressor in ["none", "lz4_block", "zstd"] {
            let what = format!("{compressor} {toc:?}");
            let blob = dir.path().join(format!("{compressor}-{}", toc.len()));
            let words = ["--fs-version", "6", "--blob-inline-meta", "--compressor", compressor];
            let mut args: Vec<&OsStr> = words.iter().chain(toc).map(OsStr::new).collect();
            args.extend(["--prefetch-policy", "fs", "--blob"].map(OsStr::new));
            args.push(blob.as_os_str());
            nydus_create(&tool, &source, &args).context(what.clone())?;
            let image = opened(&blob, dir.path()).context(what.clone())?;
            must_hold(&image, &source, dir.path()).context(what.clone())?;
            if !toc.is_empty() {
                // Damage between the data and the bootstrap is found too: a digest that only nydusd would look at.
                let file = File::options().write(true).open(&blob)?;
                let end = image.image.blobs[0].meta.context("metadata")?;
                let at = end.offset + end.compressed_size + 4096 + 512 + 40;
                file.write_all_at(&[0x5a; 4], at)?;
                let report = check(&opened(&blob, dir.path())?, &|_, _| {});
                ensure!(report.problems.iter().any(|p| p.what.contains("blob.digest")), "{report:#?}");
            }
        }
    }
    Ok(())
}

fn formats() -> Result<Vec<Format>> {
    let mut all = Vec::new();
    for word in ["none", "lz4_block", "zstd"] {
        let compressor: Compressor = word.parse()?;
        for (digester, chunk) in [(Digester::Blake3, 1 << 20), (Digester::Sha256, 4096)] {
            let chunk_size = ChunkSize::new(chunk)?;
            all.push(Format { compressor, digester, chunk_size, ..Format::default() });
            if compressor != Compressor::None {
                all.push(Format { version: FsVersion::V5, ..all[all.len() - 1] });
            }
        }
    }
    Ok(all)
}

#[test]
fn images_of_the_engine_read_back_equal_and_mount() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    whole_tree(&source)?;
    for (n, format) in formats()?.into_iter().enumerate() {
        let what = format!("{format:?}");
        let (_, layout) = engine_image(&source, dir.path(), &format!("t{n}"), format)?;
        let name = format!("{}:t{n}", layout.display());
        let image = open(&Source::find(Path::new(&name), None)?, None)?;
        must_hold(&image, &source, dir.path()).context(what.clone())?;
        // The kernel judges what is exported, compressed or not.
        let disk = dir.path().join("disk");
        let options = export::Options { force: true, verity: n == 0 };
        let report = export(&image, &disk, options, &|_, _| {})?;
        ensure!(report.written < report.data_bytes);
        let at = dir.path().join("mount");
        fs::create_dir_all(&at)?;
        let mounted = mount_files(&disk, &[], &at)?;
        must_be_equal(&source, mounted.path()).context(what)?;
    }
    Ok(())
}

fn run(args: &[&OsStr]) -> Result<Output> {
    Ok(engine(args.iter().copied()).output()?)
}

fn image(command: &str, args: &[&Path]) -> Result<Output> {
    let mut all = vec![OsStr::new("image"), OsStr::new(command)];
    all.extend(args.iter().map(|a| a.as_os_str()));
    all.extend(["--output", "json"].map(OsStr::new));
    run(&all)
}

fn json(output: &Output) -> Result<serde_json::Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn tagged(layout: &Path, tag: &str) -> PathBuf {
    format!("{}:{tag}", layout.display()).into()
}

#[test]
fn verity_is_what_veritysetup_makes_of_it() -> Result<()> {
    let tool =
        ["/usr/sbin", "/sbin"].map(|d| Path::new(d).join("veritysetup")).into_iter().find(|p| p.is_file());
    let Some(tool) = tool else {
        ensure!(
            std::env::var_os("SNAPSHOT_REQUIRE_JUDGES").is_none(),
            "cryptsetup-bin is missing: cargo xtask setup --tests"
        );
        eprintln!("NOT JUDGED: veritysetup is missing (apt: cryptsetup-bin)");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    plain_tree(&source)?;
    let (_, layout) = engine_image(&source, dir.path(), "v", Format::default())?;
    let disk = dir.path().join("disk");
    let out = image("export", &[&tagged(&layout, "v"), &disk, Path::new("--verity")])?;
    let verity = json(&out)?["verity"].clone();
    let root = verity["root_hash"].as_str().context("a root hash")?;
    let verify = |root: &str| -> Result<bool> {
        let offset = format!("--hash-offset={}", verity["hash_offset"]);
        Ok(Command::new(&tool)
            .arg("verify")
            .arg(&disk)
            .arg(&disk)
            .args([root, &offset])
            .output()?
            .status
            .success())
    };
    ensure!(verify(root)?, "veritysetup does not accept it");
    ensure!(!verify(&root.replace(|c: char| c.is_ascii_digit(), "a"))?, "it accepts any root hash");
    File::options().write(true).open(&disk)?.write_all_at(b"x", 1 << 20)?;
    ensure!(!verify(root)?, "it accepts other data");
    Ok(())
}

#[test]
fn damage_is_found_and_nothing_of_it_given_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    plain_tree(&source)?;
    let (built, layout) = engine_image(&source, dir.path(), "d", Format::default())?;
    let name = tagged(&layout, "d");
    let out = image("check", &[&name])?;
    ensure!(out.status.code() == Some(0), "{}", String::from_utf8_lossy(&out.stdout));
    ensure!(json(&out)?["problems_found"] == 0);

    // A byte of a blob.
    let blob = &built.blobs[0].path;
    let whole = fs::read(blob)?;
    fs::remove_file(blob)?;
    let mut damaged = whole.clone();
    damaged[5000] ^= 1;
    fs::write(blob, &damaged)?;
    let out = image("check", &[&name])?;
    ensure!(out.status.code() == Some(1));
    let found = json(&out)?;
    let text = found["problems"].to_string();
    ensure!(text.contains("its sha256 is") && text.contains("its content is damaged"), "{text}");
    let out = image("unpack", &[&name, &dir.path().join("to")])?;
    ensure!(out.status.code() == Some(1) && out.stdout.is_empty(), "damaged data was unpacked");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(said.contains("image check"), "{said}");

    // A blob that is cut off, then one that is gone.
    fs::write(blob, &whole[..whole.len() / 2])?;
    ensure!(image("check", &[&name])?.status.code() == Some(1));
    fs::remove_file(blob)?;
    let out = image("check", &[&name])?;
    let found = json(&out)?;
    ensure!(out.status.code() == Some(1) && found["problems_found"] == 1, "{found}");
    let out = image("export", &[&name, &dir.path().join("disk")])?;
    ensure!(out.status.code() == Some(1) && !dir.path().join("disk").exists());
    fs::write(blob, &whole)?;
    ensure!(image("check", &[&name])?.status.code() == Some(0));

    // A document that is not what its name says.
    let manifest = layout.join("blobs/sha256").join(built.manifest.0.trim_start_matches("sha256:"));
    let mut text = fs::read(&manifest)?;
    text.push(b' ');
    fs::remove_file(&manifest)?;
    fs::write(&manifest, text)?;
    let out = image("check", &[&name])?;
    ensure!(out.status.code() == Some(1), "{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}

#[test]
fn differences_are_listed_with_their_exit_codes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    plain_tree(&source)?;
    let (_, layout) = engine_image(&source, dir.path(), "one", Format::default())?;
    fs::write(source.join("many/added"), "new")?;
    fs::remove_file(source.join("odd-link"))?;
    fs::remove_file(source.join("link"))?;
    symlink("elsewhere", source.join("link"))?;
    File::options().write(true).open(source.join("text"))?.write_all_at(b"X", 3_000_000)?;
    engine_image(&source, dir.path(), "two", Format::default())?;
    let (one, two) = (tagged(&layout, "one"), tagged(&layout, "two"));
    let out = image("diff", &[&one, &one])?;
    ensure!(out.status.code() == Some(0) && json(&out)?["equal"] == true);
    let out = image("diff", &[&one, &two])?;
    ensure!(out.status.code() == Some(1));
    let found = json(&out)?;
    let list: Vec<String> = found["differences"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|d| {
            let what: Vec<&str> =
                d["what"].as_array().into_iter().flatten().filter_map(|f| f["name"].as_str()).collect();
            let path = d["path"].as_str().map_or_else(|| d["path"].to_string(), str::to_owned);
            format!("{} {path} {}", d["change"].as_str().unwrap_or("?"), what.join(","))
        })
        .collect();
    let expected = [
        "changed / ",
        "changed /link mtime,target",
        "changed /many mtime",
        "added /many/added ",
        "removed /odd-link ",
        "changed /text mtime,content",
    ];
    let without_root: Vec<&str> =
        list.iter().map(String::as_str).filter(|l| !l.starts_with("changed / ")).collect();
    ensure!(without_root == expected[1..], "{list:#?}");
    let out = image("diff", &[&one, Path::new("/no/such/image")])?;
    ensure!(out.status.code() == Some(2) && out.stdout.is_empty());
    Ok(())
}

#[test]
fn nothing_is_written_outside_of_the_directory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    plain_tree(&source)?;
    let (_, layout) = engine_image(&source, dir.path(), "o", Format::default())?;
    let name = tagged(&layout, "o");
    // What is there already leads out, where the image has directories and files.
    let outside = dir.path().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("file"), "precious")?;
    let to = dir.path().join("to");
    fs::create_dir(&to)?;
    symlink(&outside, to.join("many"))?;
    symlink(outside.join("file"), to.join("text"))?;
    fs::create_dir_all(to.join("size-1/below"))?;
    fs::write(to.join("kept"), "stays")?;
    let out = image("unpack", &[&name, &to])?;
    ensure!(out.status.code() == Some(2), "a directory that is not empty needs --force");
    let out = image("unpack", &[&name, &to, Path::new("--force"), Path::new("--unprivileged")])?;
    ensure!(out.status.code() == Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    ensure!(fs::read_to_string(outside.join("file"))? == "precious");
    ensure!(fs::read_dir(&outside)?.count() == 1);
    ensure!(fs::read(to.join("text"))? == fs::read(source.join("text"))?);
    ensure!(fs::read(to.join("size-1"))?.len() == 1 && fs::read_to_string(to.join("kept"))? == "stays");
    Ok(())
}

/// Unmounts whatever a test leaves.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        let _ = image("unmount", &[self.0]);
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn mounted(args: &[&Path]) -> Result<serde_json::Value> {
    let out = image("mount", args)?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    json(&out)
}

#[test]
fn images_mount_by_the_kernel_and_by_a_process() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    whole_tree(&source)?;
    let at = dir.path().join("at");
    fs::create_dir(&at)?;
    for (word, version, through) in
        [("none", "6", "kernel"), ("zstd", "6", "fuse"), ("lz4_block", "5", "fuse")]
    {
        let version = if version == "5" { FsVersion::V5 } else { FsVersion::V6 };
        let format = Format { version, compressor: word.parse()?, ..Format::default() };
        let (built, layout) = engine_image(&source, dir.path(), word, format)?;
        let name = tagged(&layout, word);
        let _unmounted = Unmounted(&at);
        let report = mounted(&[&name, &at])?;
        ensure!(report["through"] == through && report["rw"] == false, "{report}");
        must_be_equal(&source, &at).with_context(|| word.to_owned())?;
        let again = image("mount", &[&name, &at])?;
        ensure!(again.status.code() == Some(2), "mounted twice on one directory");
        let out = image("unmount", &[&at])?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        ensure!(fs::read_dir(&at)?.next().is_none(), "still mounted");
        if let Some(pid) = report["pid"].as_u64() {
            // A zombie is gone: the first process of a container may not reap.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            ensure!(
                stat.is_empty() || stat.contains(") Z "),
                "the process that served it is still there: {stat}"
            );
        }
        let out = image("unmount", &[&at])?;
        ensure!(out.status.code() == Some(2), "unmounted what was not mounted");
        if through == "fuse" {
            damage_is_not_served(&name, &at, &built.blobs[0].path)?;
        }
    }
    Ok(())
}

/// Nydus gives out damaged v6 data; here it is an error.
fn damage_is_not_served(name: &Path, at: &Path, blob: &Path) -> Result<()> {
    let whole = fs::read(blob)?;
    fs::remove_file(blob)?;
    let mut damaged = whole.clone();
    // Somewhere in the content of `size-9437184`, most of the blob.
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(blob, damaged)?;
    mounted(&[name, at])?;
    let failed = fs::read_dir(at)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.symlink_metadata().is_ok_and(|m| m.is_file()))
        .filter(|p| fs::read(p).is_err())
        .count();
    ensure!(failed == 1, "{failed} files could not be read");
    ensure!(image("unmount", &[at])?.status.success());
    fs::write(blob, whole)?;
    Ok(())
}

#[test]
fn a_writable_mount_keeps_what_is_written_where_it_was_told_to() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    whole_tree(&source)?;
    // The root is part of the image as well.
    chown(&source, Some(7), Some(8))?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o1551))?;
    xattr(&source, "user.root", b"the image's")?;
    let at = dir.path().join("at");
    fs::create_dir(&at)?;
    let mode = |path: &Path| fs::metadata(path).map(|stat| stat.permissions().mode() & 0o7777);
    for word in ["none", "zstd"] {
        let kept = dir.path().join(format!("kept-{word}"));
        fs::create_dir(&kept)?;
        let format = Format { compressor: word.parse()?, ..Format::default() };
        let (_, layout) = engine_image(&source, dir.path(), word, format)?;
        let name = tagged(&layout, word);
        let _unmounted = Unmounted(&at);
        let (rw, rw_dir) = (Path::new("--rw"), Path::new("--rw-dir"));
        ensure!(mounted(&[&name, &at, rw, rw_dir, &kept])?["rw"] == true);
        fs::write(at.join(format!("new-{word}")), "written")?;
        fs::remove_file(at.join("many/linked"))?;
        fs::set_permissions(&at, fs::Permissions::from_mode(0o711))?;
        ensure!(image("unmount", &[&at])?.status.success());
        ensure!(fs::read_to_string(kept.join(format!("upper/new-{word}")))? == "written");
        // Mounted again it is there; without the directory, the image is as it was, and nothing is left.
        mounted(&[&name, &at, rw, rw_dir, &kept])?;
        ensure!(at.join(format!("new-{word}")).exists() && !at.join("many/linked").exists());
        ensure!(mode(&at)? == 0o711, "{:o}", mode(&at)?);
        ensure!(image("unmount", &[&at])?.status.success());
        mounted(&[&name, &at, rw])?;
        must_be_equal(&source, &at).with_context(|| word.to_owned())?;
        fs::write(at.join("lost"), "x")?;
        ensure!(image("unmount", &[&at])?.status.success());
        mounted(&[&name, &at, rw])?;
        ensure!(!at.join("lost").exists());
        ensure!(image("unmount", &[&at])?.status.success());
    }
    Ok(())
}
